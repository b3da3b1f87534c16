//! Type II, queries and keys.
//!
//! In the paper matching columns are kept by score (CR decomposition), and nothing is refitted. One selection serves a key head and all query heads `j` that share it:
//!
//! ```text
//! without rotation  s_i² = (Σ_j C_Q,j)_ii (C_K)_ii
//! with rotation     s_p  = e_Q(p) e_K(p),  e(p) = C_pp + C_p+h,p+h       h = half the present width
//! ```
//!
//! Rotation turns coordinates `p` and `p + h` into each other, so pairs are kept or dropped whole; their energies are
//! the same before and after it. The kept width is laid out in the same two halves, `[J, J + h]`. Biases are sliced with
//! their columns. Algorithm 2 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).
//!
//! Better is to look at what errors of the logits do, and to let what is kept make good what is lost: [`rotary`] and,
//! without rotation, [`joint`].

mod joint;
mod rotary;

use modegpt_architecture::{LayerShape, Linear};
use modegpt_linalg::{Gram, cr_error, cr_scores, rotary_pair_scores, top_k};

use crate::{
    Error, ErrorCurve, Layer, Methods, Module, ModuleReport, QueryKeyMethod, Ridges, matrices::select_outputs,
    method::slice::kept_channels,
};

/// The compressed query and key maps.
pub(crate) struct QueryKey {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    /// Which pairs of the original head each kv head keeps.
    pub(crate) rotary_pairs: Option<Vec<Vec<usize>>>,
    pub(crate) report: ModuleReport,
}

/// Reduces queries and keys to `d_qk` columns a head.
///
/// - `d_qk` is from 1 to the present width, an even number where positions are rotary; at the present width nothing changes.
/// - `orders`: for each kv head its rotary pairs in the order of their elimination, if it is known already
pub(crate) fn compress(
    layer: &Layer<'_>,
    d_qk: usize,
    methods: Methods,
    ridges: Ridges,
    orders: Option<&[Vec<usize>]>,
) -> Result<QueryKey, Error> {
    if d_qk == layer.shape.d_qk {
        return Ok(QueryKey {
            query: layer.weights.query.clone(),
            key: layer.weights.key.clone(),
            rotary_pairs: layer.shape.rotary_pairs.clone(),
            report: ModuleReport::unchanged(),
        });
    }
    match (methods.query_key, layer.config.is_rotary()) {
        (QueryKeyMethod::Refit, true) => rotary::compress(layer, d_qk, ridges, orders),
        (QueryKeyMethod::Refit, false) => joint::compress(layer, d_qk),
        (method, _) => keep(layer, &kept_by_score(layer, d_qk, method)?),
    }
}

/// For each kv head the order in which its rotary pairs go.
type PairOrders = Vec<Vec<usize>>;

/// What query and key would lose at each of `widths`, and with rotary positions the order in which pairs go.
///
/// # Errors
/// Those of [`compress`], and [`Error::Mismatch`] if the effects of errors of the logits were not collected.
pub(crate) fn curve(
    layer: &Layer<'_>,
    widths: &[usize],
    methods: Methods,
    ridges: Ridges,
) -> Result<(ErrorCurve, Option<PairOrders>), Error> {
    let (errors, orders) = match (methods.query_key, layer.config.is_rotary()) {
        (QueryKeyMethod::Refit, true) => {
            let (errors, orders) = rotary::errors(layer, widths, ridges)?;
            (errors, Some(orders))
        }
        (QueryKeyMethod::Refit, false) => (joint::errors(layer, widths)?, None),
        (method, true) => (rotary::errors_by_score(layer, widths, method)?, None),
        (method, false) => (joint::errors_by_score(layer, widths, method)?, None),
    };
    Ok((ErrorCurve { widths: widths.to_vec(), errors }, orders))
}

/// Share of all that the logits do at which the first order tells half of the loss.
///
/// Chosen on stories260k, whose heads have four pairs: without the correction nearly all of them went, at `ρ` from 0.3 to
/// 0.9, and the model was worse than by the paper's methods. Where `ρ` stays below 0.1, as in SmolLM2-135M and
/// opt-tiny-stories at 30 %, it changes next to nothing.
const LARGE_SHARE: f64 = 0.25;

