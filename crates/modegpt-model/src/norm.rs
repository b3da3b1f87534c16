//! LayerNorm and RMSNorm over the residual width.

use burn::tensor::Tensor;
use modegpt_architecture::{ModelConfig, Norm as NormKind, NormWeights};

use crate::Compute;

/// ```text
/// LayerNorm(x) = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
/// RMSNorm(x)   = x / sqrt(mean(x²) + eps) * weight
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    kind: NormKind,
    /// `[1, d_model]`
    weight: Option<Tensor<2>>,
    /// `[1, d_model]`
    bias: Option<Tensor<2>>,
}

impl Norm {
    pub(crate) fn new(weights: NormWeights, config: &ModelConfig, compute: &Compute) -> Self {
        let row = |values: Option<Vec<f32>>| {
            values.map(|values| {
                let width = values.len();
                compute.tensor(values, [1, width])
            })
        };
        Self { kind: config.norm, weight: row(weights.weight), bias: row(weights.bias) }
    }

    /// `x: [rows, d_model]`, same shape out.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = match self.kind {
            NormKind::Layer { eps } => {
                let centred = x.clone() - x.mean_dim(1);
                let variance = (centred.clone() * centred.clone()).mean_dim(1);
                centred / (variance + eps).sqrt()
            }
            NormKind::Rms { eps } => {
                let mean_square = (x.clone() * x.clone()).mean_dim(1);
                x / (mean_square + eps).sqrt()
            }
        };
        let y = match &self.weight {
            Some(weight) => y * weight.clone(),
            None => y,
        };
        match &self.bias {
            Some(bias) => y + bias.clone(),
            None => y,
        }
    }
}
