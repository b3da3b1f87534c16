//! What the layers before a compressed one have done to its input, and how its own maps can make it good.
//!
//! Errors of compressed layers add up. Both halves of a layer end in a linear map that adds to the residual stream: with
//! `x̂` the stream that the compressed layers before really produce, `z` what enters that map in the compressed layer, and
//! `y` the stream that is wanted behind the half, the map is to carry
//!
//! ```text
//! z W + b ≈ y - x̂        minimising Σ_t c_t ‖y_t - x̂_t - z_t W - b‖² / ‖y_t‖²
//! ```
//!
//! A token counts `c_t` times, over the energy of the stream there, because what follows sees it normalised: without that a
//! few tokens of enormous activation would decide everything. What is wanted, whoever adds the batches decides.

use burn::tensor::Tensor;
use modegpt_model::{Block, Compute, ComputeError, Half, Point, Probe};
use modegpt_statistics::PrefixStatistics;

use crate::activation_gram::{ActivationGram, GramPath};

/// [`PrefixStatistics`] while the batches come in.
pub struct PrefixAccumulator {
    path: GramPath,
    gram: ActivationGram,
    cross: Vec<f64>,
    target_sum: Vec<f64>,
    unit_sum: Vec<f64>,
    weight_sum: f64,
}

/// Keeps what enters the last map of a half of a block.
struct UnitsProbe {
    point: Point,
    units: Option<Tensor<2>>,
}

impl Probe for UnitsProbe {
    fn pass(&mut self, point: Point, x: Tensor<2>) -> Tensor<2> {
        if point == self.point {
            self.units = Some(x.clone());
        }
        x
    }
}

/// Applies a half of a block to a stream, `[samples, tokens, d_model]`: the stream behind it, and what entered the last map,
/// `[samples * tokens, k]`.
pub fn forward_with_units(block: &Block, half: Half, x: Tensor<3>) -> (Tensor<3>, Tensor<2>) {
    let point = match half {
        Half::Attention => Point::OutputInput,
        Half::Mlp => Point::Hidden,
    };
    let mut probe = UnitsProbe { point, units: None };
    let after = block.probe_half(half, x, &mut probe);
    let Some(units) = probe.units else { unreachable!("every half has a last map") };
    (after, units)
}

impl PrefixAccumulator {
    /// The sums over no tokens, for a map from `k` units to `d_model`.
    pub fn new(k: usize, d_model: usize, path: GramPath) -> Self {
        Self {
            path,
            gram: ActivationGram::new(k, path),
            cross: vec![0.0; k * d_model],
            target_sum: vec![0.0; d_model],
            unit_sum: vec![0.0; k],
            weight_sum: 0.0,
        }
    }

    /// Adds a batch: the stream of the compressed model `before` the half, `units` that enter its last map, `[rows, k]`, and
    /// the stream that is `wanted` behind it. Streams are `[samples, tokens, d_model]`. `counts` says for how many tokens each
    /// counts, `[rows]`; for one if `None`.
    ///
    /// # Errors
    /// [`ComputeError::Device`] if the device fails.
    pub async fn add(
        &mut self,
        before: Tensor<3>,
        units: Tensor<2>,
        wanted: Tensor<3>,
        counts: Option<&[f32]>,
        compute: &Compute,
    ) -> Result<(), ComputeError> {
        let [samples, tokens, d_model] = wanted.dims();
        let shape = [samples * tokens, d_model];
        let (before, wanted) = (before.reshape(shape), wanted.reshape(shape));
        // Roots of the weights of tokens: `√count / ‖y‖`, 0 for a token of zeros.
        let energies = (wanted.clone() * wanted.clone()).sum_dim(1);
        let is_zero = energies.clone().equal_elem(0.0);
        let mut weights = energies.sqrt().recip().mask_fill(is_zero, 0.0);
        if let Some(counts) = counts {
            let roots = counts.iter().map(|count| count.sqrt()).collect();
            weights = weights * compute.tensor(roots, [samples * tokens, 1]);
        }
        let weight_of = |root: f32| f64::from(root).powi(2);
        self.weight_sum += compute.read(weights.clone()).await?.into_iter().map(weight_of).sum::<f64>();
        let (units, target) = (units * weights.clone(), (wanted - before) * weights.clone());
        // The weights are roots: the product with another one is weighed as products of units are.
        let add =
            |sums: &mut [f64], more: Vec<f32>| sums.iter_mut().zip(more).for_each(|(sum, x)| *sum += f64::from(x));
        let product = |left: &Tensor<2>, right: &Tensor<2>| self.path.product(left.clone(), right.clone());
        add(&mut self.target_sum, compute.read(product(&weights, &target)).await?);
        add(&mut self.unit_sum, compute.read(product(&weights, &units)).await?);
        add(&mut self.cross, compute.read(product(&units, &target)).await?);
        self.gram.add(units, compute).await
    }

