//! Why gradients could not be computed.

use modegpt_model::{ComputeError, StoreError};

/// Why gradients could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum GradientError {
    /// A layer failed, forward or backward.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Which layer.
        layer: usize,
        /// Why.
        source: ComputeError,
    },
    /// Embeddings, final norm or head failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The tape could not be read or written.
    #[error("the tape of layer inputs: {0}")]
    Tape(StoreError),
    /// Samples of another size than the tape was made for.
    #[error("{what}: expected {expected} ({n_samples} samples of {seq_len} tokens), found {found}")]
    Samples {
        /// What does not fit.
        what: &'static str,
        /// How many are needed.
        expected: usize,
        /// How many samples the tape holds.
        n_samples: usize,
        /// Of how many tokens.
        seq_len: usize,
        /// How many are there.
        found: usize,
    },
    /// There is no token of which a loss could be taken.
    #[error("no token counts: the samples have a single token each, or the mask leaves none but first ones")]
    NothingCounted,
    /// Whatever a layer puts out, the loss is the same.
    #[error(
        "the gradient of the loss is zero for all that layer {layer} puts out: the model says the same whatever it reads, \
         or is sure of every label, and nothing tells what matters"
    )]
    Zero {
        /// Which layer.
        layer: usize,
    },
    /// A token that the model does not have.
    #[error("token {position} has the id {id}, but the vocabulary ends at {vocab}")]
    UnknownToken {
        /// Its place among all tokens.
        position: usize,
        /// Its id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
}

impl GradientError {
    pub(crate) fn at(layer: usize) -> impl Fn(ComputeError) -> Self {
        move |source| Self::Layer { layer, source }
    }
}
