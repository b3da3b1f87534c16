//! Tiny random models and the data that flows through them, for the unit tests.

use faer::{Mat, MatRef};
use modegpt_architecture::{
    Activation, FactorRanks, Family, LayerShape, LayerWeights, Linear, Matrix, MlpKind, ModelConfig, Norm,
    NormPlacement, NormWeights, Positions, SpecialTokens,
};
use modegpt_linalg::Gram;
use modegpt_statistics::{InputGrams, InputMagnitudes, LayerStatistics};

use crate::{Layer, LayerPlan, matrices::widen};

/// A `SplitMix64` generator: a few lines, and the same numbers everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// A matrix of numbers that are about normal, each exactly an `f32`.
    pub(crate) fn mat(&mut self, rows: usize, cols: usize) -> Mat<f64> {
        Mat::from_fn(rows, cols, |_, _| {
            let sum: f64 = (0..12).map(|_| self.uniform()).sum();
            f64::from((sum - 6.0) as f32)
        })
    }

    fn linear(&mut self, d_in: usize, d_out: usize, bias: bool) -> Linear {
        let scale = (d_in as f64).sqrt().recip();
        let weight = narrow((self.mat(d_in, d_out) * faer::Scale(scale)).as_ref());
        Linear { weight, bias: bias.then(|| narrow(self.mat(1, d_out).as_ref()).data) }
    }
}

/// The sizes of a random model; all its layers are alike.
#[derive(Clone, Copy)]
pub(crate) struct TinyModel {
    pub(crate) n_layers: usize,
    pub(crate) d_model: usize,
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) d_head: usize,
    pub(crate) d_ff: usize,
    pub(crate) rotary: bool,
    pub(crate) gated: bool,
    pub(crate) biases: bool,
}

impl Default for TinyModel {
    fn default() -> Self {
        let (n_heads, n_kv_heads) = (4, 2);
        let (rotary, gated, biases) = (false, true, false);
        Self { n_layers: 1, d_model: 32, n_heads, n_kv_heads, d_head: 8, d_ff: 48, rotary, gated, biases }
    }
}

impl TinyModel {
    /// Learned positions, as many kv heads as heads, biases everywhere, no gate.
    pub(crate) fn opt() -> Self {
        Self { n_kv_heads: 4, gated: false, biases: true, ..Self::default() }
    }

    /// Rotary positions, shared kv heads, no biases, a gate.
    pub(crate) fn llama() -> Self {
        Self { rotary: true, ..Self::default() }
    }

    pub(crate) fn config(&self) -> ModelConfig {
        let rotary = Positions::Rotary { theta: 1e4, scaling: None, linear_factor: 1.0 };
        ModelConfig {
            family: if self.rotary { Family::Llama } else { Family::Opt },
            vocab: 100,
            d_model: self.d_model,
            d_embedding: self.d_model,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_head: self.d_head,
            max_positions: 64,
            positions: if self.rotary { rotary } else { Positions::Learned { offset: 2 } },
            norm: Norm::Rms { eps: 1e-5 },
            norm_placement: NormPlacement::Pre,
            final_norm: true,
            norm_affine: true,
            mlp: if self.gated { MlpKind::Gated } else { MlpKind::Plain },
            activation: Activation::Relu,
            qkv_bias: self.biases,
            output_bias: self.biases,
            mlp_bias: self.biases,
            tied_head: true,
            special_tokens: SpecialTokens::default(),
            layers: vec![LayerShape::dense(self.d_ff, self.d_head); self.n_layers],
        }
    }

    pub(crate) fn weights(&self, seed: u64) -> LayerWeights {
        let mut random = Random::new(seed);
        let &Self { d_model, n_heads, n_kv_heads, d_head, d_ff, biases, .. } = self;
        let norm = NormWeights { weight: Some(vec![1.0; d_model]), bias: None };
        LayerWeights {
            attention_norm: norm.clone(),
            query: random.linear(d_model, n_heads * d_head, biases),
            key: random.linear(d_model, n_kv_heads * d_head, biases),
            value: random.linear(d_model, n_kv_heads * d_head, biases),
            output: random.linear(n_heads * d_head, d_model, biases),
            mlp_norm: norm,
            gate: self.gated.then(|| random.linear(d_model, d_ff, biases)),
            up: random.linear(d_model, d_ff, biases),
            down: random.linear(d_ff, d_model, biases),
        }
    }
}

/// A layer of a tiny model, all of whose layers have the first one's widths.
pub(crate) fn layer<'a>(
    index: usize,
    config: &'a ModelConfig,
    weights: &'a LayerWeights,
    statistics: &'a LayerStatistics,
) -> Layer<'a> {
    Layer { config, index, weights, shape: &config.layers[0], statistics, gradients: None }
}

/// Inputs of a layer.
pub(crate) fn tokens_of(model: &TinyModel, n_tokens: usize) -> Mat<f64> {
    Random::new(77).mat(n_tokens, model.d_model)
}

