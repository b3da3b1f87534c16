//! Rotary positions: each pair `(p, p + d_head / 2)` of a head's coordinates turns with the token's position.
//!
//! ```text
//! (x_p, x_{p+h}) ↦ (x_p cos α - x_{p+h} sin α,  x_{p+h} cos α + x_p sin α),   α = position · frequency_p
//! ```
//!
//! A compressed head keeps whole pairs only; its coordinates are laid out first halves, then second halves, so the
//! formula stays the same with the tables gathered at the kept pairs.

use burn::tensor::Tensor;
use modegpt_architecture::{LayerShape, ModelConfig};

use crate::{Compute, host};

/// Rows that one thread turns at once.
const ROWS: usize = 64;

/// Cosines and sines for a run of positions.
#[derive(Clone, Debug)]
pub(crate) struct RotaryTables {
    /// `[n_tables, n_positions, n_pairs]`, one table for each kv head, or one for all where all keep the same pairs.
    cos: Vec<f32>,
    sin: Vec<f32>,
    n_tables: usize,
    n_positions: usize,
    n_pairs: usize,
    compute: Compute,
}

impl RotaryTables {
    /// The tables of positions `start..start + n_positions`, or `None` if the model does not rotate.
    pub(crate) fn new(
        config: &ModelConfig,
        shape: &LayerShape,
        start: usize,
        n_positions: usize,
        compute: &Compute,
    ) -> Option<Self> {
        if !config.is_rotary() {
            return None;
        }
        let all = [(0..config.d_head / 2).collect()];
        let kept = shape.rotary_pairs.as_deref().unwrap_or(&all);
        Some(Self::with_pairs(&config.rotary_frequencies(), kept, start, n_positions, compute))
    }

    fn with_pairs(
        frequencies: &[f64],
        kept: &[Vec<usize>],
        start: usize,
        n_positions: usize,
        compute: &Compute,
    ) -> Self {
        let n_pairs = kept[0].len();
        // Every angle once, whichever heads keep its pair.
        let mut turns = vec![[0.0; 2]; n_positions * frequencies.len()];
        for (position, turns) in turns.chunks_exact_mut(frequencies.len().max(1)).enumerate() {
            for (turn, frequency) in turns.iter_mut().zip(frequencies) {
                let (sin, cos) = ((start + position) as f64 * frequency).sin_cos();
                *turn = [cos as f32, sin as f32];
            }
        }
        let mut cos = Vec::with_capacity(kept.len() * n_positions * n_pairs);
        let mut sin = Vec::with_capacity(cos.capacity());
        for pairs in kept {
            for turns in turns.chunks_exact(frequencies.len().max(1)) {
                cos.extend(pairs.iter().map(|pair| turns[*pair][0]));
                sin.extend(pairs.iter().map(|pair| turns[*pair][1]));
            }
        }
        Self { cos, sin, n_tables: kept.len(), n_positions, n_pairs, compute: compute.clone() }
    }

    /// Queries or keys, `[batch, heads, positions, d_qk]`, with either the model's heads or its kv heads.
    pub(crate) fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let n_heads = x.dims()[1];
        let half = x.dims()[3] / 2;
        let [cos, sin] = [&self.cos, &self.sin].map(|values| self.table(values, n_heads));
        let first = x.clone().narrow(3, 0, half);
        let second = x.narrow(3, half, half);
        let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
        let turned_second = second * cos + first * sin;
        Tensor::cat(vec![turned_first, turned_second], 3)
    }

    /// The same on the host, for rows of `n_heads` heads: `[batch * positions, n_heads * d_qk]`.
    pub(crate) fn rotate_rows(&self, x: Tensor<2>, n_heads: usize) -> Tensor<2> {
        let width = x.dims()[1];
        host::change(x, |x| {
            host::in_parts(x, ROWS * width, |start, part| {
                for (row_idx, row) in part.chunks_exact_mut(width).enumerate() {
                    self.rotate_row((start / width + row_idx) % self.n_positions, row, n_heads);
                }
            });
        })
    }

    fn rotate_row(&self, position: usize, row: &mut [f32], n_heads: usize) {
        for (head, x) in row.chunks_exact_mut(2 * self.n_pairs).enumerate() {
            let table = head * self.n_tables / n_heads;
            let at = (table * self.n_positions + position) * self.n_pairs;
            let turns = self.cos[at..][..self.n_pairs].iter().zip(&self.sin[at..]);
            let (first, second) = x.split_at_mut(self.n_pairs);
            for ((x, y), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
            }
        }
    }

    /// `[1, n_heads or 1, positions, pairs]` on the device.
    fn table(&self, values: &[f32], n_heads: usize) -> Tensor<4> {
        let (tables, positions, pairs) = (self.n_tables, self.n_positions, self.n_pairs);
        let table = self.compute.tensor(values.to_vec(), [tables, 1, positions, pairs]);
        if tables == 1 {
            return table;
        }
        table.expand([tables, n_heads / tables, positions, pairs]).reshape([1, n_heads, positions, pairs])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One table for all heads, and one for each kv head, of pairs that differ; more rows than are turned at once.
    #[test]
    fn rows_are_turned_as_heads_are() {
        let compute = Compute::host();
        let frequencies = [1.0, 0.3, 0.1, 0.03, 0.01];
        for kept in [vec![vec![0, 1, 2, 3, 4]], vec![vec![0, 2, 3], vec![1, 2, 4]]] {
            for (batch, positions, n_heads) in [(1, 1, 2), (2, 5, 4), (2, 90, 6)] {
                let width = 2 * kept[0].len();
                let tables = RotaryTables::with_pairs(&frequencies, &kept, 7, positions, &compute);
                let values = (0..batch * positions * n_heads * width).map(|at| (0.731 * at as f32).sin()).collect();
                let rows = compute.tensor(values, [batch * positions, n_heads * width]);
                let heads = rows.clone().reshape([batch, positions, n_heads, width]).swap_dims(1, 2);
                let expected = tables.rotate(heads).swap_dims(1, 2).reshape([batch * positions, n_heads * width]);
                let difference = (tables.rotate_rows(rows, n_heads) - expected).abs().max().into_scalar::<f32>();
                assert!(difference <= 1e-6, "{kept:?}, {positions} positions of {n_heads} heads: {difference:e}");
            }
        }
    }

    #[test]
    fn a_turn_keeps_lengths_and_the_first_position_as_it_is() {
        let tables = RotaryTables::with_pairs(&[0.5], &[vec![0]], 0, 3, &Compute::host());
        let x = Compute::host().tensor(vec![3.0, 4.0, 3.0, 4.0, 3.0, 4.0], [3, 2]);
        let turned = tables.rotate_rows(x, 1).into_data();
        let turned = host::values(&turned);
        assert_eq!(turned[..2], [3.0, 4.0]);
        let (sin, cos) = 1.0_f32.sin_cos();
        assert!(
            (turned[4] - (3.0 * cos - 4.0 * sin)).abs() < 1e-6 && (turned[5] - (4.0 * cos + 3.0 * sin)).abs() < 1e-6
        );
    }
}