    /// The sums.
    pub fn finish(self) -> PrefixStatistics {
        let Self { gram, cross, target_sum, unit_sum, weight_sum, .. } = self;
        PrefixStatistics { gram: gram.finish().0, cross, unit_sum, target_sum, weight_sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of products by their definition, in f64, over batches of two samples and one, the second with counts; one token of
    /// the batches is all zeros.
    #[test]
    fn sums_are_weighed_by_counts_and_the_energy_of_what_is_wanted() {
        let (tokens, k, d_model) = (3, 4, 5);
        let mut state = 11_u64;
        let mut random = |n: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..n).map(|_| next()).collect()
        };
        let compute = Compute::host();
        let mut sums = PrefixAccumulator::new(k, d_model, GramPath::Host);
        let (mut gram, mut cross) = (vec![0.0; k * k], vec![0.0; k * d_model]);
        let (mut unit_sum, mut target_sum, mut weight_sum) = (vec![0.0; k], vec![0.0; d_model], 0.0);
        for (samples, counts) in [(2, None), (1, Some([1.0, 3.0, 0.5]))] {
            let rows = samples * tokens;
            let (before, units, mut wanted) = (random(rows * d_model), random(rows * k), random(rows * d_model));
            wanted[..d_model].fill(0.0);
            for row in 0..rows {
                let of = |values: &[f32], width: usize| -> Vec<f64> {
                    values[row * width..][..width].iter().map(|value| f64::from(*value)).collect()
                };
                let (x, z, y) = (of(&before, d_model), of(&units, k), of(&wanted, d_model));
                let energy: f64 = y.iter().map(|value| value * value).sum();
                let count = counts.map_or(1.0, |counts| f64::from(counts[row]));
                let weight = if energy > 0.0 { count / energy } else { 0.0 };
                weight_sum += weight;
                for i in 0..k {
                    unit_sum[i] += weight * z[i];
                    (0..k).for_each(|j| gram[i * k + j] += weight * z[i] * z[j]);
                    (0..d_model).for_each(|j| cross[i * d_model + j] += weight * z[i] * (y[j] - x[j]));
                }
                (0..d_model).for_each(|j| target_sum[j] += weight * (y[j] - x[j]));
            }
            let shape = [samples, tokens, d_model];
            let [before, wanted] = [before, wanted].map(|values| compute.tensor(values, shape));
            let counts = counts.as_ref().map(|counts| &counts[..]);
            let added = sums.add(before, compute.tensor(units, [rows, k]), wanted, counts, &compute);
            pollster::block_on(added).expect("adds");
        }
        let found = sums.finish();
        let found_gram: Vec<f64> = (0..k * k).map(|at| found.gram.get(at / k, at % k)).collect();
        let pairs = [
            (&found_gram, &gram),
            (&found.cross, &cross),
            (&found.unit_sum, &unit_sum),
            (&found.target_sum, &target_sum),
            (&vec![found.weight_sum], &vec![weight_sum]),
        ];
        for (found, expected) in pairs {
            let scale = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
            let is_near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * scale;
            assert!(scale > 0.0 && found.iter().zip(expected).all(is_near), "{found:?}, expected {expected:?}");
        }
    }
}
