//! What is seen of a compressed layer behind compressed layers.

use modegpt_linalg::Gram;

/// Weighed sums over tokens of what enters the last map of a module of a compressed layer, `z`, and of what that map is to
/// carry, `t`.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixStatistics {
    /// `Σ zᵀ z`, `[k, k]`.
    pub gram: Gram,
    /// `Σ zᵀ t`, `[k, d_model]`, row-major.
    pub cross: Vec<f64>,
    /// `Σ z`, `[k]`.
    pub unit_sum: Vec<f64>,
    /// `Σ t`, `[d_model]`.
    pub target_sum: Vec<f64>,
    /// The sum of the weights.
    pub weight_sum: f64,
}
