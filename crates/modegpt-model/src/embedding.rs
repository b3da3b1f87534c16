//! From token ids to the residual stream.

use burn::tensor::Tensor;
use modegpt_architecture::{ModelConfig, WeightProvider};

use crate::{Compute, ComputeError, linear::Linear};

/// Looks tokens up on the host: the table is never sent to the device, which might not be able to bind it.
#[derive(Debug)]
pub struct Embedder {
    project_in: Option<Linear>,
    d_model: usize,
    max_positions: usize,
}

impl Embedder {
    /// An embedder for the model behind `weights`.
    ///
    /// # Errors
    /// [`ComputeError::Weights`] if the weights cannot be read.
    pub fn new(weights: &dyn WeightProvider, compute: &Compute) -> Result<Self, ComputeError> {
        let config: &ModelConfig = weights.config();
        let project_in = weights.outer()?.project_in.map(|linear| Linear::new(linear, compute));
        Ok(Self { project_in, d_model: config.d_model, max_positions: config.max_positions })
    }

    /// The residual stream before the first block, `[batch, tokens, d_model]`, of `batch` sequences that all start at
    /// position `start`. `ids` holds the sequences one after another.
    ///
    /// # Errors
    /// [`ComputeError::TooLong`] if the positions run out, [`ComputeError::Weights`] if an id is not in the vocabulary or
    /// the table cannot be read.
    pub fn embed(
        &self,
        weights: &dyn WeightProvider,
        ids: &[u32],
        batch: usize,
        start: usize,
        compute: &Compute,
    ) -> Result<Tensor<3>, ComputeError> {
        let tokens = ids.len() / batch;
        if start + tokens > self.max_positions {
            return Err(ComputeError::TooLong { found: start + tokens, most: self.max_positions });
        }
        let mut x = compute.matrix(weights.embedding_rows(ids)?);
        if let Some(project_in) = &self.project_in {
            x = project_in.forward(x);
        }
        let x = x.reshape([batch, tokens, self.d_model]);
        Ok(match weights.position_rows(start..start + tokens)? {
            Some(positions) => x + compute.matrix(positions).reshape([1, tokens, self.d_model]),
            None => x,
        })
    }
}
