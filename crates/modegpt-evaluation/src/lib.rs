//! What a model is worth: its perplexity on a text, its answers to questions, and the text it writes.
//!
//! All work on any model, dense or compressed, through a [`WeightProvider`](modegpt_architecture::WeightProvider).
//! [`score_windows`], [`compare_windows`] and [`score_continuations`] stream, with one layer in memory; [`generate`] holds
//! the whole model.

mod divergence;
mod generate;
mod layers;
mod multiple_choice;
mod perplexity;
mod sampler;
#[cfg(test)]
mod testing;

pub use divergence::{Divergence, KeptStreams, StreamError, compare_windows};
pub use generate::{Stop, generate};
pub use multiple_choice::{Continuation, ContinuationOptions, Likelihood, score_continuations};
pub use perplexity::{Score, ScoringOptions, Window, score_end, score_windows};
pub use sampler::{Sampler, SamplerError, SamplerOptions};
