//! Whether what belongs to a layer fits together, before anything is computed from it.

use modegpt_architecture::{LayerShape, LayerWeights, Linear, MapShape, MlpKind, ModelConfig};
use modegpt_linalg::Gram;
use modegpt_statistics::LayerStatistics;

use crate::{Error, LayerPlan, ModelSummary, Module, Widths, matrices::Place, model_summary::field_error};

/// Refuses a model that holds a map as a product, before anything is spent on it.
///
/// Multiplied out such a model would be larger than it is, often larger than what decomposition then makes of it.
///
/// # Errors
/// [`Error::Factorised`], naming the first such map.
pub fn check_dense(config: &ModelConfig) -> Result<(), Error> {
    match config.first_factorised() {
        Some((layer, MapShape { name, rank: Some(rank), .. })) => Err(Error::Factorised { layer, name, rank }),
        _ => Ok(()),
    }
}

/// Checks weights, shape, statistics and plan of layer `layer` against the configuration and each other.
pub(crate) fn layer(
    config: &ModelConfig,
    layer: usize,
    weights: &LayerWeights,
    before: &LayerShape,
    statistics: &LayerStatistics,
    plan: &LayerPlan,
) -> Result<(), Error> {
    check_plan(config, layer, before, plan)?;
    check_pairs(Place { layer, module: Module::QueryKey }, config, before)?;
    check_weights(layer, config, weights, before)?;
    check_statistics(layer, config, before, statistics)
}

fn check_plan(config: &ModelConfig, layer: usize, before: &LayerShape, plan: &LayerPlan) -> Result<(), Error> {
    let place = format!("layers[{layer}]");
    if plan.index != layer {
        return Err(field_error(format!("{place}.index"), layer, plan.index));
    }
    ModelSummary::of(config).check_widths(&place, plan.widths(), Widths::from(before))
}

fn check_pairs(place: Place, config: &ModelConfig, before: &LayerShape) -> Result<(), Error> {
    let n_pairs = before.d_qk / 2;
    let Some(pairs) = before.rotary_pairs.as_ref() else {
        if config.is_rotary() {
            place.expect("width of queries without a list of rotary pairs", &config.d_head, &before.d_qk)?;
        }
        return Ok(());
    };
    place.expect("rotary positions, as the shape lists pairs", &true, &config.is_rotary())?;
    place.expect("lengths of the lists of rotary pairs", &vec![n_pairs; config.n_kv_heads], &lengths(pairs))?;
    let valid = |pairs: &Vec<usize>| {
        pairs.is_sorted_by(|a, b| a < b) && pairs.last().is_none_or(|&pair| pair < config.d_head / 2)
    };
    match pairs.iter().find(|pairs| !valid(pairs)) {
        Some(pairs) => {
            let expected = format!("ascending numbers below {}", config.d_head / 2);
            Err(place.mismatch("rotary pairs", expected, format!("{pairs:?}")))
        }
        None => Ok(()),
    }
}

fn check_weights(layer: usize, config: &ModelConfig, weights: &LayerWeights, shape: &LayerShape) -> Result<(), Error> {
    let mlp = Place { layer, module: Module::Mlp };
    mlp.expect("a gate", &(config.mlp == MlpKind::Gated), &weights.gate.is_some())?;
    for (name, linear) in weights.linears() {
        let (module, d_in, d_out) = match name {
            "query" => (Module::QueryKey, config.d_model, config.n_heads * shape.d_qk),
            "key" => (Module::QueryKey, config.d_model, config.n_kv_heads * shape.d_qk),
            "value" => (Module::ValueOutput, config.d_model, config.n_kv_heads * shape.d_v),
            "output" => (Module::ValueOutput, config.n_heads * shape.d_v, config.d_model),
            "down" => (Module::Mlp, shape.d_ff, config.d_model),
            _ => (Module::Mlp, config.d_model, shape.d_ff),
        };
        check_linear(Place { layer, module }, name, linear, d_in, d_out)?;
    }
    Ok(())
}

fn check_linear(place: Place, name: &'static str, linear: &Linear, d_in: usize, d_out: usize) -> Result<(), Error> {
    let Linear { weight, bias } = linear;
    place.expect(name, &(d_in, d_out), &(weight.rows, weight.cols))?;
    place.expect(name, &(d_in * d_out), &weight.data.len())?;
    place.check_finite(name, &weight.data)?;
    let Some(bias) = bias else { return Ok(()) };
    place.expect(name, &d_out, &bias.len())?;
    place.check_finite(name, bias)
}

fn check_statistics(
    layer: usize,
    config: &ModelConfig,
    shape: &LayerShape,
    statistics: &LayerStatistics,
) -> Result<(), Error> {
    statistics.check().map_err(|source| Error::Statistics { layer, source })?;
    if statistics.n_tokens == 0 {
        return Err(Error::NoTokens { layer });
    }
    let check = |module, name, expected: Vec<usize>, grams: &[Gram]| {
        let found: Vec<usize> = grams.iter().map(Gram::dim).collect();
        Place { layer, module }.expect(name, &expected, &found)
    };
    check(Module::Mlp, "statistic `mlp`", vec![shape.d_ff], std::slice::from_ref(&statistics.mlp))?;
    check(Module::QueryKey, "statistic `query`", vec![shape.d_qk; config.n_heads], &statistics.query)?;
    check(Module::QueryKey, "statistic `key`", vec![shape.d_qk; config.n_kv_heads], &statistics.key)?;
    check(Module::ValueOutput, "statistic `value`", vec![shape.d_v; config.n_kv_heads], &statistics.value)
}

fn lengths(lists: &[Vec<usize>]) -> Vec<usize> {
    lists.iter().map(Vec::len).collect()
}
