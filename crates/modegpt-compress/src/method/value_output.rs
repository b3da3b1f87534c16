//! Type III, values and output: both matrices are free, so their product is truncated optimally (whitened SVD).
//!
//! For each kv head, with `C_V` the Gram matrix of its values and `W_O,j` the output maps of the heads that share it:
//!
//! ```text
//! W_V' = W_V E,   W_O,j' = F W_O,j       minimising  Σ_j ‖V W_O,j - V E F W_O,j‖²_F
//! ```
//!
//! Attention weights sum to 1 over the keys, so a value bias reaches the output as a constant. It is folded into the
//! output bias first, exactly, and the values are compressed without it:
//!
//! ```text
//! A (x W_V + b_V) W_O + b_O = A x W_V W_O + (b_O + b_V W_O)
//! ```
//!
//! Algorithm 3 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)), for shared kv heads and in the form that
//! needs head-sized matrices only.
//!
//! What the output map gets are not the values but what attention makes of them. With the Gram matrices `C_A,j` of that in
//! place of `C_V` the error is the one that really comes out of a head, and the heads that share values get a map `F_j`
//! each.

use std::ops::Range;

use faer::{Mat, MatRef};
use modegpt_architecture::{Linear, ModelConfig};
use modegpt_linalg::{Gram, factorise, top_k, value_output};

use crate::{
    Error, ErrorCurve, Layer, Methods, Module, ModuleReport, Ridges, ValueOutputMethod,
    matrices::{Place, widen},
};

/// The compressed value and output maps.
pub(crate) struct ValueOutput {
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    pub(crate) report: ModuleReport,
}

/// Reduces values to `d_v` columns a head, from 1 to the present width; at that nothing changes, and no bias is folded.
pub(crate) fn compress(layer: &Layer<'_>, d_v: usize, methods: Methods, ridges: Ridges) -> Result<ValueOutput, Error> {
    let place = Module::ValueOutput.of(layer);
    let config = layer.config;
    let (value, output) = (&layer.weights.value, &layer.weights.output);
    let d_before = layer.shape.d_v;
    if d_v == d_before {
        let report = ModuleReport::unchanged();
        return Ok(ValueOutput { value: value.clone(), output: output.clone(), report });
    }
    let (value_weight, output_weight) = (widen(&value.weight), widen(&output.weight));
    let mut new_value = Mat::zeros(config.d_model, config.n_kv_heads * d_v);
    let mut new_output = Mat::zeros(config.n_heads * d_v, config.d_model);
    let (mut error, mut energy) = (0.0, 0.0);
    let (mut condition, mut attempts) = (0.0f64, 0);
    for kv_head in 0..config.n_kv_heads {
        let group = Group::new(layer, kv_head, methods, output_weight.as_ref())?;
        let factors = group.factors(d_v).map_err(|error| place.numerics(error))?;
        let old = value_weight.subcols(kv_head * d_before, d_before);
        new_value.subcols_mut(kv_head * d_v, d_v).copy_from(old * &factors.encode);
        for (head, gram) in group.heads.clone().zip(&group.grams) {
            let fit = group.decode(gram, &factors.encode, &factors.decode, ridges);
            let (decode, jitter) = fit.map_err(|error| place.numerics(error))?;
            let old = output_weight.subrows(head * d_before, d_before);
            new_output.subrows_mut(head * d_v, d_v).copy_from(&decode * old);
            error += lost(gram, &factors.encode, &decode, (old * old.transpose()).as_ref());
            energy += trace_of_product(gram.to_mat().as_ref(), (old * old.transpose()).as_ref());
            attempts += jitter;
        }
        condition = condition.max(factors.condition);
        attempts += factors.attempts;
    }
    Ok(ValueOutput {
        value: Linear {
            weight: place.round("value", new_value.as_ref())?,
            bias: value.bias.as_ref().map(|_| vec![0.0; config.n_kv_heads * d_v]),
        },
        output: Linear {
            weight: place.round("output", new_output.as_ref())?,
            bias: folded_bias(place, config, value, output)?,
        },
        report: ModuleReport::new(error, energy).with_condition(condition).with_fallbacks(attempts),
    })
}

