//! Rotary pairs eliminated one at a time, and complex gains for those that stay.
//!
//! A gain on a pair of the query commutes with the rotation, so it goes into the query map and costs nothing:
//!
//! ```text
//! W_Q[:, p]   ← a_p W_Q[:, p] - b_p W_Q[:, p+h]
//! W_Q[:, p+h] ← b_p W_Q[:, p] + a_p W_Q[:, p+h]
//! ```
//!
//! Pairs and gains minimise what the errors of the logits do: to the output of attention, or to the loss if there are
//! gradients ([`eliminate_pairs`], [`refit_gains`]).

use modegpt_architecture::{Linear, Matrix};
use modegpt_linalg::{Gains, Gram, PairElimination, eliminate_pairs, refit_gains};

use super::{QueryKey, beyond_first_order, columns, compose_pairs, kept_by_score, logit_effects};
use crate::{
    Error, Layer, Module, ModuleReport, QueryKeyMethod, Ridges,
    matrices::{Place, select_outputs},
};

/// For each query head the metric of the coordinates of its logits, and the number of tokens that errors are divided by.
fn metrics<'a>(layer: &Layer<'a>) -> Result<(&'a [Gram], u64), Error> {
    match layer.gradients {
        Some(gradients) => Ok((&gradients.query_gain, 1)),
        None => logit_effects(layer),
    }
}

pub(super) fn compress(
    layer: &Layer<'_>,
    d_qk: usize,
    ridges: Ridges,
    orders: Option<&[Vec<usize>]>,
) -> Result<QueryKey, Error> {
    let place = Module::QueryKey.of(layer);
    let config = layer.config;
    let group = config.group_size();
    let (metrics, _) = metrics(layer)?;
    let half = layer.shape.d_qk / 2;
    let (mut kept_of_heads, mut gains) = (Vec::new(), Vec::new());
    let (mut error, mut energy, mut attempts) = (0.0, 0.0, 0);
    for kv_head in 0..config.n_kv_heads {
        let grams = &metrics[kv_head * group..(kv_head + 1) * group];
        let pairs = match orders {
            Some(orders) => last_of(&orders[kv_head], d_qk / 2),
            None => eliminate(place, grams, ridges)?.kept(d_qk / 2),
        };
        for gram in grams {
            let refitted = refit_gains(gram, &pairs, ridges.gains).map_err(|error| place.numerics(error))?;
            error += refitted.error;
            energy += logit_energy(gram);
            attempts += refitted.jitter.attempts;
            gains.push(refitted);
        }
        kept_of_heads.push(pairs.iter().copied().chain(pairs.iter().map(|pair| pair + half)).collect());
    }
    let query = select_outputs(&layer.weights.query, &columns(layer, config.n_heads, &kept_of_heads));
    Ok(QueryKey {
        query: with_gains(place, &query, &gains)?,
        key: select_outputs(&layer.weights.key, &columns(layer, config.n_kv_heads, &kept_of_heads)),
        rotary_pairs: Some(compose_pairs(layer.shape, &kept_of_heads)),
        report: ModuleReport::new(error, energy).with_fallbacks(attempts),
    })
}

/// Errors of a token at each of `widths`, and for each kv head the order in which its pairs go.
pub(super) fn errors(
    layer: &Layer<'_>,
    widths: &[usize],
    ridges: Ridges,
) -> Result<(Vec<f64>, Vec<Vec<usize>>), Error> {
    let place = Module::QueryKey.of(layer);
    let (metrics, n_tokens) = metrics(layer)?;
    let heads = metrics.chunks_exact(layer.config.group_size());
    let heads = heads.map(|grams| eliminate(place, grams, ridges)).collect::<Result<Vec<_>, _>>()?;
    let error = |&width: &usize| heads.iter().map(|head| beyond_first_order(head.errors[width / 2], head.energy)).sum();
    let errors = widths.iter().map(|width| layer.per_token(error(width), n_tokens)).collect();
    Ok((errors, heads.into_iter().map(|head| head.order).collect()))
}

/// Errors of a token at each of `widths` if pairs are kept by score and nothing is refitted.
pub(super) fn errors_by_score(layer: &Layer<'_>, widths: &[usize], method: QueryKeyMethod) -> Result<Vec<f64>, Error> {
    let (metrics, n_tokens) = metrics(layer)?;
    let (group, half) = (layer.config.group_size(), layer.shape.d_qk / 2);
    let error = |&width: &usize| {
        let kept = kept_by_score(layer, width, method)?;
        let of_head = |(head, gram): (usize, &Gram)| {
            let lost: Vec<usize> = (0..half).filter(|pair| !kept[head / group].contains(pair)).collect();
            let pairs = lost.iter().flat_map(|&i| lost.iter().map(move |&j| (i, j)));
            beyond_first_order(pairs.map(|(i, j)| gram.get(i, j)).sum(), logit_energy(gram))
        };
        Ok(layer.per_token(metrics.iter().enumerate().map(of_head).sum(), n_tokens))
    };
    widths.iter().map(error).collect()
}

fn eliminate(place: Place, grams: &[Gram], ridges: Ridges) -> Result<PairElimination, Error> {
    let grams: Vec<&Gram> = grams.iter().collect();
    eliminate_pairs(&grams, ridges.gains).map_err(|error| place.numerics(error))
}

/// The error if nothing is kept: `c₀ H c₀ᵀ` with `c₀ = [1, …, 0, …]`.
fn logit_energy(gram: &Gram) -> f64 {
    let half = gram.dim() / 2;
    (0..half).flat_map(|i| (0..half).map(move |j| (i, j))).map(|(i, j)| gram.get(i, j)).sum()
}

/// The last `k` of `order`, ascending.
fn last_of(order: &[usize], k: usize) -> Vec<usize> {
    let mut kept = order[order.len() - k..].to_vec();
    kept.sort_unstable();
    kept
}

/// Multiplies the pairs of every head by its gains.
fn with_gains(place: Place, query: &Linear, gains: &[Gains]) -> Result<Linear, Error> {
    let turn = |row: &[f32]| -> Vec<f32> {
        let width = row.len() / gains.len();
        let mut turned = Vec::with_capacity(row.len());
        for (head, gains) in row.chunks_exact(width).zip(gains) {
            let (first, second) = head.split_at(width / 2);
            let pairs = || first.iter().zip(second).zip(gains.real.iter().zip(&gains.imaginary));
            let wide = |value: &f32| f64::from(*value);
            turned.extend(pairs().map(|((x, y), (a, b))| (a * wide(x) - b * wide(y)) as f32));
            turned.extend(pairs().map(|((x, y), (a, b))| (b * wide(x) + a * wide(y)) as f32));
        }
        turned
    };
    let Matrix { rows, cols, .. } = query.weight;
    let data: Vec<f32> = (0..rows).flat_map(|row| turn(query.weight.row(row))).collect();
    let bias = query.bias.as_deref().map(turn);
    place.check_finite("query", &data)?;
    place.check_finite("query.bias", bias.as_deref().unwrap_or_default())?;
    Ok(Linear { weight: Matrix::new(rows, cols, data), bias })
}

#[cfg(test)]
mod tests;
