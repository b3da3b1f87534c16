//! Causal attention over whole sequences.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use pulp::Arch;
use rayon::prelude::*;

use super::exp::{ExpInPlace, Max};

/// Queries that attend at once, with every key up to the last of them. Of 1024 tokens of SmolLM2-135M, blocks of 32 and 64
/// took 14 ms of processor time, 128 took 16 and 256 took 18; burn's operation on blocks of 256 took 99.
const QUERY_BLOCK: usize = 64;

/// How rows are laid out and what is made of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Sequences, one after another.
    pub(crate) batch: usize,
    /// Tokens of each.
    pub(crate) tokens: usize,
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    /// What scores are multiplied with before the softmax.
    pub(crate) scale: f32,
}

/// ```text
/// a_j = softmax(scale q_j k_g(j)ᵀ) v_g(j)
/// ```
///
/// over the keys up to each query, for query heads `j` and their kv head `g(j)`.
///
/// # Shapes
/// - `query`: `[batch * tokens, n_heads * d_qk]`
/// - `key`: `[batch * tokens, n_kv_heads * d_qk]`
/// - `value`: `[batch * tokens, n_kv_heads * d_v]`
/// - returns `[batch * tokens, n_heads * d_v]`
pub(crate) fn attend(query: &[f32], key: &[f32], value: &[f32], layout: Layout) -> Vec<f32> {
    let rows = layout.batch * layout.tokens;
    let width = |x: &[f32], n_heads: usize| x.len() / (rows * n_heads);
    let (d_qk, d_v) = (width(key, layout.n_kv_heads), width(value, layout.n_kv_heads));
    let mut out = vec![0.0; rows * layout.n_heads * d_v];
    let samples = out.chunks_mut(layout.tokens * layout.n_heads * d_v).enumerate();
    let blocks = samples.flat_map(|(sample_idx, sample)| {
        let of_sample = |x: &[f32]| sample_idx * x.len() / layout.batch..(sample_idx + 1) * x.len() / layout.batch;
        let sequence = Sequence {
            query: &query[of_sample(query)],
            key: &key[of_sample(key)],
            value: &value[of_sample(value)],
            layout,
            d_qk,
            d_v,
        };
        let blocks = sample.chunks_mut(QUERY_BLOCK * layout.n_heads * d_v).enumerate();
        blocks.map(move |(block_idx, out)| (sequence, block_idx * QUERY_BLOCK, out))
    });
    let blocks: Vec<_> = blocks.collect();
    blocks.into_par_iter().with_max_len(1).for_each(|(sequence, start, out)| sequence.attend(start, out));
    out
}

/// One sequence of the batch.
#[derive(Clone, Copy)]
struct Sequence<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    layout: Layout,
    d_qk: usize,
    d_v: usize,
}

impl Sequence<'_> {
    /// Fills `out`, rows `start..` of the result, head after head.
    fn attend(&self, start: usize, out: &mut [f32]) {
        let Self { layout, d_qk, d_v, .. } = *self;
        let width = layout.n_heads * d_v;
        let n_queries = out.len() / width;
        let n_seen = start + n_queries;
        let query = &self.query[start * layout.n_heads * d_qk..];
        let mut scores = vec![0.0; n_queries * n_seen];
        let mut sums = vec![0.0; n_queries];
        for head in 0..layout.n_heads {
            let kv_head = head * layout.n_kv_heads / layout.n_heads;
            let query = columns(query, n_queries, head, [d_qk, layout.n_heads]);
            let key = columns(self.key, n_seen, kv_head, [d_qk, layout.n_kv_heads]);
            let value = columns(self.value, n_seen, kv_head, [d_v, layout.n_kv_heads]);
            let to = MatMut::from_row_major_slice_mut(&mut scores, n_queries, n_seen);
            matmul(to, Accum::Replace, query, key.transpose(), layout.scale, Par::Seq);
            weigh(&mut scores, start, &mut sums);
            // Not by faer's function for rows with a stride, which takes them for columns and writes past the end.
            let to = MatMut::from_column_major_slice_with_stride_mut(&mut out[head * d_v..], d_v, n_queries, width);
            let weights = MatRef::from_row_major_slice(&scores, n_queries, n_seen);
            matmul(to.transpose_mut(), Accum::Replace, weights, value, 1.0, Par::Seq);
            for (row, sum) in out.chunks_exact_mut(width).zip(&sums) {
                row[head * d_v..][..d_v].iter_mut().for_each(|x| *x /= sum);
            }
        }
    }
}

/// `rows` rows of the columns of one head, from rows of `n_heads` heads of `width` columns.
fn columns(x: &[f32], rows: usize, head: usize, [width, n_heads]: [usize; 2]) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice_with_stride(&x[head * width..], rows, width, n_heads * width)
}

