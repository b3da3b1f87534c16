//! Which method does what: each decision of its own, so that any of them can be put back to what the paper does.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ErrorUnit, method::slice::Score};

/// How hidden units of the MLP are chosen. Unless they are plain slices, the down map is refitted by least squares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MlpMethod {
    /// The largest ridge leverage scores, all at once (Algorithm 1 of the paper).
    Leverage,
    /// One at a time, always the one whose loss the others make good best.
    Elimination,
    /// The largest weights; nothing is refitted.
    Magnitude,
    /// The largest weights times the size of their inputs; nothing is refitted.
    Wanda,
}

impl MlpMethod {
    pub(crate) fn score(self) -> Option<Score> {
        match self {
            Self::Leverage | Self::Elimination => None,
            Self::Magnitude => Some(Score::Magnitude),
            Self::Wanda => Some(Score::Wanda),
        }
    }
}

/// How queries and keys lose width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueryKeyMethod {
    /// Columns, or rotary pairs, of the largest energy, unchanged (Algorithm 2 of the paper).
    Cr,
    /// By what errors of the logits do to the output of attention. With rotary positions pairs are eliminated one at a
    /// time and the kept ones get complex gains; without, the product is approximated optimally (joint SVD).
    Refit,
    /// Columns, or rotary pairs, of the largest weights, unchanged.
    Magnitude,
    /// Columns, or rotary pairs, of the largest weights times the size of their inputs, unchanged.
    Wanda,
}

impl QueryKeyMethod {
    pub(crate) fn score(self) -> Option<Score> {
        match self {
            Self::Cr | Self::Refit => None,
            Self::Magnitude => Some(Score::Magnitude),
            Self::Wanda => Some(Score::Wanda),
        }
    }
}

/// How values and outputs lose width. A value bias moves into the output bias, exactly, whatever the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueOutputMethod {
    /// Truncated in the metric of the values (Algorithm 3 of the paper).
    Values,
    /// Truncated in that of what attention delivers to the output map, which is then refitted head by head.
    Attention,
    /// The coordinates of the largest weights; nothing is refitted.
    Magnitude,
    /// The coordinates of the largest weights times the size of their inputs; nothing is refitted.
    Wanda,
}

impl ValueOutputMethod {
    pub(crate) fn score(self) -> Option<Score> {
        match self {
            Self::Values | Self::Attention => None,
            Self::Magnitude => Some(Score::Magnitude),
            Self::Wanda => Some(Score::Wanda),
        }
    }
}

/// The metric in which maps become products of lower rank, each by itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "metric", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MapMetric {
    /// That of the weights: the plain singular value decomposition.
    Svd {},
    /// Rows of the weights by their Fisher information, the squared gradients of the loss
    /// ([arXiv:2207.00112](https://arxiv.org/abs/2207.00112)).
    Fwsvd {},
    /// Rows of the weights by a power of the mean magnitude of their inputs
    /// ([arXiv:2312.05821](https://arxiv.org/abs/2312.05821)).
    Asvd {
        /// The power, at least 0; at 0 all rows count alike.
        alpha: f64,
    },
    /// That of what the map puts out ([arXiv:2403.07378](https://arxiv.org/abs/2403.07378)).
    SvdLlm {},
}

impl MapMetric {
    /// The power that the paper of ASVD settles on.
    pub const ASVD_ALPHA: f64 = 0.5;

    /// What errors in this metric are measured in.
    pub fn unit(self) -> ErrorUnit {
        match self {
            Self::Fwsvd {} => ErrorUnit::Nats,
            Self::Svd {} | Self::Asvd { .. } | Self::SvdLlm {} => ErrorUnit::MapEnergy,
        }
    }
}

/// Which maps are refitted once more on the stream that the compressed layers before them produce, towards a stream between
/// that and the original model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefixRefit {
    /// None.
    None,
    /// The output maps of attention.
    Output,
    /// The output maps of attention and the down maps.
    All,
}

impl PrefixRefit {
    /// Whether anything is refitted.
    pub fn is_any(self) -> bool {
        self != Self::None
    }
}

impl fmt::Display for PrefixRefit {
    /// Its name in options and plans.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Output => "output",
            Self::All => "all",
        })
    }
}

/// The methods of the three modules, or that of all maps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Methods {
    /// Up, gate and down maps.
    pub mlp: MlpMethod,
    /// Whether the bias of the down map is refitted with it, where there is one.
    pub mlp_bias: bool,
    /// Query and key maps.
    pub query_key: QueryKeyMethod,
    /// Value and output maps.
    pub value_output: ValueOutputMethod,
    /// What is refitted once more on the stream that the compressed layers before produce.
    pub prefix: PrefixRefit,
    /// If given, modules are left alone, widths stay, and every map becomes a product by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maps: Option<MapMetric>,
}

