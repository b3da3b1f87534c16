//! As much of a model as a plan has to know.

use std::fmt;

use modegpt_architecture::{LayerShape, MlpKind, ModelConfig};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The three widths of a decoder block that compression shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Widths {
    /// Hidden units of the MLP.
    pub d_ff: usize,
    /// Width of a query and of a key, per head.
    pub d_qk: usize,
    /// Width of a value, per head.
    pub d_v: usize,
}

impl fmt::Display for Widths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d_ff {}, d_qk {}, d_v {}", self.d_ff, self.d_qk, self.d_v)
    }
}

impl From<&LayerShape> for Widths {
    fn from(shape: &LayerShape) -> Self {
        Self { d_ff: shape.d_ff, d_qk: shape.d_qk, d_v: shape.d_v }
    }
}

/// The sizes of a model before compression: enough to check a plan by itself and to refuse it for another model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSummary {
    /// Decoder blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head of the original model.
    pub d_head: usize,
    /// Whether queries and keys are rotated, so that `d_qk` is even.
    pub rotary: bool,
    /// Whether the MLP has a gate.
    pub gated_mlp: bool,
    /// The widths of each layer.
    pub widths: Vec<Widths>,
}

impl ModelSummary {
    /// The summary of `config`.
    pub fn of(config: &ModelConfig) -> Self {
        Self {
            n_layers: config.layers.len(),
            d_model: config.d_model,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            d_head: config.d_head,
            rotary: config.is_rotary(),
            gated_mlp: config.mlp == MlpKind::Gated,
            widths: config.layers.iter().map(Widths::from).collect(),
        }
    }

    /// Linear weights of one block with the given widths, biases and norms not counted.
    pub fn params(&self, widths: Widths) -> u64 {
        (widths.d_qk as u64 + widths.d_v as u64) * self.head_unit() + widths.d_ff as u64 * self.mlp_unit()
    }

    /// Linear weights of all blocks.
    pub fn block_params(&self) -> u64 {
        self.widths.iter().map(|widths| self.params(*widths)).sum()
    }

    /// Weights of query and key, or of value and output, for each unit of head width.
    pub(crate) fn head_unit(&self) -> u64 {
        self.d_model as u64 * (self.n_heads as u64 + self.n_kv_heads as u64)
    }

    /// Weights of the MLP for each hidden unit.
    pub(crate) fn mlp_unit(&self) -> u64 {
        self.d_model as u64 * if self.gated_mlp { 3 } else { 2 }
    }

    /// Checks ranges, so that nothing computed from a summary read from a file overflows, and that the parts agree.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let ranges = [
            ("n_layers", self.n_layers, 1 << 12),
            ("d_model", self.d_model, 1 << 20),
            ("n_heads", self.n_heads, 1 << 12),
            ("n_kv_heads", self.n_kv_heads, 1 << 12),
            ("d_head", self.d_head, 1 << 14),
        ];
        for (field, value, largest) in ranges {
            check_range(format!("model.{field}"), value, largest)?;
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(field_error("model.n_kv_heads", format!("a divisor of {}", self.n_heads), self.n_kv_heads));
        }
        if self.widths.len() != self.n_layers {
            return Err(field_error("model.widths", format!("{} layers", self.n_layers), self.widths.len()));
        }
        let largest = Widths { d_ff: 1 << 20, d_qk: self.d_head, d_v: self.d_head };
        for (layer, widths) in self.widths.iter().enumerate() {
            self.check_widths(&format!("model.widths[{layer}]"), *widths, largest)?;
        }
        Ok(())
    }

    /// Each width at least 1 and at most that of `largest`, and `d_qk` even if it consists of pairs.
    pub(crate) fn check_widths(&self, place: &str, widths: Widths, largest: Widths) -> Result<(), Error> {
        check_range(format!("{place}.d_ff"), widths.d_ff, largest.d_ff)?;
        check_range(format!("{place}.d_qk"), widths.d_qk, largest.d_qk)?;
        check_range(format!("{place}.d_v"), widths.d_v, largest.d_v)?;
        if self.rotary && !widths.d_qk.is_multiple_of(2) {
            return Err(field_error(format!("{place}.d_qk"), "an even width, since positions are rotary", widths.d_qk));
        }
        Ok(())
    }
}

fn check_range(field: String, value: usize, largest: usize) -> Result<(), Error> {
    if (1..=largest).contains(&value) {
        return Ok(());
    }
    Err(field_error(field, format!("1 to {largest}"), value))
}

#[expect(clippy::needless_pass_by_value, reason = "callers hand over literals, numbers and formatted text alike")]
pub(crate) fn field_error(field: impl Into<String>, expected: impl ToString, found: impl ToString) -> Error {
    Error::PlanField { field: field.into(), expected: expected.to_string(), found: found.to_string() }
}
