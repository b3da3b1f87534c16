//! Whether what belongs to a layer fits together, before anything is computed from it.

use modegpt_architecture::{LayerShape, LayerWeights, Linear, MapShape, MlpKind, ModelConfig};
use modegpt_linalg::Gram;
use modegpt_statistics::{LayerGradients, LayerStatistics};

use crate::{
    Error, Layer, LayerPlan, ModelSummary, Module, Orders, Widths, matrices::Place, model_summary::field_error,
};

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

/// Checks weights, shape, statistics and gradients of a layer against the configuration and each other.
pub(crate) fn layer(layer: &Layer<'_>) -> Result<(), Error> {
    let &Layer { config, index, weights, shape, statistics, gradients } = layer;
    check_pairs(Module::QueryKey.of(layer), config, shape)?;
    check_weights(index, config, weights, shape)?;
    check_statistics(index, config, shape, statistics)?;
    gradients.map_or(Ok(()), |gradients| check_gradients(index, config, shape, gradients))
}

/// Checks the widths that a plan gives a layer.
pub(crate) fn plan(layer: &Layer<'_>, plan: &LayerPlan) -> Result<(), Error> {
    let place = format!("layers[{}]", layer.index);
    if plan.index != layer.index {
        return Err(field_error(format!("{place}.index"), layer.index, plan.index));
    }
    let model = ModelSummary::of(layer.config);
    model.check_widths(&place, plan.widths(), Widths::from(layer.shape))?;
    model.check_ranks(&place, Widths::from(layer.shape), &plan.ranks)
}

/// Checks that orders are those of this layer and reach as far as the plan goes.
pub(crate) fn orders(layer: &Layer<'_>, plan: &LayerPlan, orders: &Orders) -> Result<(), Error> {
    if let Some(units) = &orders.units {
        let place = Module::Mlp.of(layer);
        place.expect("an order of distinct hidden units", &true, &are_distinct(units, layer.shape.d_ff))?;
        let reaches = units.len() + plan.d_ff >= layer.shape.d_ff;
        place.expect("an order that reaches the width of the plan", &true, &reaches)?;
    }
    if let Some(pairs) = &orders.pairs {
        let place = Module::QueryKey.of(layer);
        let n_pairs = layer.shape.d_qk / 2;
        place.expect("lengths of the orders of pairs", &vec![n_pairs; layer.config.n_kv_heads], &lengths(pairs))?;
        let distinct = pairs.iter().all(|order| are_distinct(order, n_pairs));
        place.expect("orders of distinct pairs", &true, &distinct)?;
    }
    Ok(())
}

fn are_distinct(indices: &[usize], bound: usize) -> bool {
    let mut seen = vec![false; bound];
    indices.iter().all(|&index| index < bound && !std::mem::replace(&mut seen[index], true))
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
    if let Some(inputs) = &statistics.inputs {
        // The other two fit it and the heads: the statistics themselves were checked.
        check(Module::QueryKey, "statistic `inputs`", vec![config.d_model], std::slice::from_ref(&inputs.attention))?;
    }
    if let Some(magnitudes) = &statistics.magnitudes {
        let place = Place { layer, module: Module::QueryKey };
        place.expect("statistic `magnitudes`", &config.d_model, &magnitudes.attention.len())?;
    }
    check(Module::Mlp, "statistic `mlp`", vec![shape.d_ff], std::slice::from_ref(&statistics.mlp))?;
    check(Module::QueryKey, "statistic `query`", vec![shape.d_qk; config.n_heads], &statistics.query)?;
    check(Module::QueryKey, "statistic `key`", vec![shape.d_qk; config.n_kv_heads], &statistics.key)?;
    check(Module::ValueOutput, "statistic `value`", vec![shape.d_v; config.n_kv_heads], &statistics.value)
}

fn check_gradients(
    layer: usize,
    config: &ModelConfig,
    shape: &LayerShape,
    gradients: &LayerGradients,
) -> Result<(), Error> {
    gradients.check().map_err(|source| Error::Statistics { layer, source })?;
    if gradients.n_tokens == 0 {
        return Err(Error::NoTokens { layer });
    }
    let check = |module, name, expected: Vec<usize>, grams: &[Gram]| {
        let found: Vec<usize> = grams.iter().map(Gram::dim).collect();
        Place { layer, module }.expect(name, &expected, &found)
    };
    let n_gains = if config.is_rotary() { config.n_heads } else { 0 };
    let one = std::slice::from_ref;
    check(Module::Mlp, "gradient `residual`", vec![config.d_model], one(&gradients.residual))?;
    let attention = one(&gradients.attention_residual);
    check(Module::ValueOutput, "gradient `attention_residual`", vec![config.d_model], attention)?;
    check(Module::QueryKey, "gradient `query_gain`", vec![shape.d_qk; n_gains], &gradients.query_gain)?;
    check(Module::QueryKey, "gradient `query`", vec![shape.d_qk; config.n_heads], &gradients.query)
}

fn lengths(lists: &[Vec<usize>]) -> Vec<usize> {
    lists.iter().map(Vec::len).collect()
}