/// An error of the logits that is linear in what was lost, raised where so much is lost that the first order tells too
/// little of it:
///
/// ```text
/// error (1 + (ρ / 0.25)⁴),      ρ = error / (what the logits do in all)
/// ```
fn beyond_first_order(error: f64, energy: f64) -> f64 {
    let share = if energy > 0.0 { error.max(0.0) / energy } else { 0.0 };
    error * (1.0 + (share / LARGE_SHARE).powi(4))
}

/// Keeps these columns of each kv head and of the query heads that share it, as they are.
fn keep(layer: &Layer<'_>, kept_of_heads: &[Vec<usize>]) -> Result<QueryKey, Error> {
    let &Layer { config, shape: before, statistics, .. } = layer;
    let (mut error, mut energy) = (0.0, 0.0);
    for (kv_head, kept) in kept_of_heads.iter().enumerate() {
        let query_gram = group_gram(layer, &statistics.query, kv_head)?;
        let key_gram = &statistics.key[kv_head];
        let all: Vec<usize> = (0..before.d_qk).collect();
        let dropped: Vec<usize> = all.iter().copied().filter(|column| !kept.contains(column)).collect();
        error += cr_error(&query_gram, key_gram, &dropped);
        energy += cr_error(&query_gram, key_gram, &all);
    }
    let (query, key) = (&layer.weights.query, &layer.weights.key);
    Ok(QueryKey {
        query: select_outputs(query, &columns(layer, config.n_heads, kept_of_heads)),
        key: select_outputs(key, &columns(layer, config.n_kv_heads, kept_of_heads)),
        rotary_pairs: config.is_rotary().then(|| compose_pairs(before, kept_of_heads)),
        report: ModuleReport::new(error, energy),
    })
}

/// For each kv head the columns of the largest score: those of a plain slice, else the paper's.
fn kept_by_score(layer: &Layer<'_>, d_qk: usize, method: QueryKeyMethod) -> Result<Vec<Vec<usize>>, Error> {
    if let Some(score) = method.score() {
        let rotary = layer.config.is_rotary();
        let scores = score.of_query_key(layer)?;
        return Ok(scores.iter().map(|scores| kept_channels(scores, d_qk, rotary)).collect());
    }
    let kept = |kv_head: usize| {
        let query_gram = group_gram(layer, &layer.statistics.query, kv_head)?;
        Ok(select(&query_gram, &layer.statistics.key[kv_head], d_qk, layer.config.is_rotary()))
    };
    (0..layer.config.n_kv_heads).map(kept).collect()
}

/// The columns of a map with `n_heads` heads, given those that each kv head keeps.
fn columns(layer: &Layer<'_>, n_heads: usize, kept_of_heads: &[Vec<usize>]) -> Vec<usize> {
    let heads_of_key = n_heads / layer.config.n_kv_heads;
    let width = layer.shape.d_qk;
    let columns_of = |head: usize| kept_of_heads[head / heads_of_key].iter().map(move |&i| head * width + i);
    (0..n_heads).flat_map(columns_of).collect()
}

/// The sum of the Gram matrices of the query heads that share a kv head.
fn group_gram(layer: &Layer<'_>, grams: &[Gram], kv_head: usize) -> Result<Gram, Error> {
    let group = layer.config.group_size();
    sum(&grams[kv_head * group..(kv_head + 1) * group]).map_err(|error| Module::QueryKey.of(layer).numerics(error))
}

/// For each query head the metric of errors of its logits, without gradients with the number of tokens that it sums over.
fn logit_effects<'a>(layer: &Layer<'a>) -> Result<(&'a [Gram], u64), Error> {
    if layer.statistics.logit.is_empty() || layer.statistics.logit_queries == 0 {
        let place = Module::QueryKey.of(layer);
        return Err(place.mismatch("statistic `logit`", "one for each query head", "statistics collected without it"));
    }
    Ok((&layer.statistics.logit, layer.statistics.logit_queries))
}

/// The columns of a head to keep: ascending, or with rotation both halves ascending.
fn select(query_gram: &Gram, key_gram: &Gram, d_qk: usize, rotary: bool) -> Vec<usize> {
    let (query, key) = (query_gram.diagonal(), key_gram.diagonal());
    if !rotary {
        return top_k(&cr_scores(&query, &key), d_qk);
    }
    let pairs = top_k(&rotary_pair_scores(&query, &key), d_qk / 2);
    let half = query.len() / 2;
    pairs.iter().copied().chain(pairs.iter().map(|pair| pair + half)).collect()
}

