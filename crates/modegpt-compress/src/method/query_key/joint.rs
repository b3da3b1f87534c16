//! Queries and keys without rotation: nothing stands between them, so their product is approximated optimally.
//!
//! ```text
//! W_Q,j' = W_Q,j A,   W_K' = W_K B        minimising  Σ tr( C_Q (I - A Bᵀ) S (I - A Bᵀ)ᵀ )
//! ```
//!
//! with `C_Q` the Gram matrix of the queries and `S` the metric of errors of the logits in the coordinates of the keys: what
//! they do to the output of attention, or to the loss if there are gradients ([`joint_query_key`]). The softmax does not
//! see what all keys have in common, and neither does `S`. Biases are multiplied as the weights are.

use faer::{Mat, MatRef};
use modegpt_architecture::Linear;
use modegpt_linalg::{Gram, JointQueryKey, joint_query_key};

use super::{QueryKey, beyond_first_order, group_gram, kept_by_score, logit_effects};
use crate::{
    Error, Layer, Module, ModuleReport, QueryKeyMethod,
    matrices::{Place, widen},
};

/// `S` of a kv head, and the number that errors are divided by beside the number of tokens.
fn key_metric(layer: &Layer<'_>, kv_head: usize) -> Result<(Gram, u64), Error> {
    if let Some(gradients) = layer.gradients {
        return Ok((group_gram(layer, &gradients.query, kv_head)?, 1));
    }
    let (effects, n_queries) = logit_effects(layer)?;
    Ok((group_gram(layer, effects, kv_head)?, n_queries))
}

fn factors(layer: &Layer<'_>, kv_head: usize, rank: usize) -> Result<JointQueryKey, Error> {
    let group = layer.config.group_size();
    let queries: Vec<&Gram> = layer.statistics.query[kv_head * group..(kv_head + 1) * group].iter().collect();
    let (metric, _) = key_metric(layer, kv_head)?;
    joint_query_key(&queries, &metric, rank).map_err(|error| Module::QueryKey.of(layer).numerics(error))
}

pub(super) fn compress(layer: &Layer<'_>, d_qk: usize) -> Result<QueryKey, Error> {
    let place = Module::QueryKey.of(layer);
    let (config, before) = (layer.config, layer.shape.d_qk);
    let (mut query_maps, mut key_maps) = (Vec::new(), Vec::new());
    let (mut error, mut energy, mut condition, mut attempts) = (0.0, 0.0, 0.0f64, 0);
    for kv_head in 0..config.n_kv_heads {
        let factors = factors(layer, kv_head, d_qk)?;
        error += factors.error;
        energy += factors.spectrum.iter().sum::<f64>();
        condition = condition.max(factors.condition);
        attempts += factors.jitter.attempts;
        query_maps.extend(vec![factors.query; config.group_size()]);
        key_maps.push(factors.key);
    }
    Ok(QueryKey {
        query: through(place, "query", &layer.weights.query, &query_maps, before)?,
        key: through(place, "key", &layer.weights.key, &key_maps, before)?,
        rotary_pairs: None,
        report: ModuleReport::new(error, energy).with_condition(condition).with_fallbacks(attempts),
    })
}

/// Errors of a token at each of `widths`.
pub(super) fn errors(layer: &Layer<'_>, widths: &[usize]) -> Result<Vec<f64>, Error> {
    let mut totals = vec![0.0; widths.len()];
    for kv_head in 0..layer.config.n_kv_heads {
        let spectrum = factors(layer, kv_head, layer.shape.d_qk)?.spectrum;
        let (_, divisor) = key_metric(layer, kv_head)?;
        for (total, &width) in totals.iter_mut().zip(widths) {
            let (lost, all) = (spectrum[width..].iter().sum(), spectrum.iter().sum());
            *total += beyond_first_order(lost, all) / divisor as f64;
        }
    }
    Ok(totals.into_iter().map(|error| layer.per_token(error, layer.statistics.n_tokens)).collect())
}

/// Errors of a token at each of `widths` if columns are kept by score.
pub(super) fn errors_by_score(layer: &Layer<'_>, widths: &[usize], method: QueryKeyMethod) -> Result<Vec<f64>, Error> {
    let error = |&width: &usize| {
        let mut total = 0.0;
        for (kv_head, kept) in kept_by_score(layer, width, method)?.iter().enumerate() {
            let queries = group_gram(layer, &layer.statistics.query, kv_head)?;
            let (metric, divisor) = key_metric(layer, kv_head)?;
            let lost: Vec<usize> = (0..layer.shape.d_qk).filter(|column| !kept.contains(column)).collect();
            let product = |(i, j): (usize, usize)| queries.get(i, j) * metric.get(i, j);
            let among = |columns: &[usize]| -> f64 {
                columns.iter().flat_map(|&i| columns.iter().map(move |&j| (i, j))).map(product).sum()
            };
            let all: Vec<usize> = (0..layer.shape.d_qk).collect();
            total += beyond_first_order(among(&lost), among(&all)) / divisor as f64;
        }
        Ok(layer.per_token(total, layer.statistics.n_tokens))
    };
    widths.iter().map(error).collect()
}

/// The map whose heads, `width` columns each, are multiplied by `maps`.
fn through(
    place: Place,
    name: &'static str,
    linear: &Linear,
    maps: &[Mat<f64>],
    width: usize,
) -> Result<Linear, Error> {
    let multiply = |rows: MatRef<'_, f64>| {
        let narrow = maps[0].ncols();
        let mut product = Mat::zeros(rows.nrows(), maps.len() * narrow);
        for (head, map) in maps.iter().enumerate() {
            product.subcols_mut(head * narrow, narrow).copy_from(rows.subcols(head * width, width) * map);
        }
        product
    };
    let bias = linear.bias.as_ref().map(|bias| {
        let row = Mat::from_fn(1, bias.len(), |_, col| f64::from(bias[col]));
        place.round(name, multiply(row.as_ref()).as_ref()).map(|row| row.data)
    });
    let weight = place.round(name, multiply(widen(&linear.weight).as_ref()).as_ref())?;
    Ok(Linear { weight, bias: bias.transpose()? })
}

#[cfg(test)]
mod tests;
