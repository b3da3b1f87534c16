//! What can go wrong while planning and compressing.

use std::fmt;

use modegpt_architecture::MapName;
use serde::{Deserialize, Serialize};

/// The three parts of a decoder block that are compressed independently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Module {
    /// Up (and gate) and down maps: type I.
    Mlp,
    /// Query and key maps: type II.
    QueryKey,
    /// Value and output maps: type III.
    ValueOutput,
}

impl From<MapName> for Module {
    fn from(name: MapName) -> Self {
        match name {
            MapName::Query | MapName::Key => Self::QueryKey,
            MapName::Value | MapName::Output => Self::ValueOutput,
            MapName::Gate | MapName::Up | MapName::Down => Self::Mlp,
        }
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mlp => "mlp",
            Self::QueryKey => "query-key",
            Self::ValueOutput => "value-output",
        })
    }
}

/// Why a plan cannot be made, read or applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number lies outside its range.
    #[error("{name}: expected {expected}, found {found}")]
    OutOfRange {
        /// What the number is.
        name: String,
        /// The range.
        expected: String,
        /// The number.
        found: String,
    },
    /// The request lies beyond what any choice of widths reaches.
    #[error("{name} {asked} cannot be reached: {reachable}")]
    Unreachable {
        /// What was asked for.
        name: &'static str,
        /// How much of it.
        asked: String,
        /// What can be reached.
        reachable: String,
    },
    /// The text is not a plan.
    #[error("plan: {0}")]
    Json(#[from] serde_json::Error),
    /// A plan was written in another format.
    #[error("plan has format version {found}, expected {expected}")]
    PlanVersion {
        /// The version that can be read.
        expected: u32,
        /// The version found.
        found: u32,
    },
    /// A field of a plan holds something unusable.
    #[error("plan, field `{field}`: expected {expected}, found {found}")]
    PlanField {
        /// Path of the field, such as `layers[3].d_ff`.
        field: String,
        /// What would be usable.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A plan was made for another model.
    #[error("plan is for another model: {field} is {plan} in the plan, {model} in the model")]
    OtherModel {
        /// What differs.
        field: String,
        /// Its value in the plan.
        plan: String,
        /// Its value in the model.
        model: String,
    },
    /// What belongs to a layer does not fit the model.
    #[error("layer {layer}, {module}: {name} expected {expected}, found {found}")]
    Mismatch {
        /// Index of the layer.
        layer: usize,
        /// The module.
        module: Module,
        /// The tensor, statistic or width.
        name: &'static str,
        /// What would fit.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The statistics of a layer contradict themselves.
    #[error("layer {layer}: {source}")]
    Statistics {
        /// Index of the layer.
        layer: usize,
        /// What is wrong with them.
        source: modegpt_statistics::Error,
    },
    /// No token was observed, so nothing is known of the layer.
    #[error("layer {layer}: the statistics hold no tokens")]
    NoTokens {
        /// Index of the layer.
        layer: usize,
    },
    /// A decomposition failed.
    #[error("layer {layer}, {module}: {source}")]
    Numerics {
        /// Index of the layer.
        layer: usize,
        /// The module.
        module: Module,
        /// Why.
        source: modegpt_linalg::Error,
    },
    /// A map could not be factorised.
    #[error("layer {layer}, {name}: {source}")]
    Factorisation {
        /// Index of the layer.
        layer: usize,
        /// Which map.
        name: MapName,
        /// Why.
        source: modegpt_linalg::Error,
    },
    /// A weight is NaN or infinite, before or after compression.
    #[error("layer {layer}, {module}: `{tensor}` holds a value that is not finite")]
    NotFinite {
        /// Index of the layer.
        layer: usize,
        /// The module.
        module: Module,
        /// The tensor.
        tensor: &'static str,
    },
    /// The model is the product of a method that factorises maps, and this one needs them dense.
    #[error(
        "layer {layer}: the {name} map is a product of rank {rank}, and decompositions need it dense: \
         compress the model that this one was made from"
    )]
    Factorised {
        /// Index of the layer.
        layer: usize,
        /// Which map.
        name: MapName,
        /// Its rank.
        rank: usize,
    },
    /// The value bias has to move into the output bias, and there is none.
    #[error("layer {layer}, value-output: the value bias cannot be folded, the output map has no bias")]
    NoOutputBias {
        /// Index of the layer.
        layer: usize,
    },
}

impl Error {
    #[expect(clippy::needless_pass_by_value, reason = "callers hand over literals, numbers and formatted text alike")]
    pub(crate) fn out_of_range(name: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Self::OutOfRange { name: name.into(), expected: expected.to_string(), found: found.to_string() }
    }
}
