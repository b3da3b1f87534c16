//! The widths of one decoder block.

use serde::{Deserialize, Serialize};

use crate::FactorRanks;

/// The widths that compression may shrink, one set for each layer. The residual width never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerShape {
    /// Hidden units of the MLP.
    pub d_ff: usize,
    /// Width of a query and of a key, per head. Even where rotary pairs are used.
    pub d_qk: usize,
    /// Width of a value, per head.
    pub d_v: usize,
    /// With rotary positions: which of the `d_head / 2` pairs each kv head keeps, ascending, `d_qk / 2` of them.
    /// `None` when all are kept, or when the model does not rotate.
    ///
    /// Pair `p` is made of coordinates `p` and `p + d_head / 2` of a head, and turns by `position * theta^(-2p / d_head)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotary_pairs: Option<Vec<Vec<usize>>>,
    /// At which rank each map is held as a product of two.
    #[serde(default, skip_serializing_if = "FactorRanks::is_dense")]
    pub ranks: FactorRanks,
}

impl LayerShape {
    /// The shape of an uncompressed layer.
    pub fn dense(d_ff: usize, d_head: usize) -> Self {
        Self { d_ff, d_qk: d_head, d_v: d_head, rotary_pairs: None, ranks: FactorRanks::default() }
    }
}