/// Pairs of the original head: those of `before`, of which `kept` names positions.
fn compose_pairs(before: &LayerShape, kept_of_heads: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let compose = |(head, kept): (usize, &Vec<usize>)| {
        let pairs = &kept[..kept.len() / 2];
        match &before.rotary_pairs {
            Some(original) => pairs.iter().map(|&pair| original[head][pair]).collect(),
            None => pairs.to_vec(),
        }
    };
    kept_of_heads.iter().enumerate().map(compose).collect()
}

fn sum(grams: &[Gram]) -> Result<Gram, modegpt_linalg::Error> {
    let mut sum = Gram::zeros(grams.first().map_or(0, Gram::dim));
    for gram in grams {
        sum.add(gram)?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::*;
    use modegpt_architecture::{LayerWeights, ModelConfig};

    use crate::testing::{Random, TinyModel, assert_close, forward, layer, statistics};

    fn tokens(model: &TinyModel) -> Mat<f64> {
        Random::new(7).mat(60, model.d_model)
    }

    fn compress_tiny(model: &TinyModel, d_qk: usize) -> (ModelConfig, LayerWeights, QueryKey) {
        let (config, weights) = (model.config(), model.weights(8));
        let statistics = statistics(&config, &weights, tokens(model).as_ref());
        let whole = layer(2, &config, &weights, &statistics);
        let compressed = compress(&whole, d_qk, Methods::PAPER, Ridges::default(), None).expect("fine");
        (config, weights, compressed)
    }

    /// Turns columns `p` and `p + h` of row `t` by `t` times the frequency of the original pair.
    fn rotate(config: &ModelConfig, rows: &Mat<f64>, pairs: &[usize]) -> Mat<f64> {
        let (frequencies, half) = (config.rotary_frequencies(), pairs.len());
        Mat::from_fn(rows.nrows(), rows.ncols(), |t, col| {
            let (sin, cos) = (t as f64 * frequencies[pairs[col % half]]).sin_cos();
            let (first, second) = (rows[(t, col % half)], rows[(t, col % half + half)]);
            if col < half { first * cos - second * sin } else { second * cos + first * sin }
        })
    }

    /// Which column of its head each column of `compressed` was.
    fn columns_kept(original: &Linear, compressed: &Linear, n_heads: usize) -> Vec<Vec<usize>> {
        let (before, after) = (original.weight.cols / n_heads, compressed.weight.cols / n_heads);
        let column = |linear: &Linear, col: usize| linear.weight.column_range(col, col + 1);
        let find = |head: usize, col: usize| {
            let wanted = column(compressed, head * after + col);
            (0..before).find(|&old| column(original, head * before + old) == wanted).expect("a column of the same head")
        };
        (0..n_heads).map(|head| (0..after).map(|col| find(head, col)).collect()).collect()
    }

    #[test]
    fn groups_share_one_selection_and_biases_follow() {
        for model in [TinyModel { biases: true, ..TinyModel::default() }, TinyModel::llama(), TinyModel::opt()] {
            let (config, weights, compressed) = compress_tiny(&model, 4);
            let query = columns_kept(&weights.query, &compressed.query, config.n_heads);
            let key = columns_kept(&weights.key, &compressed.key, config.n_kv_heads);
            for (head, kept) in query.iter().enumerate() {
                assert_eq!(kept, &key[head / config.group_size()]);
            }
            if let (Some(bias), Some(original)) = (&compressed.query.bias, &weights.query.bias) {
                let expected: Vec<f32> = query
                    .iter()
                    .enumerate()
                    .flat_map(|(head, kept)| kept.iter().map(move |&c| original[head * 8 + c]))
                    .collect();
                assert_eq!(bias, &expected);
            }
            assert_eq!(compressed.query.bias.is_some(), model.biases);
        }
    }

    #[test]
    fn columns_of_largest_norm_product_are_kept() {
        let model = TinyModel::default();
        let (config, weights, compressed) = compress_tiny(&model, 3);
        let x = tokens(&model);
        let (query, key) = (forward(&weights.query, x.as_ref(), true), forward(&weights.key, x.as_ref(), true));
        for (kv_head, kept) in columns_kept(&weights.key, &compressed.key, config.n_kv_heads).iter().enumerate() {
            let score = |col: usize| {
                let energy = |head: usize| query.col(head * 8 + col).squared_norm_l2();
                let heads = kv_head * config.group_size()..(kv_head + 1) * config.group_size();
                heads.map(energy).sum::<f64>() * key.col(kv_head * 8 + col).squared_norm_l2()
            };
            let lowest_kept = kept.iter().map(|&col| score(col)).fold(f64::INFINITY, f64::min);
            let higher = (0..8).filter(|&col| score(col) > lowest_kept).count();
            assert_eq!((kept.len(), higher), (3, 2));
        }
    }

    #[test]
    fn error_is_that_of_all_products_of_queries_and_keys() {
        let model = TinyModel { biases: true, ..TinyModel::default() };
        let (config, weights, compressed) = compress_tiny(&model, 5);
        let x = tokens(&model);
        let rows = |linear: &Linear| forward(linear, x.as_ref(), true);
        let (query, key) = (rows(&weights.query), rows(&weights.key));
        let (small_query, small_key) = (rows(&compressed.query), rows(&compressed.key));
        let (mut error, mut energy) = (0.0, 0.0);
        for head in 0..config.n_heads {
            let kv_head = head / config.group_size();
            let exact = query.subcols(head * 8, 8) * key.subcols(kv_head * 8, 8).transpose();
            let found = small_query.subcols(head * 5, 5) * small_key.subcols(kv_head * 5, 5).transpose();
            error += (&exact - found).squared_norm_l2();
            energy += exact.squared_norm_l2();
        }
        let direct = error / energy;
        assert!(
            (compressed.report.relative_error - direct).abs() < 1e-10,
            "{} {direct}",
            compressed.report.relative_error
        );
    }

    /// The kept pairs, rotated with their own frequencies, give their part of the full logits at every two positions.
    #[test]
    fn rotated_logits_are_those_of_the_kept_pairs() {
        let model = TinyModel::llama();
        let (config, weights, compressed) = compress_tiny(&model, 4);
        let x = tokens(&model);
        let pairs = compressed.rotary_pairs.as_ref().expect("rotary");
        let kept = columns_kept(&weights.key, &compressed.key, config.n_kv_heads);
        for head in 0..config.n_heads {
            let kv_head = head / config.group_size();
            let whole: Vec<usize> =
                pairs[kv_head].iter().copied().chain(pairs[kv_head].iter().map(|p| p + 4)).collect();
            assert_eq!(kept[kv_head], whole);
            let small = |linear: &Linear, head: usize| {
                let rows = forward(linear, x.as_ref(), true).subcols(head * 4, 4).to_owned();
                rotate(&config, &rows, &pairs[kv_head])
            };
            let full = |linear: &Linear, head: usize| {
                let rows = forward(linear, x.as_ref(), true).subcols(head * 8, 8).to_owned();
                let mut rotated = rotate(&config, &rows, &[0, 1, 2, 3]);
                for col in (0..8).filter(|col| !whole.contains(col)) {
                    rotated.col_mut(col).fill(0.0);
                }
                rotated
            };
            let found = small(&compressed.query, head) * small(&compressed.key, kv_head).transpose();
            let expected = full(&weights.query, head) * full(&weights.key, kv_head).transpose();
            assert_close(found.as_ref(), expected.as_ref(), 1e-12);
        }
    }

    #[test]
    fn compressing_again_composes_pairs() {
        let model = TinyModel { d_head: 16, ..TinyModel::llama() };
        let (config, weights, first) = compress_tiny(&model, 10);
        let shape = LayerShape { d_qk: 10, rotary_pairs: first.rotary_pairs.clone(), ..config.layers[0].clone() };
        let small = LayerWeights { query: first.query, key: first.key, ..weights.clone() };
        let statistics = statistics(&config, &small, tokens(&model).as_ref());
        let small = Layer { shape: &shape, ..layer(2, &config, &small, &statistics) };
        let again = compress(&small, 4, Methods::PAPER, Ridges::default(), None).expect("fine");
        let pairs = again.rotary_pairs.expect("rotary");
        // Read off the weights: the columns that are left are those of the original pairs.
        for (head, kept) in columns_kept(&weights.key, &again.key, config.n_kv_heads).iter().enumerate() {
            assert_eq!(kept[..2], pairs[head]);
            assert_eq!(kept[2..], pairs[head].iter().map(|pair| pair + 8).collect::<Vec<_>>());
        }
        let direct = compress_tiny(&model, 4).2;
        assert_eq!((direct.rotary_pairs, direct.key, direct.query), (Some(pairs), again.key, again.query));
    }
}
