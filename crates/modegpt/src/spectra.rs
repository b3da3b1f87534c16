//! Singular values of a layer's matrices, and what they say of how far each could be truncated.

use std::ops::Range;

use faer::Mat;
use modegpt_architecture::{Factors, LayerWeights, Matrix, ModelConfig, Weight};
use modegpt_linalg::{Error, singular_values};
use serde::Serialize;

/// The spectrum of one matrix, in f64, with `s_1 ≥ s_2 ≥ …` its singular values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spectrum {
    /// Which matrix, such as `up`, or `value·output` for a product.
    pub matrix: &'static str,
    /// For products of a head's matrices: which kv head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_head: Option<usize>,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// `s_1`
    pub largest: f64,
    /// `Σ s_i² / s_1²`
    pub stable_rank: f64,
    /// `exp(-Σ p_i ln p_i)` with `p_i = s_i² / Σ s²`
    pub effective_rank: f64,
    /// The fewest singular values that hold 90 % of `Σ s²`.
    pub rank_90: usize,
    /// The fewest singular values that hold 99 % of `Σ s²`.
    pub rank_99: usize,
    /// All of them, descending.
    pub singular_values: Vec<f64>,
}

impl Spectrum {
    /// `shape` is that of the matrix; `values` are its singular values, descending. A matrix of zeros has rank 0.
    fn new(matrix: &'static str, kv_head: Option<usize>, (rows, cols): (usize, usize), values: &[f64]) -> Self {
        let largest = values.first().copied().unwrap_or(0.0);
        // Relative to the largest, so that no square overflows or vanishes.
        let energies: Vec<f64> =
            values.iter().map(|s| if largest > 0.0 { (s / largest).powi(2) } else { 0.0 }).collect();
        let total: f64 = energies.iter().sum();
        Self {
            matrix,
            kv_head,
            rows,
            cols,
            largest,
            stable_rank: total,
            effective_rank: effective_rank(&energies, total),
            rank_90: rank_holding(&energies, 0.90 * total),
            rank_99: rank_holding(&energies, 0.99 * total),
            singular_values: values.to_vec(),
        }
    }

    /// The spectrum as a row of `width` blocks, each the largest value of its part relative to `s_1`.
    pub fn sparkline(&self, width: usize) -> String {
        const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let n = self.singular_values.len();
        let width = width.min(n);
        let level = |part: usize| {
            let share = self.singular_values[part * n / width] / self.largest;
            LEVELS[((share * 8.0) as usize).min(7)]
        };
        (0..width).map(level).collect()
    }
}

/// Every matrix of the block by itself, then for each kv head the product of its values and outputs.
///
/// # Errors
/// [`Error`] if a weight is not finite.
pub fn weight_spectra(config: &ModelConfig, weights: &LayerWeights<Weight>) -> Result<Vec<Spectrum>, Error> {
    let mut spectra = Vec::new();
    each_weight_spectrum(config, weights, |spectrum| spectra.push(spectrum))?;
    Ok(spectra)
}

/// Gives `found` the spectra of [`weight_spectra`] one after the other: those of a large layer take minutes.
///
/// # Errors
/// [`Error`] if a weight is not finite.
pub fn each_weight_spectrum(
    config: &ModelConfig,
    weights: &LayerWeights<Weight>,
    mut found: impl FnMut(Spectrum),
) -> Result<(), Error> {
    for (name, linear) in weights.linears() {
        let values = match &linear.weight {
            Weight::Dense(matrix) => singular_values(widen(matrix).as_ref())?,
            Weight::Factorised(Factors { a, b }) => singular_values(core(&widen(a), &widen(b)).as_ref())?,
        };
        found(Spectrum::new(name, None, (linear.weight.d_in(), linear.weight.d_out()), &values));
    }
    for kv_head in 0..config.n_kv_heads {
        found(value_output(config, weights, kv_head)?);
    }
    Ok(())
}

/// A matrix no larger than the rank of `a b` with the same singular values, apart from zeros.
///
/// ```text
/// a = Q R,  bᵀ = P S:   a b = Q R Sᵀ Pᵀ
/// ```
fn core(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    let (a, b) = (a.qr(), b.transpose().to_owned().qr());
    a.thin_R() * b.thin_R().transpose()
}

