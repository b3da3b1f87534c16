//! Every map of a layer by itself, in a metric that has a name.
//!
//! ```text
//! y = x W + b  ≈  (x A) B + b,      A, B minimise ‖P (W - A B)‖²_F
//! ```
//!
//! | metric | `P` |
//! | --- | --- |
//! | [`MapMetric::Svd`] | `I` |
//! | [`MapMetric::Fwsvd`] | `diag √I_i`, with `I_i` the Fisher information of row `i`: its squared gradients, summed |
//! | [`MapMetric::Asvd`] | `diag (mean abs(x_i))^α` |
//! | [`MapMetric::SvdLlm`] | a root of the Gram matrix of the inputs, so that the error is that of the outputs |
//!
//! Where a metric is zero everywhere, as it is for a map that never gets an input, any factors lose nothing by it, and the
//! plain ones are taken; the report has no error and no energy then.
//!
//! Attention weights sum to 1, so a value bias reaches the output map as a constant. What the factors of that map do to it
//! is made good in the output bias, exactly.

use std::collections::BTreeMap;

use faer::{Mat, MatRef};
use modegpt_architecture::{Factors, LayerWeights, Linear, MapName, Matrix, Weight};
use modegpt_linalg::{Gram, Metric, weighted_svd};

use crate::{
    CompressedLayer, Error, Factorisation, Layer, LayerPlan, LayerReport, MapCurves, MapMetric, MapReport,
    ModelSummary, Module, ModuleReport, RankCurve, factorise_layer,
    matrices::{Place, widen},
    method::{mlp::energy, value_output::spread_value_bias},
    ranks::rank_grid,
};

/// Factorises the maps of a layer to the ranks of `plan`.
pub(crate) fn compress(layer: &Layer<'_>, plan: &LayerPlan, metric: MapMetric) -> Result<CompressedLayer, Error> {
    let mut chosen = BTreeMap::new();
    let mut silent = Vec::new();
    for (name, _) in layer.weights.maps() {
        if let Some(rank) = plan.ranks.get(name) {
            let input = input_metric(layer, name, metric)?.unwrap_or_else(|| {
                silent.push(name);
                Metric::Identity
            });
            chosen.insert(name, Factorisation { rank, input, output: Metric::Identity });
        }
    }
    let factorised = factorise_layer(layer.index, layer.weights.clone(), |name| chosen.remove(&name))?;
    let mut weights = factorised.weights;
    weights.output.bias = output_bias(layer, &weights)?;
    let mut maps = factorised.maps;
    for map in maps.iter_mut().filter(|map| silent.contains(&map.name)) {
        (map.relative_error, map.energy) = (0.0, 0.0);
    }
    for (name, linear) in weights.maps() {
        match maps.iter_mut().find(|map| map.name == name) {
            Some(map) => map.output_error = output_error(layer, name, &linear.weight),
            None => maps.push(MapReport::dense(name)),
        }
    }
    maps.sort_by_key(|map| map.name);
    let summary = ModelSummary::of(layer.config);
    let widths = layer.shape.into();
    let [mlp, query_key, value_output] =
        [Module::Mlp, Module::QueryKey, Module::ValueOutput].map(|module| module_report(module, &maps));
    let after = summary.params_at(widths, &factorised.ranks);
    let report = LayerReport {
        index: layer.index,
        sparsity: 1.0 - after as f64 / summary.params(widths) as f64,
        before: widths,
        after: widths,
        mlp,
        query_key,
        value_output,
        maps,
    };
    let shape = modegpt_architecture::LayerShape { ranks: factorised.ranks, ..layer.shape.clone() };
    Ok(CompressedLayer { weights, units: (0..shape.d_ff).collect(), shape, report })
}

/// What every map of a layer would lose at the ranks that it can take: multiples of `multiple`, by at most `cap` of its
/// weights. In nats a token where the metric is made of gradients, else as shares of what the map carries.
pub(crate) fn curves(layer: &Layer<'_>, multiple: usize, cap: f64, metric: MapMetric) -> Result<MapCurves, Error> {
    let mut curves = MapCurves::new();
    for map in layer.config.map_shapes(layer.shape) {
        let ranks = rank_grid(&map, multiple, cap);
        if ranks.is_empty() {
            continue;
        }
        let spectrum = spectrum(layer, map.name, metric)?;
        let unit = if let (MapMetric::Fwsvd {}, Some(gradients)) = (metric, layer.gradients) {
            0.5 / gradients.n_tokens as f64
        } else {
            let energy: f64 = spectrum.iter().sum();
            if energy > 0.0 { energy.recip() } else { 0.0 }
        };
        let errors = ranks.iter().map(|&rank| unit * (0.0 + spectrum[rank..].iter().sum::<f64>())).collect();
        curves.insert(map.name, RankCurve { ranks, errors });
    }
    Ok(curves)
}

/// The squared singular values of a map in its metric; zeros if that is zero everywhere.
fn spectrum(layer: &Layer<'_>, name: MapName, metric: MapMetric) -> Result<Vec<f64>, Error> {
    let weight = &map_of(layer, name).weight;
    let Some(input) = input_metric(layer, name, metric)? else {
        return Ok(vec![0.0; weight.rows.min(weight.cols)]);
    };
    let svd = weighted_svd(widen(weight).as_ref(), &input, &Metric::Identity, 1);
    Ok(svd.map_err(|source| Error::Factorisation { layer: layer.index, name, source })?.spectrum)
}

fn map_of<'a>(layer: &Layer<'a>, name: MapName) -> &'a Linear {
    let found = layer.weights.maps().find(|(other, _)| *other == name);
    found.expect("maps are those of the configuration, which was checked").1
}