impl Methods {
    /// The three algorithms of the paper.
    pub const PAPER: Self = Self {
        mlp: MlpMethod::Leverage,
        mlp_bias: false,
        query_key: QueryKeyMethod::Cr,
        value_output: ValueOutputMethod::Values,
        prefix: PrefixRefit::None,
        maps: None,
    };

    /// Same statistics, better decisions. Whether the refit on the compressed prefix pays depends on the samples: not here.
    pub const BEST: Self = Self {
        mlp: MlpMethod::Elimination,
        mlp_bias: true,
        query_key: QueryKeyMethod::Refit,
        value_output: ValueOutputMethod::Attention,
        prefix: PrefixRefit::None,
        maps: None,
    };

    /// The plain structured baseline, by the size of weights alone.
    pub const MAGNITUDE: Self = Self {
        mlp: MlpMethod::Magnitude,
        query_key: QueryKeyMethod::Magnitude,
        value_output: ValueOutputMethod::Magnitude,
        ..Self::PAPER
    };

    /// The plain structured baseline, by the size of weights and of what they multiply.
    pub const WANDA: Self = Self {
        mlp: MlpMethod::Wanda,
        query_key: QueryKeyMethod::Wanda,
        value_output: ValueOutputMethod::Wanda,
        ..Self::PAPER
    };

    /// Every map by itself in this metric.
    pub const fn of_maps(metric: MapMetric) -> Self {
        Self { maps: Some(metric), ..Self::PAPER }
    }

    /// Whether the Gram matrices of the inputs of whole maps are needed, if only for the report.
    pub fn needs_inputs(&self) -> bool {
        self.maps.is_some()
            || self.mlp == MlpMethod::Wanda
            || self.query_key == QueryKeyMethod::Wanda
            || self.value_output == ValueOutputMethod::Wanda
    }

    /// Whether the magnitudes of the inputs of maps are needed.
    pub fn needs_magnitudes(&self) -> bool {
        matches!(self.maps, Some(MapMetric::Asvd { .. }))
    }

    /// Whether the Fisher information of rows is needed.
    pub fn needs_row_fisher(&self) -> bool {
        self.maps == Some(MapMetric::Fwsvd {})
    }

    /// Whether any decision looks at errors, so that it matters what they are weighed with.
    pub fn weigh_errors(&self) -> bool {
        if self.maps.is_some() {
            return self.needs_row_fisher();
        }
        self.mlp == MlpMethod::Elimination
            || self.query_key == QueryKeyMethod::Refit
            || self.value_output == ValueOutputMethod::Attention
    }
}

/// One line, for people.
impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(metric) = self.maps {
            return write!(f, "every map by itself: {metric}");
        }
        let mlp = match self.mlp {
            MlpMethod::Leverage => "ridge leverage and Nyström",
            MlpMethod::Elimination => "elimination with refit",
            MlpMethod::Magnitude => "sliced by magnitude",
            MlpMethod::Wanda => "sliced by Wanda scores",
        };
        let query_key = match self.query_key {
            QueryKeyMethod::Cr => "CR",
            QueryKeyMethod::Refit => "by logits, with refit",
            QueryKeyMethod::Magnitude => "sliced by magnitude",
            QueryKeyMethod::Wanda => "sliced by Wanda scores",
        };
        let value_output = match self.value_output {
            ValueOutputMethod::Values => "SVD on values",
            ValueOutputMethod::Attention => "SVD on what attention delivers",
            ValueOutputMethod::Magnitude => "sliced by magnitude",
            ValueOutputMethod::Wanda => "sliced by Wanda scores",
        };
        write!(f, "MLP: {mlp}; query–key: {query_key}; value–output: {value_output}")?;
        match self.prefix {
            PrefixRefit::None => Ok(()),
            PrefixRefit::Output => f.write_str("; output maps refitted on the compressed prefix"),
            PrefixRefit::All => f.write_str("; output and down maps refitted on the compressed prefix"),
        }
    }
}

/// A few words, for people.
impl fmt::Display for MapMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Svd {} => f.write_str("plain SVD"),
            Self::Fwsvd {} => f.write_str("SVD weighted by Fisher information (FWSVD)"),
            Self::Asvd { alpha } => write!(f, "SVD scaled by activations to the power {alpha} (ASVD)"),
            Self::SvdLlm {} => f.write_str("SVD whitened by the Gram matrix of the inputs (SVD-LLM)"),
        }
    }
}