/// What value and output would lose at each of `widths`.
pub(crate) fn curve(
    layer: &Layer<'_>,
    widths: &[usize],
    methods: Methods,
    ridges: Ridges,
) -> Result<ErrorCurve, Error> {
    let place = Module::ValueOutput.of(layer);
    let output_weight = widen(&layer.weights.output.weight);
    let mut errors = vec![0.0; widths.len()];
    for kv_head in 0..layer.config.n_kv_heads {
        let group = Group::new(layer, kv_head, methods, output_weight.as_ref())?;
        for (error, &width) in errors.iter_mut().zip(widths).filter(|(_, width)| **width < layer.shape.d_v) {
            let factors = group.factors(width).map_err(|error| place.numerics(error))?;
            for (gram, output_gram) in group.grams.iter().zip(&group.output_grams) {
                let fit = group.decode(gram, &factors.encode, &factors.decode, ridges);
                let (decode, _) = fit.map_err(|error| place.numerics(error))?;
                *error += lost(gram, &factors.encode, &decode, output_gram.as_ref());
            }
        }
    }
    let n_tokens = layer.statistics.n_tokens;
    let errors = errors.into_iter().map(|error| layer.per_token(error, n_tokens)).collect();
    Ok(ErrorCurve { widths: widths.to_vec(), errors })
}

/// A kv head and the query heads that share it.
struct Group {
    heads: Range<usize>,
    /// For each head the Gram matrix of what its output map gets.
    grams: Vec<Gram>,
    /// For each head `W_O,j M W_O,jᵀ` with the metric `M` of the output.
    output_grams: Vec<Mat<f64>>,
    /// Whether heads differ in what they deliver, so that each gets an output map of its own.
    refits: bool,
    /// Of each coordinate, where coordinates are kept by score as they are.
    scores: Option<Vec<f64>>,
    n_tokens: u64,
}

/// What stands between values and output, `E` and `F`.
struct ValueFactors {
    encode: Mat<f64>,
    decode: Mat<f64>,
    condition: f64,
    attempts: u32,
}

impl ValueFactors {
    /// The coordinates `kept` of `dim`.
    fn selection(kept: &[usize], dim: usize) -> Self {
        let encode = Mat::from_fn(dim, kept.len(), |row, col| f64::from(u8::from(kept[col] == row)));
        let decode = encode.transpose().to_owned();
        // Nothing is factorised, so that there is no condition to speak of.
        Self { encode, decode, condition: f64::INFINITY, attempts: 0 }
    }
}

impl Group {
    fn new(layer: &Layer<'_>, kv_head: usize, methods: Methods, output_weight: MatRef<'_, f64>) -> Result<Self, Error> {
        let size = layer.config.group_size();
        let heads = kv_head * size..(kv_head + 1) * size;
        let statistics = layer.statistics;
        let grams = match methods.value_output {
            ValueOutputMethod::Values => vec![statistics.value[kv_head].clone(); size],
            _ if statistics.attention_output.is_empty() => {
                let expected = "one for each query head";
                let found = "statistics collected without it";
                return Err(Module::ValueOutput.of(layer).mismatch("statistic `attention_output`", expected, found));
            }
            _ => statistics.attention_output[heads.clone()].to_vec(),
        };
        let metric = match methods.value_output {
            ValueOutputMethod::Values => None,
            _ => layer.attention_metric().map(Gram::to_mat),
        };
        let d_v = layer.shape.d_v;
        let output_gram = |head: usize| {
            let output = output_weight.subrows(head * d_v, d_v);
            match &metric {
                Some(metric) => output * metric * output.transpose(),
                None => output * output.transpose(),
            }
        };
        let output_grams = heads.clone().map(output_gram).collect();
        let refits = methods.value_output == ValueOutputMethod::Attention && size > 1;
        let scores = methods.value_output.score().map(|score| score.of_value_output(layer)).transpose()?;
        let scores = scores.map(|mut scores| scores.swap_remove(kv_head));
        Ok(Self { heads, grams, output_grams, refits, scores, n_tokens: statistics.n_tokens })
    }