/// `P` of a map; `None` if it is zero everywhere.
fn input_metric<'a>(layer: &Layer<'a>, name: MapName, metric: MapMetric) -> Result<Option<Metric<'a>>, Error> {
    let weights: Vec<f64> = match metric {
        MapMetric::Svd {} => return Ok(Some(Metric::Identity)),
        MapMetric::Fwsvd {} => row_fisher(layer, name)?.iter().map(|information| information.sqrt()).collect(),
        MapMetric::Asvd { alpha } => {
            let n_tokens = layer.statistics.n_tokens as f64;
            let sizes = input_magnitudes(layer, name)?;
            if sizes.iter().all(|&sum| sum == 0.0) {
                return Ok(None);
            }
            sizes.iter().map(|sum| (sum / n_tokens).powf(alpha)).collect()
        }
        MapMetric::SvdLlm {} => {
            let gram = input_gram(layer, name)?;
            let is_silent = gram.diagonal().iter().all(|&energy| energy == 0.0);
            return Ok((!is_silent).then_some(Metric::Gram(gram)));
        }
    };
    let is_silent = weights.iter().all(|&weight| weight == 0.0);
    Ok((!is_silent).then_some(Metric::Diagonal(weights)))
}

fn row_fisher<'a>(layer: &Layer<'a>, name: MapName) -> Result<&'a [f64], Error> {
    let rows = layer.gradients.and_then(|gradients| gradients.row_fisher.get(name.as_str()));
    rows.map(Vec::as_slice).ok_or_else(|| {
        let found = if layer.gradients.is_some() { "gradients collected without it" } else { "no gradients" };
        place(layer, name).mismatch("Fisher information of rows", "one number for each input", found)
    })
}

/// The Gram matrix of what enters a map.
pub(crate) fn input_gram<'a>(layer: &Layer<'a>, name: MapName) -> Result<&'a Gram, Error> {
    if name == MapName::Down {
        return Ok(&layer.statistics.mlp);
    }
    let inputs = layer.statistics.inputs.as_ref().ok_or_else(|| {
        let expected = "the Gram matrices of the inputs of whole maps";
        place(layer, name).mismatch("statistic `inputs`", expected, "statistics collected without it")
    })?;
    Ok(match name {
        MapName::Output => &inputs.output,
        MapName::Gate | MapName::Up => &inputs.mlp,
        _ => &inputs.attention,
    })
}

/// `Σ |x|` of what enters a map.
fn input_magnitudes<'a>(layer: &Layer<'a>, name: MapName) -> Result<&'a [f64], Error> {
    let magnitudes = layer.statistics.magnitudes.as_ref().ok_or_else(|| {
        let expected = "the mean magnitudes of the inputs of whole maps";
        place(layer, name).mismatch("statistic `magnitudes`", expected, "statistics collected without it")
    })?;
    Ok(match name {
        MapName::Down => &magnitudes.hidden,
        MapName::Output => &magnitudes.output,
        MapName::Gate | MapName::Up => &magnitudes.mlp,
        _ => &magnitudes.attention,
    })
}

fn place(layer: &Layer<'_>, name: MapName) -> Place {
    Module::from(name).of(layer)
}

/// The error of what a map puts out, as a share of its energy; `None` if its inputs are not known.
fn output_error(layer: &Layer<'_>, name: MapName, weight: &Weight) -> Option<f64> {
    let gram = input_gram(layer, name).ok()?;
    let exact = widen(&map_of(layer, name).weight);
    let whole = energy(gram, exact.as_ref());
    let lost = energy(gram, (exact - product(weight)).as_ref());
    Some(if whole > 0.0 { lost.max(0.0) / whole } else { 0.0 })
}

fn product(weight: &Weight) -> Mat<f64> {
    match weight {
        Weight::Dense(matrix) => widen(matrix),
        Weight::Factorised(Factors { a, b }) => widen(a) * widen(b),
    }
}

/// Errors of the maps of a module that became products, together.
fn module_report(module: Module, maps: &[MapReport]) -> ModuleReport {
    let maps = || maps.iter().filter(|map| Module::from(map.name) == module);
    let error = maps().map(|map| map.relative_error * map.energy).sum();
    ModuleReport::new(error, maps().map(|map| map.energy).sum()).with_fallbacks(maps().map(|map| map.fallbacks).sum())
}

/// The output bias under which the value bias does what it did: `b_O + v W_O - (v A) B`, with `v` the value bias of every
/// row. As it is where there is no product, no value bias, or no output bias that could take it.
fn output_bias(layer: &Layer<'_>, weights: &LayerWeights<Weight>) -> Result<Option<Vec<f32>>, Error> {
    let (Weight::Factorised(Factors { a, b }), Some(value_bias), Some(bias)) =
        (&weights.output.weight, &layer.weights.value.bias, &layer.weights.output.bias)
    else {
        return Ok(weights.output.bias.clone());
    };
    let rows = spread_value_bias(layer.config, value_bias);
    let rows = MatRef::from_row_major_slice(&rows, 1, rows.len());
    let exact = |matrix: &Matrix| widen(matrix);
    let lost = rows * exact(&layer.weights.output.weight) - rows * exact(a) * exact(b);
    let bias: Vec<f32> =
        bias.iter().zip(lost.row(0).iter()).map(|(&old, lost)| (f64::from(old) + lost) as f32).collect();
    place(layer, MapName::Output).check_finite("output.bias", &bias)?;
    Ok(Some(bias))
}

#[cfg(test)]
mod tests;
