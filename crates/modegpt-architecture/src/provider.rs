//! Where weights come from, one piece at a time.

use std::ops::Range;

use crate::{LayerWeights, Linear, Matrix, ModelConfig, NormWeights, Weight};

/// Why weights could not be had: the error of whatever stores them.
pub type WeightError = Box<dyn std::error::Error + Send + Sync>;

/// The weights of a model, handed out piece by piece, so that no more than a layer need be in memory.
pub trait WeightProvider {
    /// What the model is.
    fn config(&self) -> &ModelConfig;

    /// One decoder block. Callers that need every map dense take [`LayerWeights::into_dense`].
    ///
    /// # Errors
    /// Whatever keeps the weights from being read; the message names the tensor.
    fn layer(&self, index: usize) -> Result<LayerWeights<Weight>, WeightError>;

    /// What stands before and after the blocks.
    ///
    /// # Errors
    /// As [`WeightProvider::layer`].
    fn outer(&self) -> Result<OuterWeights, WeightError>;

    /// The embeddings of `ids`, `[ids.len(), d_embedding]`.
    ///
    /// # Errors
    /// As [`WeightProvider::layer`]; also an id that the vocabulary does not have.
    fn embedding_rows(&self, ids: &[u32]) -> Result<Matrix, WeightError>;

    /// The learned embeddings of positions `range`, `[range.len(), d_model]`; `None` for rotary models.
    ///
    /// # Errors
    /// As [`WeightProvider::layer`]; also a position beyond the model's context.
    fn position_rows(&self, range: Range<usize>) -> Result<Option<Matrix>, WeightError>;

    /// Rows `range` of the head, `[range.len(), d_embedding]`: logit `v` is the product of row `v` and the hidden state.
    ///
    /// # Errors
    /// As [`WeightProvider::layer`].
    fn head_rows(&self, range: Range<usize>) -> Result<Matrix, WeightError>;
}

/// What stands before and after the decoder blocks, without embeddings and head.
#[derive(Clone, Debug, PartialEq)]
pub struct OuterWeights {
    /// The last normalisation.
    pub final_norm: Option<NormWeights>,
    /// From the embedding's width to the residual width, where these differ.
    pub project_in: Option<Linear>,
    /// From the residual width to the embedding's width, where these differ.
    pub project_out: Option<Linear>,
}