/// What calibration would collect if rows `x` entered both attention and MLP.
pub(crate) fn statistics(config: &ModelConfig, weights: &LayerWeights, x: MatRef<'_, f64>) -> LayerStatistics {
    let heads = |linear: &Linear, n_heads: usize, bias: bool| -> Vec<Mat<f64>> {
        let rows = forward(linear, x, bias);
        let width = rows.ncols() / n_heads;
        (0..n_heads).map(|head| rows.subcols(head * width, width).to_owned()).collect()
    };
    let grams = |heads: &[Mat<f64>]| heads.iter().map(|rows| gram_of(rows.as_ref())).collect();
    let hidden = hidden(weights, x);
    let key = heads(&weights.key, config.n_kv_heads, true);
    LayerStatistics {
        n_tokens: x.nrows() as u64,
        influence_sum: 0.25 * x.nrows() as f64,
        mlp: gram_of(hidden.as_ref()),
        mlp_sum: column_sums(hidden.as_ref()),
        query: grams(&heads(&weights.query, config.n_heads, true)),
        key: grams(&key),
        key_sum: key.iter().map(|rows| column_sums(rows.as_ref())).collect(),
        value: grams(&heads(&weights.value, config.n_kv_heads, false)),
        attention_output: Vec::new(),
        inverse_residual_sum: x.nrows() as f64,
        logit: Vec::new(),
        logit_queries: 0,
        inputs: None,
        magnitudes: None,
    }
}

/// As [`statistics`], with the inputs of whole maps, their sizes, and what attention delivers if every token attended to itself alone.
pub(crate) fn whole_statistics(config: &ModelConfig, weights: &LayerWeights, x: MatRef<'_, f64>) -> LayerStatistics {
    let values = forward(&weights.value, x, false);
    let d_v = values.ncols() / config.n_kv_heads;
    let head = |head: usize| values.subcols(head / config.group_size() * d_v, d_v);
    let delivered = Mat::from_fn(x.nrows(), config.n_heads * d_v, |row, col| head(col / d_v)[(row, col % d_v)]);
    LayerStatistics {
        attention_output: (0..config.n_heads).map(|index| gram_of(head(index))).collect(),
        inputs: Some(InputGrams { attention: gram_of(x), output: gram_of(delivered.as_ref()), mlp: gram_of(x) }),
        magnitudes: Some(InputMagnitudes {
            attention: magnitudes(x),
            output: magnitudes(delivered.as_ref()),
            mlp: magnitudes(x),
            hidden: magnitudes(hidden(weights, x).as_ref()),
        }),
        ..statistics(config, weights, x)
    }
}

/// The input of the down map.
pub(crate) fn hidden(weights: &LayerWeights, x: MatRef<'_, f64>) -> Mat<f64> {
    let up = forward(&weights.up, x, true);
    let relu = |value: f64| value.max(0.0);
    match &weights.gate {
        None => Mat::from_fn(up.nrows(), up.ncols(), |row, col| relu(up[(row, col)])),
        Some(gate) => {
            let gate = forward(gate, x, true);
            Mat::from_fn(up.nrows(), up.ncols(), |row, col| relu(gate[(row, col)]) * up[(row, col)])
        }
    }
}

/// `x W + b` in double precision, or `x W`.
pub(crate) fn forward(linear: &Linear, x: MatRef<'_, f64>, with_bias: bool) -> Mat<f64> {
    let mut y = x * widen(&linear.weight);
    if let Some(bias) = linear.bias.as_ref().filter(|_| with_bias) {
        for (col, &bias) in bias.iter().enumerate() {
            for row in 0..y.nrows() {
                y[(row, col)] += f64::from(bias);
            }
        }
    }
    y
}

/// Attention with the given weights of each head (`[T, T]`, rows summing to 1) through values and output map.
pub(crate) fn attend(
    config: &ModelConfig,
    attention: &[Mat<f64>],
    value: &Linear,
    output: &Linear,
    x: MatRef<'_, f64>,
) -> Mat<f64> {
    let values = forward(value, x, true);
    let d_v = values.ncols() / config.n_kv_heads;
    let mut mixed = Mat::zeros(x.nrows(), config.n_heads * d_v);
    for (head, attention) in attention.iter().enumerate() {
        let values = values.subcols(head / config.group_size() * d_v, d_v);
        mixed.subcols_mut(head * d_v, d_v).copy_from(attention * values);
    }
    forward(output, mixed.as_ref(), true)
}

pub(crate) fn gram_of(rows: MatRef<'_, f64>) -> Gram {
    let product = rows.transpose() * rows;
    let packed = (0..product.nrows()).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|at| product[at]).collect();
    Gram::from_packed_lower(product.nrows(), packed).expect("a whole triangle")
}

pub(crate) fn plan(d_ff: usize, d_qk: usize, d_v: usize) -> LayerPlan {
    let ranks = FactorRanks::default();
    LayerPlan { index: 0, block_influence: 0.25, sparsity: 0.0, d_ff, d_qk, d_v, ranks, curves: None, map_curves: None }
}

/// Fails unless the largest difference is at most `tolerance` times the largest expected element.
#[track_caller]
pub(crate) fn assert_close(found: MatRef<'_, f64>, expected: MatRef<'_, f64>, tolerance: f64) {
    assert_eq!(found.shape(), expected.shape());
    let difference = (found - expected).norm_max() / expected.norm_max();
    assert!(difference <= tolerance, "largest relative difference {difference:e}, tolerated {tolerance:e}");
}

fn narrow(mat: MatRef<'_, f64>) -> Matrix {
    let data = (0..mat.nrows()).flat_map(|row| (0..mat.ncols()).map(move |col| mat[(row, col)] as f32)).collect();
    Matrix::new(mat.nrows(), mat.ncols(), data)
}

fn magnitudes(rows: MatRef<'_, f64>) -> Vec<f64> {
    rows.col_iter().map(|column| column.iter().map(|value| value.abs()).sum()).collect()
}

fn column_sums(rows: MatRef<'_, f64>) -> Vec<f64> {
    (0..rows.ncols()).map(|col| (0..rows.nrows()).map(|row| rows[(row, col)]).sum()).collect()
}
