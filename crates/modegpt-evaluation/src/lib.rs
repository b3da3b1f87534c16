//! What a model is worth: its perplexity on a text, and the text it writes.
//!
//! Both work on any model, dense or compressed, through a [`WeightProvider`](modegpt_architecture::WeightProvider).
//! [`score_windows`] streams, with one layer in memory; [`generate`] holds the whole model.

mod generate;
mod perplexity;
mod sampler;

pub use generate::{Stop, generate};
pub use perplexity::{Score, ScoringOptions, Window, score_windows};
pub use sampler::{Sampler, SamplerError, SamplerOptions};
