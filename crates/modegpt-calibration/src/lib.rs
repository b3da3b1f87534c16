//! Streams calibration tokens through a model, a layer at a time, and accumulates what compression needs to know.
//!
//! No gradients, and never more than one layer of weights and statistics: a layer is loaded, the residual stream of all
//! samples passes through it in batches, its [`LayerStatistics`] are handed over, and it is dropped.
//!
//! The statistics are those of the *original* model, as in the paper: every layer sees the stream that the uncompressed
//! layers before it produce.
//!
//! [`LayerStatistics`]: modegpt_statistics::LayerStatistics

mod accumulate;
mod activation_gram;
mod calibrate;
mod logits;
mod prefix;

pub use accumulate::Collect;
pub use activation_gram::{ActivationGram, GramPath};
pub use calibrate::{CalibrationError, Observing, check_finite, observe_layer, pass_layer};
pub use prefix::{PrefixAccumulator, forward_with_units};
