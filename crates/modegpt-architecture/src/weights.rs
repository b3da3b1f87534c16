//! The weights of one decoder block on the host.

use crate::{LayerShape, Matrix, ModelConfig};

/// `y = x W + b` with `W: [d_in, d_out]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[d_in, d_out]`
    pub weight: Matrix,
    /// `[d_out]`
    pub bias: Option<Vec<f32>>,
}

/// Scale and shift of a normalisation, `[d_model]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct NormWeights {
    /// The scale; `None` where the model normalises without one.
    pub weight: Option<Vec<f32>>,
    /// The shift of a LayerNorm.
    pub bias: Option<Vec<f32>>,
}

/// One decoder block. Heads lie side by side in the columns of `query`, `key` and `value` and in the rows of `output`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights {
    /// Applied before attention (after it in a post-norm model).
    pub attention_norm: NormWeights,
    /// `[d_model, n_heads * d_qk]`
    pub query: Linear,
    /// `[d_model, n_kv_heads * d_qk]`
    pub key: Linear,
    /// `[d_model, n_kv_heads * d_v]`
    pub value: Linear,
    /// `[n_heads * d_v, d_model]`
    pub output: Linear,
    /// Applied before the MLP (after it in a post-norm model).
    pub mlp_norm: NormWeights,
    /// `[d_model, d_ff]`, in gated MLPs only.
    pub gate: Option<Linear>,
    /// `[d_model, d_ff]`
    pub up: Linear,
    /// `[d_ff, d_model]`
    pub down: Linear,
}

impl LayerWeights {
    /// Every linear map of the block with its name.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        [
            ("query", Some(&self.query)),
            ("key", Some(&self.key)),
            ("value", Some(&self.value)),
            ("output", Some(&self.output)),
            ("gate", self.gate.as_ref()),
            ("up", Some(&self.up)),
            ("down", Some(&self.down)),
        ]
        .into_iter()
        .filter_map(|(name, linear)| Some((name, linear?)))
    }

    /// The widths that these weights have, without the rotary pairs (weights do not know them).
    pub fn widths(&self, config: &ModelConfig) -> LayerShape {
        LayerShape {
            d_ff: self.up.weight.cols,
            d_qk: self.query.weight.cols / config.n_heads,
            d_v: self.value.weight.cols / config.n_kv_heads,
            rotary_pairs: None,
        }
    }
}
