//! Type II, queries and keys: matching columns are kept by score (CR decomposition), nothing is refitted.
//!
//! One selection serves a key head and all query heads `j` that share it:
//!
//! ```text
//! without rotation  s_i² = (Σ_j C_Q,j)_ii (C_K)_ii
//! with rotation     s_p  = e_Q(p) e_K(p),  e(p) = C_pp + C_p+h,p+h       h = half the present width
//! ```
//!
//! Rotation turns coordinates `p` and `p + h` into each other, so pairs are kept or dropped whole; their energies are
//! the same before and after it. The kept width is laid out in the same two halves, `[J, J + h]`. Biases are sliced with
//! their columns. Algorithm 2 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).

use modegpt_architecture::{LayerShape, LayerWeights, Linear, ModelConfig};
use modegpt_linalg::{Gram, cr_error, cr_scores, rotary_pair_scores, top_k};
use modegpt_statistics::LayerStatistics;

use crate::{
    Error, ModuleReport,
    matrices::{Place, select_outputs},
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
/// `d_qk` is from 1 to the present width, an even number where positions are rotary; at the present width nothing changes.
pub(crate) fn compress(
    place: Place,
    config: &ModelConfig,
    weights: &LayerWeights,
    before: &LayerShape,
    statistics: &LayerStatistics,
    d_qk: usize,
) -> Result<QueryKey, Error> {
    let (query, key) = (&weights.query, &weights.key);
    if d_qk == before.d_qk {
        let report = ModuleReport::unchanged();
        return Ok(QueryKey {
            query: query.clone(),
            key: key.clone(),
            rotary_pairs: before.rotary_pairs.clone(),
            report,
        });
    }
    let group_size = config.group_size();
    let (mut error, mut energy) = (0.0, 0.0);
    let mut kept_of_heads = Vec::with_capacity(config.n_kv_heads);
    for (query_grams, key_gram) in statistics.query.chunks_exact(group_size).zip(&statistics.key) {
        let query_gram = sum(query_grams).map_err(|error| place.numerics(error))?;
        let kept = select(&query_gram, key_gram, d_qk, config.is_rotary());
        let all: Vec<usize> = (0..before.d_qk).collect();
        let dropped: Vec<usize> = all.iter().copied().filter(|column| !kept.contains(column)).collect();
        error += cr_error(&query_gram, key_gram, &dropped);
        energy += cr_error(&query_gram, key_gram, &all);
        kept_of_heads.push(kept);
    }
    let columns = |n_heads: usize| -> Vec<usize> {
        let heads_of_key = n_heads / config.n_kv_heads;
        let columns_of = |head: usize| kept_of_heads[head / heads_of_key].iter().map(move |&i| head * before.d_qk + i);
        (0..n_heads).flat_map(columns_of).collect()
    };
    Ok(QueryKey {
        query: select_outputs(query, &columns(config.n_heads)),
        key: select_outputs(key, &columns(config.n_kv_heads)),
        rotary_pairs: config.is_rotary().then(|| compose_pairs(before, &kept_of_heads)),
        report: ModuleReport::new(error, energy),
    })
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
    use crate::{
        Module,
        testing::{Random, TinyModel, assert_close, forward, statistics},
    };

    const PLACE: Place = Place { layer: 2, module: Module::QueryKey };

    fn tokens(model: &TinyModel) -> Mat<f64> {
        Random::new(7).mat(60, model.d_model)
    }

    fn compress_tiny(model: &TinyModel, d_qk: usize) -> (ModelConfig, LayerWeights, QueryKey) {
        let (config, weights) = (model.config(), model.weights(8));
        let statistics = statistics(&config, &weights, tokens(model).as_ref());
        let compressed = compress(PLACE, &config, &weights, &config.layers[0], &statistics, d_qk).expect("fine");
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
        let again = compress(PLACE, &config, &small, &shape, &statistics, 4).expect("fine");
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
