//! A plan made true, one layer at a time.

use modegpt_architecture::{FactorRanks, LayerShape, LayerWeights, Weight};

use crate::{
    Error, Layer, LayerPlan, LayerReport, Methods, ModelSummary, Orders, Ridges, Widths, check,
    method::{maps, mlp, query_key, value_output},
};

/// A layer after compression.
#[derive(Clone, Debug, PartialEq)]
pub struct CompressedLayer<W = Weight> {
    /// The weights in their new widths, or as products.
    pub weights: LayerWeights<W>,
    /// The new widths, with the rotary pairs that are kept, and the ranks of products.
    pub shape: LayerShape,
    /// The hidden units that are left, by their place before, in their order now.
    pub units: Vec<usize>,
    /// What it cost.
    pub report: LayerReport,
}

/// Compresses one decoder block to the widths that `plan` gives it.
///
/// The three modules are independent of each other; one whose width does not change is returned bit for bit. The softmax
/// scale stays that of the original head width, and normalisations are not touched. Equal arguments give equal results.
///
/// With [`Methods::maps`] the modules are left alone, and every map to which the plan gives a rank becomes a product.
///
/// `orders`, from a [`survey`](crate::survey_layer) with the same methods and ridges, spare finding them again.
///
/// # Errors
/// Every error names the layer, and the module where there is one: [`Error::PlanField`] for a width out of range,
/// [`Error::Mismatch`] if weights or statistics do not have the shapes that the configuration and the present widths ask
/// for, or a statistic that the methods need was not collected,
/// [`Error::NotFinite`], [`Error::Statistics`] or [`Error::NoTokens`] for numbers that cannot be used,
/// [`Error::Numerics`] if a matrix cannot be factorised, [`Error::NoOutputBias`] if a value bias has nowhere to go;
/// for maps that become products also [`Error::Factorisation`].
pub fn compress_layer(
    layer: &Layer<'_>,
    plan: &LayerPlan,
    methods: Methods,
    ridges: Ridges,
    orders: &Orders,
) -> Result<CompressedLayer, Error> {
    check::layer(layer)?;
    check::plan(layer, plan)?;
    check::orders(layer, plan, orders)?;
    if let Some(metric) = methods.maps {
        return maps::compress(layer, plan, metric);
    }
    let &Layer { config, index: layer_idx, weights, shape: before, .. } = layer;
    let mlp = mlp::compress(layer, plan.d_ff, methods, ridges, orders.units.as_deref())?;
    let query_key = query_key::compress(layer, plan.d_qk, methods, ridges, orders.pairs.as_deref())?;
    let value_output = value_output::compress(layer, plan.d_v, methods, ridges)?;
    let report = LayerReport {
        index: layer_idx,
        sparsity: removed_share(&ModelSummary::of(config), before.into(), plan.widths()),
        before: before.into(),
        after: plan.widths(),
        mlp: mlp.report,
        query_key: query_key.report,
        value_output: value_output.report,
        maps: Vec::new(),
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
    Ok(CompressedLayer { weights: weights.into(), shape, units: mlp.kept, report })
}

fn removed_share(model: &ModelSummary, before: Widths, after: Widths) -> f64 {
    1.0 - model.params(after) as f64 / model.params(before) as f64
}

#[cfg(test)]
mod tests;
