//! LayerNorm and RMSNorm over the residual width.

use burn::tensor::Tensor;
use modegpt_architecture::{ModelConfig, Norm as NormKind, NormWeights};

use crate::{Compute, host};

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
    compute: Compute,
}

impl Norm {
    pub(crate) fn new(weights: NormWeights, config: &ModelConfig, compute: &Compute) -> Self {
        let row = |values: Option<Vec<f32>>| {
            values.map(|values| {
                let width = values.len();
                compute.tensor(values, [1, width])
            })
        };
        Self { kind: config.norm, weight: row(weights.weight), bias: row(weights.bias), compute: compute.clone() }
    }

    /// `x: [rows, d_model]`, same shape out.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        if !host::takes(&x, &self.compute) {
            return self.spelt_out(x);
        }
        let width = x.dims()[1];
        let [weight, bias] = [&self.weight, &self.bias].map(|row| row.as_ref().map(|row| row.clone().into_data()));
        let [weight, bias] = [&weight, &bias].map(|row| row.as_ref().map(host::values));
        host::change(x, |x| host::normalise(x, width, self.kind, weight, bias))
    }

    fn spelt_out(&self, x: Tensor<2>) -> Tensor<2> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Around the number of lanes and of rows that are taken at once, rows far from zero, and one that is all zero.
    #[test]
    fn the_hosts_kernel_is_the_formula() {
        let compute = Compute::host();
        for kind in [NormKind::Layer { eps: 1e-5 }, NormKind::Rms { eps: 1e-6 }] {
            for (rows, width) in [(1, 1), (2, 15), (31, 16), (33, 17), (100, 70)] {
                let value = |at: usize| if at < width { 0.0 } else { (0.731 * at as f32).sin() + 0.5 };
                let x = compute.tensor((0..rows * width).map(value).collect(), [rows, width]);
                let row =
                    |shift: f32| compute.tensor((0..width).map(|at| shift + 0.01 * at as f32).collect(), [1, width]);
                for (weight, bias) in [(None, None), (Some(row(0.7)), None), (Some(row(0.7)), Some(row(-0.2)))] {
                    let norm = Norm { kind, weight, bias, compute: compute.clone() };
                    let (found, expected) = (norm.forward(x.clone()), norm.spelt_out(x.clone()));
                    assert_eq!(found.dims(), [rows, width]);
                    let difference = (found - expected).abs().max().into_scalar::<f32>();
                    assert!(difference <= 2e-6, "{kind:?}, {rows} rows of {width}: {difference:e}");
                }
            }
        }
    }
}