/// The spectrum of `W_V [W_O,1 … W_O,g]`, the outputs of all query heads that share the values side by side.
///
/// It has as many values as a head has, however large the product.
fn value_output(config: &ModelConfig, weights: &LayerWeights<Weight>, kv_head: usize) -> Result<Spectrum, Error> {
    let (group, d_model) = (config.group_size(), config.d_model);
    let d_v = weights.value.weight.d_out() / config.n_kv_heads;
    let value = columns(&weights.value.weight, kv_head * d_v..(kv_head + 1) * d_v);
    let first_row = kv_head * group * d_v;
    let output = rows(&weights.output.weight, first_row..first_row + group * d_v);
    let side_by_side =
        Mat::from_fn(d_v, group * d_model, |row, column| output[(column / d_model * d_v + row, column % d_model)]);
    let values = singular_values(core(&value, &side_by_side).as_ref())?;
    Ok(Spectrum::new("value·output", Some(kv_head), (d_model, group * d_model), &values))
}

/// Some columns of a weight, multiplied out.
fn columns(weight: &Weight, range: Range<usize>) -> Mat<f64> {
    match weight {
        Weight::Dense(matrix) => widen(&matrix.column_range(range.start, range.end)),
        Weight::Factorised(Factors { a, b }) => widen(a) * widen(&b.column_range(range.start, range.end)),
    }
}

/// Some rows of a weight, multiplied out.
fn rows(weight: &Weight, range: Range<usize>) -> Mat<f64> {
    match weight {
        Weight::Dense(matrix) => widen(&matrix.row_range(range.start, range.end)),
        Weight::Factorised(Factors { a, b }) => widen(&a.row_range(range.start, range.end)) * widen(b),
    }
}

fn widen(matrix: &Matrix) -> Mat<f64> {
    Mat::from_fn(matrix.rows, matrix.cols, |row, col| f64::from(matrix.row(row)[col]))
}

/// `exp` of the entropy of the energies; 0 if there are none.
fn effective_rank(energies: &[f64], total: f64) -> f64 {
    if total == 0.0 {
        return 0.0;
    }
    let shares = energies.iter().map(|energy| energy / total).filter(|share| *share > 0.0);
    (-shares.map(|share| share * share.ln()).sum::<f64>()).exp()
}

/// How many of the leading energies reach `wanted`.
fn rank_holding(energies: &[f64], wanted: f64) -> usize {
    let mut held = 0.0;
    energies.iter().take_while(|energy| (held < wanted).then(|| held += **energy).is_some()).count()
}

#[cfg(test)]
mod tests {
    use modegpt_architecture::{Linear, NormWeights};

    use super::*;

    fn spectrum(values: &[f64]) -> Spectrum {
        Spectrum::new("up", None, (values.len(), values.len()), values)
    }

    #[test]
    fn equal_values_are_of_full_rank_by_every_measure() {
        let found = spectrum(&[3.0; 10]);
        assert_eq!((found.largest, found.stable_rank), (3.0, 10.0));
        assert!((found.effective_rank - 10.0).abs() < 1e-12);
        assert_eq!((found.rank_90, found.rank_99), (9, 10));
        assert_eq!(found.sparkline(5), "█████");
    }

    #[test]
    fn one_value_is_of_rank_one_and_none_of_rank_zero() {
        let found = spectrum(&[2.0, 0.0, 0.0]);
        assert_eq!((found.stable_rank, found.effective_rank, found.rank_90, found.rank_99), (1.0, 1.0, 1, 1));
        assert_eq!(found.sparkline(9), "█▁▁");
        let none = spectrum(&[0.0, 0.0]);
        assert_eq!((none.stable_rank, none.effective_rank, none.rank_90, none.rank_99), (0.0, 0.0, 0, 0));
        assert_eq!(none.sparkline(9), "▁▁");
    }

    #[test]
    fn huge_and_tiny_values_have_ranks() {
        for scale in [1e-300, 1e300] {
            let found = spectrum(&[2.0 * scale, scale]);
            assert_eq!((found.stable_rank, found.rank_90, found.rank_99), (1.25, 2, 2));
        }
    }

