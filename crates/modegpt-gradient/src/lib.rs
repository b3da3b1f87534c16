//! Gradients of the loss, streamed backward one layer at a time.