/// Scores become the weights of a softmax, save for their sums, which are told: row `n` sees `start + n + 1` keys.
fn weigh(scores: &mut [f32], start: usize, sums: &mut [f32]) {
    let arch = Arch::new();
    let n_seen = scores.len() / sums.len();
    for (query_idx, (row, sum)) in scores.chunks_exact_mut(n_seen).zip(sums).enumerate() {
        let (seen, hidden) = row.split_at_mut(start + query_idx + 1);
        let max = arch.dispatch(Max(seen));
        *sum = arch.dispatch(ExpInPlace(seen, max));
        hidden.fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same every time, no two alike.
    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|at| (seed + 0.731 * at as f32).sin()).collect()
    }

    /// In f64, one query after another.
    fn plain(query: &[f32], key: &[f32], value: &[f32], layout: Layout, [d_qk, d_v]: [usize; 2]) -> Vec<f64> {
        let mut out = Vec::new();
        let at = |x: &[f32], row: usize, n_heads: usize, head: usize, width: usize| -> Vec<f64> {
            let values = &x[(row * n_heads + head) * width..][..width];
            values.iter().copied().map(f64::from).collect()
        };
        for row in 0..layout.batch * layout.tokens {
            let first = row - row % layout.tokens;
            for head in 0..layout.n_heads {
                let kv_head = head / (layout.n_heads / layout.n_kv_heads);
                let query = at(query, row, layout.n_heads, head, d_qk);
                let weight = |seen| {
                    let key = at(key, seen, layout.n_kv_heads, kv_head, d_qk);
                    (f64::from(layout.scale) * key.iter().zip(&query).map(|(k, q)| k * q).sum::<f64>()).exp()
                };
                let weights: Vec<f64> = (first..=row).map(weight).collect();
                let sum: f64 = weights.iter().sum();
                let mut mean = vec![0.0; d_v];
                for (seen, weight) in (first..=row).zip(weights) {
                    let value = at(value, seen, layout.n_kv_heads, kv_head, d_v);
                    mean.iter_mut().zip(value).for_each(|(mean, value)| *mean += weight / sum * value);
                }
                out.extend(mean);
            }
        }
        out
    }

    /// Just below, at and just past a block and several of them, odd widths, shared kv heads, several sequences.
    #[test]
    fn every_query_sees_the_keys_up_to_itself() {
        for (batch, tokens) in [(1, 1), (1, 2), (3, 5), (2, 63), (1, 64), (2, 65), (1, 200)] {
            for (n_heads, n_kv_heads, d_qk, d_v) in [(1, 1, 2, 1), (4, 2, 6, 5), (3, 1, 16, 17), (2, 2, 1, 8)] {
                let layout = Layout { batch, tokens, n_heads, n_kv_heads, scale: 0.7 };
                let rows = batch * tokens;
                let query = values(rows * n_heads * d_qk, 0.1);
                let key = values(rows * n_kv_heads * d_qk, 0.2);
                let value = values(rows * n_kv_heads * d_v, 0.3);
                let found = attend(&query, &key, &value, layout);
                let expected = plain(&query, &key, &value, layout, [d_qk, d_v]);
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(expected) {
                    let difference = (f64::from(*found) - expected).abs();
                    assert!(difference <= 1e-6, "{layout:?}, widths {d_qk} and {d_v}: {difference:e}");
                }
            }
        }
    }

    #[test]
    fn scores_far_apart_neither_overflow_nor_vanish() {
        let layout = Layout { batch: 1, tokens: 40, n_heads: 1, n_kv_heads: 1, scale: 1e4 };
        let (query, key, value) = (values(80, 0.1), values(80, 0.2), values(120, 0.3));
        let found = attend(&query, &key, &value, layout);
        assert!(found.iter().all(|x| x.abs() <= 1.0), "{found:?}");
        assert!(found.chunks(3).all(|row| row.iter().any(|x| x.abs() > 0.1)), "{found:?}");
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let layout = Layout { batch: 2, tokens: 150, n_heads: 4, n_kv_heads: 2, scale: 0.3 };
        let (query, key, value) = (values(300 * 4 * 8, 0.1), values(300 * 2 * 8, 0.2), values(300 * 2 * 6, 0.3));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| attend(&query, &key, &value, layout))
        };
        let one = with(1);
        assert!(with(2) == one && with(3) == one && with(7) == one);
    }

    #[test]
    fn what_is_not_a_number_reaches_those_that_see_it_only() {
        let layout = Layout { batch: 1, tokens: 70, n_heads: 1, n_kv_heads: 1, scale: 1.0 };
        let (query, mut key, value) = (values(140, 0.1), values(140, 0.2), values(70, 0.3));
        key[2 * 30] = f32::NAN;
        let found = attend(&query, &key, &value, layout);
        assert!(found[..30].iter().all(|x| x.is_finite()) && found[30..].iter().all(|x| x.is_nan()), "{found:?}");
    }
}
