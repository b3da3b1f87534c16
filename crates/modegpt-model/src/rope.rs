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

use crate::Compute;

/// Cosines and sines for a run of positions.
#[derive(Clone, Debug)]
pub(crate) struct RotaryTables {
    query: Tables,
    key: Tables,
}

/// `[1, heads, positions, d_qk / 2]` each, with `heads = 1` where all heads keep the same pairs.
#[derive(Clone, Debug)]
struct Tables {
    cos: Tensor<4>,
    sin: Tensor<4>,
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
        let frequencies = config.rotary_frequencies();
        let all: Vec<usize> = (0..config.d_head / 2).collect();
        let tables = |heads: &[&[usize]]| Tables::new(&frequencies, heads, start, n_positions, compute);
        Some(match &shape.rotary_pairs {
            None => {
                let shared = tables(&[&all]);
                Self { query: shared.clone(), key: shared }
            }
            Some(kept) => {
                let key: Vec<&[usize]> = kept.iter().map(Vec::as_slice).collect();
                let query: Vec<&[usize]> = key.iter().flat_map(|p| vec![*p; config.group_size()]).collect();
                Self { query: tables(&query), key: tables(&key) }
            }
        })
    }

    /// `query: [batch, n_heads, tokens, d_qk]`
    pub(crate) fn rotate_query(&self, query: Tensor<4>) -> Tensor<4> {
        self.query.rotate(query)
    }

    /// `key: [batch, n_kv_heads, tokens, d_qk]`
    pub(crate) fn rotate_key(&self, key: Tensor<4>) -> Tensor<4> {
        self.key.rotate(key)
    }
}

impl Tables {
    fn new(frequencies: &[f64], heads: &[&[usize]], start: usize, n_positions: usize, compute: &Compute) -> Self {
        let n_pairs = heads[0].len();
        let mut cos = Vec::with_capacity(heads.len() * n_positions * n_pairs);
        let mut sin = Vec::with_capacity(cos.capacity());
        for pairs in heads {
            for position in start..start + n_positions {
                for pair in *pairs {
                    let (s, c) = (position as f64 * frequencies[*pair]).sin_cos();
                    cos.push(c as f32);
                    sin.push(s as f32);
                }
            }
        }
        let shape = [1, heads.len(), n_positions, n_pairs];
        Self { cos: compute.tensor(cos, shape), sin: compute.tensor(sin, shape) }
    }

    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let first = x.clone().narrow(3, 0, half);
        let second = x.narrow(3, half, half);
        let turned_first = first.clone() * self.cos.clone() - second.clone() * self.sin.clone();
        let turned_second = second * self.cos.clone() + first * self.sin.clone();
        Tensor::cat(vec![turned_first, turned_second], 3)
    }
}
