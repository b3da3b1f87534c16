//! What the layers before a compressed one have done to its input, and how its MLP can make it good.
//!
//! Errors of compressed layers add up. A layer that sees the stream of the compressed layers before it, `x̂`, can be asked
//! to bring it back to the stream of the original model behind the same layer, `y`: with `r̂` what attention makes of `x̂`
//! and `z` the hidden units of the compressed MLP on it, the down map is to carry
//!
//! ```text
//! z W + b ≈ y - r̂        minimising Σ_t ‖y_t - r̂_t - z_t W - b‖² / ‖y_t‖²
//! ```
//!
//! Tokens are weighed by the energy of the stream there, because the next layer sees it normalised: without that a few tokens
//! of enormous activation would decide everything.

use burn::tensor::Tensor;
use modegpt_architecture::LayerWeights;
use modegpt_model::{Block, Compute, ComputeError, Point, Probe};
use modegpt_statistics::PrefixStatistics;

use crate::activation_gram::{ActivationGram, GramPath, add_column_sums};

/// [`PrefixStatistics`] while the batches come in.
pub struct PrefixAccumulator {
    gram: ActivationGram,
    cross: Vec<f64>,
    target_sum: Vec<f64>,
    hidden_sum: Vec<f64>,
    weight_sum: f64,
}

/// Keeps the hidden units and what the down map makes of them.
#[derive(Default)]
struct MlpProbe {
    hidden: Option<Tensor<2>>,
    down: Option<Tensor<2>>,
}

impl Probe for MlpProbe {
    fn pass(&mut self, point: Point, x: Tensor<2>) -> Tensor<2> {
        match point {
            Point::Hidden => self.hidden = Some(x.clone()),
            Point::Down => self.down = Some(x.clone()),
            _ => {}
        }
        x
    }
}

impl PrefixAccumulator {
    /// The sum over no tokens, for the compressed layer `weights`.
    pub fn new(weights: &LayerWeights, path: GramPath) -> Self {
        let (k, d_model) = (weights.down.weight.rows, weights.down.weight.cols);
        Self {
            gram: ActivationGram::new(k, path),
            cross: vec![0.0; k * d_model],
            target_sum: vec![0.0; d_model],
            hidden_sum: vec![0.0; k],
            weight_sum: 0.0,
        }
    }

    /// Adds a batch: `input` is the stream of the compressed layers before `block`, `target` that of the original layers
    /// up to the same one, both `[samples, tokens, d_model]`.
    ///
    /// # Errors
    /// [`ComputeError::Device`] if the device fails.
    pub async fn add(
        &mut self,
        block: &Block,
        input: Tensor<3>,
        target: &[f32],
        compute: &Compute,
    ) -> Result<(), ComputeError> {
        let [samples, tokens, d_model] = input.dims();
        let rows = samples * tokens;
        let mut seen = MlpProbe::default();
        let output = block.probe(input, &mut seen).reshape([rows, d_model]);
        let (Some(hidden), Some(down)) = (seen.hidden, seen.down) else {
            unreachable!("every block has hidden units and a down map");
        };
        let weights: Vec<f32> = target.chunks_exact(d_model).map(token_weight).collect();
        self.weight_sum += weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        let weights = compute.tensor(weights, [rows, 1]);
        let wanted = compute.tensor(target.to_vec(), [rows, d_model]) - (output - down);
        let (hidden, wanted) = (hidden * weights.clone(), wanted * weights.clone());
        // The weights are square roots: once more, and sums are weighed as products are.
        add_column_sums(&mut self.hidden_sum, &compute.read(hidden.clone() * weights.clone()).await?);
        add_column_sums(&mut self.target_sum, &compute.read(wanted.clone() * weights).await?);
        let cross = compute.read(hidden.clone().transpose().matmul(wanted)).await?;
        self.cross.iter_mut().zip(cross).for_each(|(sum, more)| *sum += f64::from(more));
        self.gram.add(hidden, compute).await
    }

    /// The sums.
    pub fn finish(self) -> PrefixStatistics {
        let Self { gram, cross, target_sum, hidden_sum, weight_sum } = self;
        PrefixStatistics { gram: gram.finish().0, cross, hidden_sum, target_sum, weight_sum }
    }
}

/// The root of the weight of a token: `1 / ‖y‖`; 0 for a token of zeros.
fn token_weight(row: &[f32]) -> f32 {
    let energy: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
    if energy > 0.0 { energy.sqrt().recip() as f32 } else { 0.0 }
}