    /// The map `F_j` of a head, and how often a factorisation was repeated for it.
    fn decode(
        &self,
        gram: &Gram,
        encode: &Mat<f64>,
        decode: &Mat<f64>,
        ridges: Ridges,
    ) -> Result<(Mat<f64>, u32), modegpt_linalg::Error> {
        if self.refits {
            decode_of_head(gram, encode, decode, ridges.refit_of(encode.ncols(), self.n_tokens))
        } else {
            Ok((decode.clone(), 0))
        }
    }

    /// The common factors: optimal if all heads of the group had the same Gram matrix, the mean of theirs.
    fn factors(&self, rank: usize) -> Result<ValueFactors, modegpt_linalg::Error> {
        if let Some(scores) = &self.scores {
            return Ok(ValueFactors::selection(&top_k(scores, rank), scores.len()));
        }
        let mut gram = Gram::zeros(self.grams[0].dim());
        for head in &self.grams {
            gram.add(head)?;
        }
        if gram.is_zero() {
            // Values that never are anything: any directions lose nothing, and those that the output maps heed most are as
            // good as others.
            gram = identity(gram.dim())?;
        }
        let mut output_gram = Mat::zeros(gram.dim(), gram.dim());
        for head in &self.output_grams {
            output_gram += head;
        }
        let best = value_output(&gram, output_gram.as_ref(), rank)?;
        let (condition, attempts) = (best.condition, best.jitter.attempts);
        Ok(ValueFactors { encode: best.encode, decode: best.decode, condition, attempts })
    }
}

fn identity(dim: usize) -> Result<Gram, modegpt_linalg::Error> {
    let packed = (0..dim).flat_map(|row| (0..=row).map(move |col| f64::from(u8::from(row == col)))).collect();
    Gram::from_packed_lower(dim, packed)
}

/// The best `F` of one head with Gram matrix `C` for the common `E`:
///
/// ```text
/// F_j = F + (Eᵀ C E + δI)⁻¹ Eᵀ C (I - E F)        minimises ‖A_j - A_j E F_j‖² + δ ‖F_j - F‖²
/// ```
///
/// which is `F` itself if the head is alone. Also tells how often a factorisation was repeated.
fn decode_of_head(
    gram: &Gram,
    encode: &Mat<f64>,
    decode: &Mat<f64>,
    relative_ridge: f64,
) -> Result<(Mat<f64>, u32), modegpt_linalg::Error> {
    let gram = gram.to_mat();
    let seen = encode.transpose() * &gram; // [k, d]
    let inner = &seen * encode;
    if inner.norm_max() == 0.0 {
        // A head that never delivers anything has nothing to refit.
        return Ok((decode.clone(), 0));
    }
    let rest = &seen - &inner * decode;
    let cholesky = factorise(inner.as_ref(), relative_ridge)?;
    Ok((decode + cholesky.solve(rest.as_ref()), cholesky.jitter().attempts))
}

/// `tr(Dᵀ C D G)` with `D = I - E F`: the squared error of the output of one head.
fn lost(gram: &Gram, encode: &Mat<f64>, decode: &Mat<f64>, output_gram: MatRef<'_, f64>) -> f64 {
    let dim = gram.dim();
    let rest = Mat::<f64>::identity(dim, dim) - encode * decode;
    let inner = rest.transpose() * gram.to_mat() * &rest;
    trace_of_product(inner.as_ref(), output_gram)
}

/// `tr(A B)` of symmetric matrices.
fn trace_of_product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    a.col_iter().zip(b.col_iter()).map(|(a, b)| a.transpose() * b).sum()
}

