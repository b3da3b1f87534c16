//! One layer as it is, with what is known of it.

use modegpt_architecture::{LayerShape, LayerWeights, ModelConfig};
use modegpt_linalg::Gram;
use modegpt_statistics::{LayerGradients, LayerStatistics};

use crate::ErrorUnit;

/// What a decomposition works on.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Of the whole model.
    pub config: &'a ModelConfig,
    /// Index of the layer, from 0.
    pub index: usize,
    /// The weights as they are.
    pub weights: &'a LayerWeights,
    /// The present widths, with the rotary pairs if the layer was compressed before; pairs compose, so that the result
    /// again counts the pairs of the original head.
    pub shape: &'a LayerShape,
    /// Of this layer with these weights.
    pub statistics: &'a LayerStatistics,
    /// Of the loss, if a backward pass was made: what matters is then measured in nats.
    pub gradients: Option<&'a LayerGradients>,
}

impl<'a> Layer<'a> {
    /// The unit in which errors of this layer are measured.
    pub(crate) fn unit(&self) -> ErrorUnit {
        if self.gradients.is_some() { ErrorUnit::Nats } else { ErrorUnit::ResidualEnergy }
    }

    /// What errors of the MLP's output are weighed with; the identity if there is nothing.
    pub(crate) fn mlp_metric(&self) -> Option<&'a Gram> {
        self.gradients.map(|gradients| &gradients.residual)
    }

    /// What errors of the output of attention are weighed with; the identity if there is nothing.
    pub(crate) fn attention_metric(&self) -> Option<&'a Gram> {
        self.gradients.map(|gradients| &gradients.attention_residual)
    }

    /// What a squared error, summed over `n_tokens` tokens and weighed with a metric of the layer, means for one token.
    ///
    /// ```text
    /// nats              ½ tr(E G) with  E = error / n_tokens,  G = Σ gᵀg / n_predicted
    /// residual energy   tr(E) / mean energy of the residual stream
    /// ```
    pub(crate) fn per_token(&self, error: f64, n_tokens: u64) -> f64 {
        let mean = error.max(0.0) / n_tokens as f64;
        match self.gradients {
            Some(gradients) => 0.5 * mean / gradients.n_tokens as f64,
            None => mean / self.statistics.residual_energy(),
        }
    }
}
