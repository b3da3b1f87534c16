//! Which method does what: each decision of its own, so that any of them can be put back to what the paper does.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How hidden units of the MLP are chosen. The down map is refitted by least squares either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MlpMethod {
    /// The largest ridge leverage scores, all at once (Algorithm 1 of the paper).
    Leverage,
    /// One at a time, always the one whose loss the others make good best.
    Elimination,
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
}

/// In which metric values and outputs are truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueOutputMethod {
    /// That of the values (Algorithm 3 of the paper).
    Values,
    /// That of what attention delivers to the output map, which is then refitted head by head.
    Attention,
}

/// The methods of the three modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Whether down maps are refitted once more on the stream that the compressed layers before them produce.
    pub prefix: bool,
}

impl Methods {
    /// The three algorithms of the paper.
    pub const PAPER: Self = Self {
        mlp: MlpMethod::Leverage,
        mlp_bias: false,
        query_key: QueryKeyMethod::Cr,
        value_output: ValueOutputMethod::Values,
        prefix: false,
    };

    /// Same statistics, better decisions. Whether the refit on the compressed prefix pays depends on the samples: not here.
    pub const BEST: Self = Self {
        mlp: MlpMethod::Elimination,
        mlp_bias: true,
        query_key: QueryKeyMethod::Refit,
        value_output: ValueOutputMethod::Attention,
        prefix: false,
    };

    /// Whether any decision looks at errors, so that it matters what they are weighed with.
    pub fn weigh_errors(&self) -> bool {
        self.mlp == MlpMethod::Elimination
            || self.query_key == QueryKeyMethod::Refit
            || self.value_output == ValueOutputMethod::Attention
    }
}

/// One line, for people.
impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mlp = match self.mlp {
            MlpMethod::Leverage => "ridge leverage and Nyström",
            MlpMethod::Elimination => "elimination with refit",
        };
        let query_key = match self.query_key {
            QueryKeyMethod::Cr => "CR",
            QueryKeyMethod::Refit => "by logits, with refit",
        };
        let value_output = match self.value_output {
            ValueOutputMethod::Values => "SVD on values",
            ValueOutputMethod::Attention => "SVD on what attention delivers",
        };
        write!(f, "MLP: {mlp}; query–key: {query_key}; value–output: {value_output}")?;
        if self.prefix { f.write_str("; down maps refitted on the compressed prefix") } else { Ok(()) }
    }
}
