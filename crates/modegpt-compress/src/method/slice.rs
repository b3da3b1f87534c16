//! The plain structured baseline: whole channels go by the size of their weights, and nothing makes good what is lost.
//!
//! ```text
//! s_i = Σ w² e        over all weights w that go with channel i
//! ```
//!
//! with `e = 1` ([`Score::Magnitude`]) or the energy, over the calibration tokens, of the input that a weight multiplies
//! ([`Score::Wanda`], [arXiv:2306.11695](https://arxiv.org/abs/2306.11695), summed over a channel). A hidden unit takes a
//! column of up (and gate) and a row of down with it; a coordinate of queries a column of every query head of its group and
//! of the key, with rotary positions those of its pair; a coordinate of values a column of the value map and a row of the
//! output map for every head of its group. Biases are sliced with their columns and do not count.

use modegpt_architecture::{MapName, Matrix};
use modegpt_linalg::top_k;

use crate::{Error, Layer, method::maps::input_gram};

/// What tells which channels go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Score {
    /// The size of the weights.
    Magnitude,
    /// The size of the weights times that of their inputs.
    Wanda,
}

impl Score {
    /// Of each hidden unit.
    pub(crate) fn of_units(self, layer: &Layer<'_>) -> Result<Vec<f64>, Error> {
        let weights = layer.weights;
        let mut scores = self.of_columns(layer, MapName::Up, &weights.up.weight)?;
        if let Some(gate) = &weights.gate {
            add(&mut scores, &self.of_columns(layer, MapName::Gate, &gate.weight)?);
        }
        add(&mut scores, &self.of_rows(layer, MapName::Down, &weights.down.weight)?);
        Ok(scores)
    }

    /// For each kv head, of each coordinate of its keys and of the queries that they meet.
    pub(crate) fn of_query_key(self, layer: &Layer<'_>) -> Result<Vec<Vec<f64>>, Error> {
        let query = self.of_columns(layer, MapName::Query, &layer.weights.query.weight)?;
        let key = self.of_columns(layer, MapName::Key, &layer.weights.key.weight)?;
        Ok(by_kv_head(layer, &query, &key, layer.shape.d_qk))
    }

    /// For each kv head, of each coordinate of its values.
    pub(crate) fn of_value_output(self, layer: &Layer<'_>) -> Result<Vec<Vec<f64>>, Error> {
        let value = self.of_columns(layer, MapName::Value, &layer.weights.value.weight)?;
        let output = self.of_rows(layer, MapName::Output, &layer.weights.output.weight)?;
        Ok(by_kv_head(layer, &output, &value, layer.shape.d_v))
    }

    fn of_columns(self, layer: &Layer<'_>, name: MapName, weight: &Matrix) -> Result<Vec<f64>, Error> {
        let mut scores = vec![0.0; weight.cols];
        for (row, energy) in self.energies(layer, name, weight.rows)?.into_iter().enumerate() {
            for (score, &w) in scores.iter_mut().zip(weight.row(row)) {
                *score += f64::from(w) * f64::from(w) * energy;
            }
        }
        Ok(scores)
    }

    fn of_rows(self, layer: &Layer<'_>, name: MapName, weight: &Matrix) -> Result<Vec<f64>, Error> {
        let squares = |row: usize| weight.row(row).iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>();
        let energies = self.energies(layer, name, weight.rows)?;
        Ok(energies.into_iter().enumerate().map(|(row, energy)| squares(row) * energy).collect())
    }

    /// Of the inputs of a map.
    fn energies(self, layer: &Layer<'_>, name: MapName, d_in: usize) -> Result<Vec<f64>, Error> {
        match self {
            Self::Magnitude => Ok(vec![1.0; d_in]),
            Self::Wanda => Ok(input_gram(layer, name)?.diagonal()),
        }
    }
}

/// The channels of a head to keep, ascending; with rotation those of whole pairs, in two ascending halves.
pub(crate) fn kept_channels(scores: &[f64], k: usize, rotary: bool) -> Vec<usize> {
    if !rotary {
        return top_k(scores, k);
    }
    let (first, second) = scores.split_at(scores.len() / 2);
    let pairs: Vec<f64> = first.iter().zip(second).map(|(first, second)| first + second).collect();
    let pairs = top_k(&pairs, k / 2);
    pairs.iter().copied().chain(pairs.iter().map(|pair| pair + first.len())).collect()
}

/// Scores of `width` channels for each kv head: its own and those of the heads that share it.
fn by_kv_head(layer: &Layer<'_>, of_heads: &[f64], of_kv_heads: &[f64], width: usize) -> Vec<Vec<f64>> {
    let mut scores: Vec<Vec<f64>> = of_kv_heads.chunks_exact(width).map(<[f64]>::to_vec).collect();
    for (head, of_head) in of_heads.chunks_exact(width).enumerate() {
        add(&mut scores[head / layer.config.group_size()], of_head);
    }
    scores
}

