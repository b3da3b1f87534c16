//! A plan made true, one layer at a time.

use modegpt_architecture::{FactorRanks, LayerShape, LayerWeights, ModelConfig};
use modegpt_statistics::LayerStatistics;

use crate::{
    Error, LayerPlan, LayerReport, ModelSummary, Module, Ridges, Widths, check,
    matrices::Place,
    method::{mlp, query_key, value_output},
};

/// A layer after compression.
#[derive(Clone, Debug, PartialEq)]
pub struct CompressedLayer {
    /// The weights in their new widths.
    pub weights: LayerWeights,
    /// The new widths, with the rotary pairs that are kept.
    pub shape: LayerShape,
    /// What it cost.
    pub report: LayerReport,
}

/// Compresses one decoder block to the widths that `plan` gives it.
///
/// The three modules are independent of each other; one whose width does not change is returned bit for bit. The softmax
/// scale stays that of the original head width, and normalisations are not touched. Equal arguments give equal results.
///
/// - `weights`: all dense, from [`LayerWeights::into_dense`]
/// - `before`: the present widths, with the rotary pairs if the layer was compressed before; pairs compose, so that the
///   result again counts the pairs of the original head
/// - `statistics`: of this layer with these weights
///
/// # Errors
/// Every error names the layer, and the module where there is one: [`Error::PlanField`] for a width out of range,
/// [`Error::Mismatch`] if weights or statistics do not have the shapes that `config` and `before` ask for,
/// [`Error::NotFinite`], [`Error::Statistics`] or [`Error::NoTokens`] for numbers that cannot be used,
/// [`Error::Numerics`] if a matrix cannot be factorised, [`Error::NoOutputBias`] if a value bias has nowhere to go.
pub fn compress_layer(
    config: &ModelConfig,
    layer_idx: usize,
    weights: &LayerWeights,
    before: &LayerShape,
    statistics: &LayerStatistics,
    plan: &LayerPlan,
    ridges: Ridges,
) -> Result<CompressedLayer, Error> {
    check::layer(config, layer_idx, weights, before, statistics, plan)?;
    let place = |module| Place { layer: layer_idx, module };
    let mlp = mlp::compress(place(Module::Mlp), weights, &statistics.mlp, plan.d_ff, ridges)?;
    let query_key = query_key::compress(place(Module::QueryKey), config, weights, before, statistics, plan.d_qk)?;
    let value_output =
        value_output::compress(place(Module::ValueOutput), config, weights, &statistics.value, plan.d_v)?;
    let report = LayerReport {
        index: layer_idx,
        sparsity: removed_share(&ModelSummary::of(config), before.into(), plan.widths()),
        before: before.into(),
        after: plan.widths(),
        mlp: mlp.report,
        query_key: query_key.report,
        value_output: value_output.report,
    };
    let Widths { d_ff, d_qk, d_v } = plan.widths();
    let shape = LayerShape { d_ff, d_qk, d_v, rotary_pairs: query_key.rotary_pairs, ranks: FactorRanks::default() };
    let weights = LayerWeights {
        attention_norm: weights.attention_norm.clone(),
        query: query_key.query,
        key: query_key.key,
        value: value_output.value,
        output: value_output.output,
        mlp_norm: weights.mlp_norm.clone(),
        gate: mlp.gate,
        up: mlp.up,
        down: mlp.down,
    };
    Ok(CompressedLayer { weights, shape, report })
}

fn removed_share(model: &ModelSummary, before: Widths, after: Widths) -> f64 {
    1.0 - model.params(after) as f64 / model.params(before) as f64
}

#[cfg(test)]
mod tests;