/// The output bias that takes over the value bias: `b_O + Σ_j b_V,g(j) W_O,j` over heads `j` with kv head `g(j)`.
///
/// # Errors
/// [`Error::NoOutputBias`] if there is a value bias, not all zero, and no output bias to take it.
fn folded_bias(place: Place, config: &ModelConfig, value: &Linear, output: &Linear) -> Result<Option<Vec<f32>>, Error> {
    let Some(value_bias) = value.bias.as_ref().filter(|bias| bias.iter().any(|&b| b != 0.0)) else {
        return Ok(output.bias.clone());
    };
    let Some(output_bias) = &output.bias else { return Err(Error::NoOutputBias { layer: place.layer }) };
    let mut folded: Vec<f64> = output_bias.iter().copied().map(f64::from).collect();
    for (row, bias) in spread_value_bias(config, value_bias).into_iter().enumerate() {
        for (sum, &weight) in folded.iter_mut().zip(output.weight.row(row)) {
            *sum += bias * f64::from(weight);
        }
    }
    let folded: Vec<f32> = folded.into_iter().map(|bias| bias as f32).collect();
    place.check_finite("output.bias", &folded)?;
    Ok(Some(folded))
}

/// The value bias that reaches every row of the output map, heads that share values each on their own.
pub(crate) fn spread_value_bias(config: &ModelConfig, value_bias: &[f32]) -> Vec<f64> {
    let d_v = value_bias.len() / config.n_kv_heads;
    let of_head = |head: usize| &value_bias[head / config.group_size() * d_v..][..d_v];
    (0..config.n_heads).flat_map(of_head).copied().map(f64::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use modegpt_architecture::LayerWeights;

    use crate::testing::{Random, TinyModel, assert_close, attend, forward, gram_of, layer, statistics};

    const PLACE: Place = Place { layer: 4, module: Module::ValueOutput };

    /// The paper's method.
    fn truncated(
        config: &ModelConfig,
        weights: &LayerWeights,
        value_grams: &[Gram],
        d_v: usize,
    ) -> Result<ValueOutput, Error> {
        let mut seen = statistics(config, weights, Random::new(9).mat(4, config.d_model).as_ref());
        seen.value = value_grams.to_vec();
        compress(&layer(4, config, weights, &seen), d_v, Methods::PAPER, Ridges::default())
    }

    /// Causal attention weights: rows are positive up to the diagonal and sum to 1.
    fn random_attention(random: &mut Random, n_heads: usize, n_tokens: usize) -> Vec<Mat<f64>> {
        let head = |_| {
            let scores = random.mat(n_tokens, n_tokens);
            let weight = |row: usize, col: usize| if col <= row { scores[(row, col)].exp() } else { 0.0 };
            Mat::from_fn(n_tokens, n_tokens, |row, col| {
                weight(row, col) / (0..n_tokens).map(|other| weight(row, other)).sum::<f64>()
            })
        };
        (0..n_heads).map(head).collect()
    }

    fn value_grams(config: &ModelConfig, value: &Linear, x: MatRef<'_, f64>) -> Vec<Gram> {
        let values = forward(value, x, false);
        let d_v = values.ncols() / config.n_kv_heads;
        (0..config.n_kv_heads).map(|head| gram_of(values.subcols(head * d_v, d_v))).collect()
    }

    #[test]
    fn folding_the_bias_changes_no_output() {
        for n_kv_heads in [1, 2, 4] {
            let model = TinyModel { n_kv_heads, biases: true, ..TinyModel::default() };
            let (config, weights) = (model.config(), model.weights(1));
            let mut random = Random::new(2);
            let (x, attention) = (random.mat(20, model.d_model), random_attention(&mut random, model.n_heads, 20));
            let exact = attend(&config, &attention, &weights.value, &weights.output, x.as_ref());

            let value = Linear { bias: None, ..weights.value.clone() };
            let bias = folded_bias(PLACE, &config, &weights.value, &weights.output).expect("an output bias");
            let without = attend(&config, &attention, &value, &weights.output, x.as_ref());
            let folded = attend(&config, &attention, &value, &Linear { bias, ..weights.output.clone() }, x.as_ref());
            assert_close(folded.as_ref(), exact.as_ref(), 1e-6);
            assert!((without - &exact).norm_max() > 0.1 * exact.norm_max(), "the bias matters");
        }
    }

    /// Values of rank 3 are kept exactly by 3 columns, bias and all, whatever attention does with them.
    #[test]
    fn values_of_low_rank_are_kept_exactly() {
        for model in [TinyModel::opt(), TinyModel { biases: true, ..TinyModel::llama() }, TinyModel::llama()] {
            let (config, mut weights) = (model.config(), model.weights(3));
            let mut random = Random::new(4);
            let few = random.mat(model.d_model, 3 * model.n_kv_heads);
            let mut low_rank = Mat::zeros(model.d_model, 8 * model.n_kv_heads);
            for head in 0..model.n_kv_heads {
                low_rank.subcols_mut(head * 8, 8).copy_from(few.subcols(head * 3, 3) * random.mat(3, 8));
            }
            weights.value.weight = PLACE.round("value", low_rank.as_ref()).expect("finite");
            let (x, attention) = (random.mat(50, model.d_model), random_attention(&mut random, model.n_heads, 50));
            let grams = value_grams(&config, &weights.value, x.as_ref());
            let compressed = truncated(&config, &weights, &grams, 3).expect("fine");

            let exact = attend(&config, &attention, &weights.value, &weights.output, x.as_ref());
            let found = attend(&config, &attention, &compressed.value, &compressed.output, x.as_ref());
            assert_close(found.as_ref(), exact.as_ref(), 1e-5);
            assert!(compressed.report.relative_error < 1e-10, "{:?}", compressed.report);
            assert_eq!(compressed.value.bias, model.biases.then(|| vec![0.0; 3 * model.n_kv_heads]));
        }
    }

    #[test]
    fn error_is_that_of_the_values_through_the_output_maps() {
        let model = TinyModel::llama();
        let (config, weights) = (model.config(), model.weights(5));
        let x = Random::new(6).mat(50, model.d_model);
        let grams = value_grams(&config, &weights.value, x.as_ref());
        let mut last = 1.0;
        for d_v in 1..8 {
            let compressed = truncated(&config, &weights, &grams, d_v).expect("fine");
            let through = |value: &Linear, output: &Linear, head: usize| {
                let width = output.weight.rows / config.n_heads;
                let kv_head = head / config.group_size();
                forward(value, x.as_ref(), false).subcols(kv_head * width, width)
                    * widen(&output.weight.row_range(head * width, (head + 1) * width))
            };
            let (mut error, mut energy) = (0.0, 0.0);
            for head in 0..config.n_heads {
                let exact = through(&weights.value, &weights.output, head);
                error += (through(&compressed.value, &compressed.output, head) - &exact).squared_norm_l2();
                energy += exact.squared_norm_l2();
            }
            let found = compressed.report.relative_error;
            assert!((found - error / energy).abs() < 1e-6, "{found} instead of {}", error / energy);
            assert!(found < last, "never worse at a higher rank");
            last = found;
        }
    }

    /// With the Gram matrices of what attention delivers, the error is that of the output of attention, head by head; it is
    /// no larger than in the metric of the values, and the curve tells the same.
    #[test]
    fn attention_metric_gives_the_error_of_the_output() {
        for model in [TinyModel::llama(), TinyModel { biases: true, ..TinyModel::opt() }] {
            let (config, weights) = (model.config(), model.weights(12));
            let mut random = Random::new(13);
            let (x, attention) = (random.mat(60, model.d_model), random_attention(&mut random, model.n_heads, 60));
            let mut seen = statistics(&config, &weights, x.as_ref());
            let values = forward(&weights.value, x.as_ref(), false);
            let delivered = |value: &Mat<f64>, head: usize| {
                let width = value.ncols() / config.n_kv_heads;
                &attention[head] * value.subcols(head / config.group_size() * width, width)
            };
            seen.attention_output =
                (0..config.n_heads).map(|head| gram_of(delivered(&values, head).as_ref())).collect();
            let whole = layer(0, &config, &weights, &seen);
            let mut last = f64::INFINITY;
            for d_v in [1, 3, 5, 7] {
                let by = |method: ValueOutputMethod| {
                    let methods = Methods { value_output: method, ..Methods::BEST };
                    let small = compress(&whole, d_v, methods, Ridges::default()).expect("fine");
                    let values = forward(&small.value, x.as_ref(), false);
                    let output = |value: &Mat<f64>, map: &Linear, head: usize| {
                        let width = map.weight.rows / config.n_heads;
                        delivered(value, head) * widen(&map.weight.row_range(head * width, (head + 1) * width))
                    };
                    let exact = |head| output(&forward(&weights.value, x.as_ref(), false), &weights.output, head);
                    let lost = |head| (output(&values, &small.output, head) - exact(head)).squared_norm_l2();
                    let error: f64 = (0..config.n_heads).map(lost).sum();
                    let energy: f64 = (0..config.n_heads).map(|head| exact(head).squared_norm_l2()).sum();
                    (error, energy, small.report.relative_error)
                };
                let (error, energy, reported) = by(ValueOutputMethod::Attention);
                assert!((reported - error / energy).abs() < 1e-5 * reported, "{reported} not {}", error / energy);
                assert!(error <= by(ValueOutputMethod::Values).0 * (1.0 + 1e-6) && error < last);
                last = error;
                let curve = curve(&whole, &[d_v, 8], Methods::BEST, Ridges::default()).expect("fine");
                let told = error / 60.0 / seen.residual_energy();
                assert!((curve.errors[0] - told).abs() < 1e-5 * told && curve.errors[1] == 0.0, "{curve:?} {told}");
            }
        }
    }

    #[test]
    fn full_width_changes_nothing() {
        let model = TinyModel::opt();
        let (config, weights) = (model.config(), model.weights(7));
        let grams = value_grams(&config, &weights.value, Random::new(8).mat(9, model.d_model).as_ref());
        let same = truncated(&config, &weights, &grams, 8).expect("nothing to do");
        assert_eq!((same.value, same.output), (weights.value, weights.output));
        assert_eq!(same.report, ModuleReport::unchanged());
    }

    #[test]
    fn a_value_bias_without_an_output_bias_is_refused_unless_it_is_zero() {
        let model = TinyModel { biases: true, ..TinyModel::default() };
        let (config, mut weights) = (model.config(), model.weights(9));
        weights.output.bias = None;
        let grams = value_grams(&config, &weights.value, Random::new(10).mat(30, model.d_model).as_ref());
        let message = truncated(&config, &weights, &grams, 4).err().expect("nowhere to fold").to_string();
        assert_eq!(message, "layer 4, value-output: the value bias cannot be folded, the output map has no bias");
        weights.value.bias = Some(vec![0.0; 16]);
        let compressed = truncated(&config, &weights, &grams, 4).expect("nothing to fold");
        assert_eq!((compressed.output.bias, compressed.value.bias), (None, Some(vec![0.0; 8])));
    }

    #[test]
    fn values_that_are_never_anything_but_zero_cost_nothing() {
        let model = TinyModel::llama();
        let (config, weights) = (model.config(), model.weights(11));
        let x = Random::new(12).mat(40, model.d_model);
        let mut grams = value_grams(&config, &weights.value, x.as_ref());
        let both = truncated(&config, &weights, &grams, 4).expect("fine").report;
        grams[1] = Gram::zeros(8);
        let one = truncated(&config, &weights, &grams, 4).expect("the other says enough");
        assert!(one.report.relative_error > 0.0 && one.report.fallbacks == both.fallbacks, "{:?}", one.report);
        let none = truncated(&config, &weights, &[Gram::zeros(8), Gram::zeros(8)], 4).expect("nothing to lose");
        assert_eq!((none.report.relative_error, none.report.fallbacks), (0.0, 0));
        let mut seen = statistics(&config, &weights, x.as_ref());
        seen.attention_output = vec![Gram::zeros(8); config.n_heads];
        let curve = curve(&layer(0, &config, &weights, &seen), &[2, 4, 8], Methods::BEST, Ridges::default());
        assert_eq!(curve.expect("nothing to lose").errors, [0.0; 3]);
    }
}
