//! What a layer would lose at every width, before any width is decided.

use serde::{Deserialize, Serialize};

use crate::{
    Error, Layer, LayerCurves, MapCurves, MapMetric, Methods, Ridges, WidthGrid, check,
    method::{maps, mlp, query_key, value_output},
};

/// In which order things go: found once, it serves every width.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orders {
    /// Hidden units of the MLP, the first goes first; `None` where a method knows no order.
    pub units: Option<Vec<usize>>,
    /// For each kv head its rotary pairs.
    pub pairs: Option<Vec<Vec<usize>>>,
}

/// What one layer offers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSurvey {
    /// Errors against widths.
    pub curves: LayerCurves,
    /// Orders that compression to any of these widths follows.
    pub orders: Orders,
}

/// Decomposes a layer at all widths of `grid` and tells the errors.
///
/// # Errors
/// Those of [`compress_layer`](crate::compress_layer).
pub fn survey_layer(
    layer: &Layer<'_>,
    grid: &WidthGrid,
    methods: Methods,
    ridges: Ridges,
) -> Result<LayerSurvey, Error> {
    check::layer(layer)?;
    let (d_ff, units) = mlp::curve(layer, &grid.d_ff, methods, ridges)?;
    let (d_qk, pairs) = query_key::curve(layer, &grid.d_qk, methods, ridges)?;
    let d_v = value_output::curve(layer, &grid.d_v, methods, ridges)?;
    Ok(LayerSurvey { curves: LayerCurves { unit: layer.unit(), d_ff, d_qk, d_v }, orders: Orders { units, pairs } })
}

/// Decomposes every map of a layer in a metric and tells its errors at all ranks that are multiples of `multiple`, make it
/// smaller, and leave more than `1 - cap` of its weights: in nats a token for [`MapMetric::Fwsvd`], else as shares of what
/// the map carries in the metric.
///
/// # Errors
/// Those of [`compress_layer`](crate::compress_layer).
pub fn survey_maps(layer: &Layer<'_>, multiple: usize, cap: f64, metric: MapMetric) -> Result<MapCurves, Error> {
    check::layer(layer)?;
    maps::curves(layer, multiple, cap, metric)
}