    fn config() -> ModelConfig {
        ModelConfig::from_json(&serde_json::json!({
            "model_type": "llama", "vocab_size": 16, "hidden_size": 12, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
            "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        }))
        .expect("a valid configuration")
    }

    /// Heads of width 3, as after compression.
    fn weights() -> LayerWeights {
        let mut state = 1u32;
        let mut linear = |rows: usize, cols: usize| {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 16_777_216.0 - 0.5
            };
            Linear { weight: Matrix::new(rows, cols, (0..rows * cols).map(|_| next()).collect()), bias: None }
        };
        let norm = || NormWeights { weight: None, bias: None };
        LayerWeights {
            attention_norm: norm(),
            query: linear(12, 12),
            key: linear(12, 6),
            value: linear(12, 6),
            output: linear(12, 12),
            mlp_norm: norm(),
            gate: Some(linear(12, 8)),
            up: linear(12, 8),
            down: linear(8, 12),
        }
    }

    /// The small product has the singular values of the large one, head by head.
    #[test]
    fn value_output_spectrum_is_that_of_the_whole_product() {
        let (config, weights) = (config(), weights());
        let spectra = weight_spectra(&config, &weights.clone().into()).expect("finite weights");
        let names: Vec<_> = spectra.iter().map(|spectrum| spectrum.matrix).collect();
        let products = ["value·output"; 2];
        assert_eq!(names, [&["query", "key", "value", "output", "gate", "up", "down"][..], &products].concat());
        for kv_head in 0..2 {
            let value = widen(&weights.value.weight.column_range(kv_head * 3, kv_head * 3 + 3));
            let mut whole = Mat::zeros(12, 24);
            for place in 0..2 {
                let first = (kv_head * 2 + place) * 3;
                let output = widen(&weights.output.weight.row_range(first, first + 3));
                whole.subcols_mut(place * 12, 12).copy_from(&value * &output);
            }
            let expected = singular_values(whole.as_ref()).expect("finite");
            let found = &spectra[7 + kv_head];
            assert_eq!((found.kv_head, found.singular_values.len()), (Some(kv_head), 3));
            for (found, expected) in found.singular_values.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5 * expected, "{found} instead of {expected}");
            }
        }
    }

    /// A product has the spectrum of the matrix that it is, with as many values as its rank.
    #[test]
    fn factorised_maps_have_the_spectra_of_their_products() {
        let (config, dense) = (config(), weights());
        let multiplied = |a: &Matrix, b: &Matrix| {
            let product = widen(a) * widen(b);
            let data = (0..a.rows).flat_map(|r| (0..b.cols).map(move |c| (r, c))).map(|at| product[at] as f32);
            Matrix::new(a.rows, b.cols, data.collect())
        };
        let mut factorised: LayerWeights<Weight> = dense.clone().into();
        let mut product = dense.clone();
        for (name, rank) in [("value", 5), ("output", 4), ("up", 2)] {
            let (a, b) = (dense.query.weight.column_range(0, rank), dense.output.weight.row_range(3, 3 + rank));
            let cols = if name == "value" {
                6
            } else if name == "up" {
                8
            } else {
                12
            };
            let b = b.column_range(0, cols);
            let (linear, target) = match name {
                "value" => (&mut factorised.value, &mut product.value),
                "output" => (&mut factorised.output, &mut product.output),
                _ => (&mut factorised.up, &mut product.up),
            };
            target.weight = multiplied(&a, &b);
            linear.weight = Weight::Factorised(Factors { a, b });
        }
        let found = weight_spectra(&config, &factorised).expect("finite weights");
        let expected = weight_spectra(&config, &product.into()).expect("finite weights");
        let lengths: Vec<_> = found.iter().map(|spectrum| spectrum.singular_values.len()).collect();
        assert_eq!(lengths, [12, 6, 5, 4, 8, 2, 8, 3, 3]);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.matrix, found.rows, found.cols), (expected.matrix, expected.rows, expected.cols));
            for (place, value) in expected.singular_values.iter().enumerate() {
                let other = found.singular_values.get(place).copied().unwrap_or(0.0);
                assert!((other - value).abs() < 1e-5 * expected.largest, "{}: {other}, {value}", found.matrix);
            }
        }
    }
}