fn add(sum: &mut [f64], more: &[f64]) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        CompressedLayer, Methods, Orders, Ridges, compress_layer,
        testing::{TinyModel, layer, plan, tokens_of, whole_statistics},
    };

    fn compressed(model: &TinyModel, methods: Methods, [d_ff, d_qk, d_v]: [usize; 3]) -> CompressedLayer {
        let (config, weights) = (model.config(), model.weights(3));
        let seen = whole_statistics(&config, &weights, tokens_of(model, 90).as_ref());
        let whole = layer(0, &config, &weights, &seen);
        compress_layer(&whole, &plan(d_ff, d_qk, d_v), methods, Ridges::default(), &Orders::default()).expect("fine")
    }

    #[test]
    fn channels_of_no_weight_go_without_loss() {
        for methods in [Methods::MAGNITUDE, Methods::WANDA] {
            for model in [TinyModel::opt(), TinyModel::llama()] {
                let (config, mut weights) = (model.config(), model.weights(4));
                // The last hidden units, and the last coordinate of every half of every head.
                let cols = weights.up.weight.cols;
                for (at, w) in weights.up.weight.data.iter_mut().enumerate() {
                    *w *= f32::from(u8::from(at % cols < 40));
                }
                if let Some(gate) = &mut weights.gate {
                    for (at, w) in gate.weight.data.iter_mut().enumerate() {
                        *w *= f32::from(u8::from(at % cols < 40));
                    }
                }
                for bias in [&mut weights.up.bias, &mut weights.query.bias, &mut weights.key.bias].into_iter().flatten()
                {
                    bias.fill(0.0);
                }
                for w in &mut weights.down.weight.data[40 * 32..] {
                    *w = 0.0;
                }
                for linear in [&mut weights.query, &mut weights.key] {
                    for (at, w) in linear.weight.data.iter_mut().enumerate() {
                        *w *= f32::from(u8::from(at % 4 != 3));
                    }
                }
                for (at, w) in weights.output.weight.data.iter_mut().enumerate() {
                    *w *= f32::from(u8::from(at / 32 % 8 < 5));
                }
                for (at, w) in weights.value.weight.data.iter_mut().enumerate() {
                    *w *= f32::from(u8::from(at % 8 < 5));
                }
                let seen = whole_statistics(&config, &weights, tokens_of(&model, 90).as_ref());
                let whole = layer(0, &config, &weights, &seen);
                let small = compress_layer(&whole, &plan(40, 6, 5), methods, Ridges::default(), &Orders::default())
                    .expect("fine");
                let report = &small.report;
                for module in [report.mlp, report.query_key, report.value_output] {
                    assert!(module.relative_error < 1e-12 && module.fallbacks == 0, "{methods:?}: {report:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_kept_is_kept_as_it_is() {
        for methods in [Methods::MAGNITUDE, Methods::WANDA] {
            for model in [TinyModel::opt(), TinyModel::llama()] {
                let original = model.weights(3);
                let small = compressed(&model, methods, [20, 4, 3]);
                assert_eq!(small.shape.rotary_pairs.is_some(), model.rotary);
                let small = small.weights.into_dense().expect("nothing is factorised");
                let column = |weight: &Matrix, at: usize| weight.column_range(at, at + 1).data;
                for unit in 0..20 {
                    let old =
                        (0..model.d_ff).find(|&old| column(&original.up.weight, old) == column(&small.up.weight, unit));
                    let old = old.expect("an old unit");
                    assert_eq!(small.down.weight.row(unit), original.down.weight.row(old));
                }
                for (small, original, width) in [
                    (&small.query, &original.query, 4),
                    (&small.key, &original.key, 4),
                    (&small.value, &original.value, 3),
                ] {
                    for at in 0..small.weight.cols {
                        let head = at / width * 8;
                        let found =
                            (head..head + 8).any(|old| column(&original.weight, old) == column(&small.weight, at));
                        assert!(found, "column {at} of {width}");
                    }
                }
            }
        }
    }

    #[test]
    fn wanda_looks_at_the_inputs_and_magnitude_does_not() {
        let model = TinyModel::llama();
        let (config, mut weights) = (model.config(), model.weights(5));
        let mut seen = whole_statistics(&config, &weights, tokens_of(&model, 90).as_ref());
        // The largest weights of the unit, on an input that never comes.
        weights.up.weight.data[7] = 1e3;
        let mut x = tokens_of(&model, 90);
        x.col_mut(0).fill(0.0);
        let inputs = seen.inputs.as_mut().expect("collected");
        inputs.mlp = crate::testing::gram_of(x.as_ref());
        let whole = layer(0, &config, &weights, &seen);
        let rank = |score: Score| {
            let scores = score.of_units(&whole).expect("fine");
            scores.iter().filter(|&&other| other > scores[7]).count()
        };
        assert_eq!(rank(Score::Magnitude), 0);
        assert!(rank(Score::Wanda) > 0);
    }

    #[test]
    fn pairs_stay_together() {
        let scores = [0.0, 5.0, 1.0, 2.0, 9.0, 0.0, 1.0, 2.5];
        assert_eq!(kept_channels(&scores, 4, true), [0, 1, 4, 5]);
        assert_eq!(kept_channels(&scores, 3, false), [1, 4, 7]);
    }
}
