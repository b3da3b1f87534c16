//! What the layers before a compressed one have done to its input, and how its own maps can make it good.
//!
//! Errors of compressed layers add up. A layer that sees the stream of the compressed layers before it, `x̂`, can be asked
//! to bring it back to that of the original model. Both of its modules end in a linear map that adds to the stream: with `z`
//! what enters that map, `x̂` the stream that the module adds to, and `y` the stream of the original model behind the same
//! module, the map is to carry
//!
//! ```text
//! z W + b ≈ y - x̂        minimising Σ_t ‖y_t - x̂_t - z_t W - b‖² / ‖y_t‖²
//! ```
//!
//! Tokens are weighed by the energy of the stream there, because what follows sees it normalised: without that a few tokens
//! of enormous activation would decide everything.

use burn::tensor::Tensor;
use modegpt_architecture::Linear;
use modegpt_model::{Block, Compute, ComputeError, Point, Probe};
use modegpt_statistics::PrefixStatistics;

use crate::activation_gram::{ActivationGram, GramPath, add_column_sums};

/// The last map of a module, which adds to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastMap {
    /// Of attention.
    Output,
    /// Of the MLP.
    Down,
}

/// [`PrefixStatistics`] while the batches come in.
pub struct PrefixAccumulator {
    map: LastMap,
    gram: ActivationGram,
    cross: Vec<f64>,
    target_sum: Vec<f64>,
    unit_sum: Vec<f64>,
    weight_sum: f64,
}

/// Keeps what enters a map and what it makes of it.
struct MapProbe {
    points: [Point; 2],
    seen: [Option<Tensor<2>>; 2],
}

impl MapProbe {
    fn new(map: LastMap) -> Self {
        let points = match map {
            LastMap::Output => [Point::OutputInput, Point::Output],
            LastMap::Down => [Point::Hidden, Point::Down],
        };
        Self { points, seen: [None, None] }
    }
}

impl Probe for MapProbe {
    fn pass(&mut self, point: Point, x: Tensor<2>) -> Tensor<2> {
        if let Some(place) = self.points.iter().position(|of_map| *of_map == point) {
            self.seen[place] = Some(x.clone());
        }
        x
    }
}

impl PrefixAccumulator {
    /// The sums over no tokens, for `map`, whose weights are `linear`.
    pub fn new(map: LastMap, linear: &Linear, path: GramPath) -> Self {
        let (k, d_model) = (linear.weight.rows, linear.weight.cols);
        Self {
            map,
            gram: ActivationGram::new(k, path),
            cross: vec![0.0; k * d_model],
            target_sum: vec![0.0; d_model],
            unit_sum: vec![0.0; k],
            weight_sum: 0.0,
        }
    }

    /// Adds a batch: `input` is the stream of the compressed model before that module of `block`, `target` that of the
    /// original model behind it, both `[samples, tokens, d_model]`.
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
        let mut probe = MapProbe::new(self.map);
        let output = match self.map {
            LastMap::Output => block.probe_attention(input, &mut probe),
            LastMap::Down => block.probe_mlp(input, &mut probe),
        };
        let [Some(units), Some(carried)] = probe.seen else {
            unreachable!("every module has a last map");
        };
        let before = output.reshape([rows, d_model]) - carried;
        let weights: Vec<f32> = target.chunks_exact(d_model).map(token_weight).collect();
        self.weight_sum += weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        let weights = compute.tensor(weights, [rows, 1]);
        let wanted = compute.tensor(target.to_vec(), [rows, d_model]) - before;
        let (units, wanted) = (units * weights.clone(), wanted * weights.clone());
        // The weights are square roots: once more, and sums are weighed as products are.
        add_column_sums(&mut self.unit_sum, &compute.read(units.clone() * weights.clone()).await?);
        add_column_sums(&mut self.target_sum, &compute.read(wanted.clone() * weights).await?);
        let cross = compute.read(units.clone().transpose().matmul(wanted)).await?;
        self.cross.iter_mut().zip(cross).for_each(|(sum, more)| *sum += f64::from(more));
        self.gram.add(units, compute).await
    }

    /// The sums.
    pub fn finish(self) -> PrefixStatistics {
        let Self { gram, cross, target_sum, unit_sum, weight_sum, .. } = self;
        PrefixStatistics { gram: gram.finish().0, cross, unit_sum, target_sum, weight_sum }
    }
}

/// The root of the weight of a token: `1 / ‖y‖`; 0 for a token of zeros.
fn token_weight(row: &[f32]) -> f32 {
    let energy: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
    if energy > 0.0 { energy.sqrt().recip() as f32 } else { 0.0 }
}
