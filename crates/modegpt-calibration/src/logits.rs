//! What errors of the logits do to the output of attention.
//!
//! For the token at position `t`, with attention weights `w_s` over the keys `s ≤ t`, an error `δ_s` of the logits changes
//! the output of a head, to first order, by
//!
//! ```text
//! δo = Σ_s w_s (δ_s - δ̄) v_s W_O,          δ̄ = Σ_s w_s δ_s
//! ```
//!
//! so that a shift common to all keys does nothing. Compressing queries and keys makes errors that are linear in the
//! coordinates `f_s` of the logit, `δ_s = c · f_s`, hence `δo = c U_t` with `U_t = Σ_s w_s (f_s - f̄)ᵀ v_s W_O`. What is
//! summed up is
//!
//! ```text
//! H = Σ_t U_t U_tᵀ        so that  ‖δo‖² summed over tokens is  c H cᵀ
//! ```
//!
//! With rotary positions the coordinates are those that gains on the pairs of the *query* act on: with `z_p` the complex
//! product of pair `p` of query and key after rotation, the logit is `Σ_p Re z_p` and a gain `a + ib` makes of it
//! `a Re z_p - b Im z_p`; hence `f = [Re z, -Im z]`. Without rotation the coordinates are those of the key, and `H` is the
//! metric in which keys are best compressed.
//!
//! Logits are scaled as the softmax scales them. Few query tokens of every sample suffice, since each of them sees many
//! keys; of few samples there are more.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use modegpt_architecture::{LayerShape, Matrix, ModelConfig, Weight};
use modegpt_linalg::{Gram, GramAccumulator, reference::symmetric_root};
use rayon::prelude::*;

/// Query tokens looked at in every sample, evenly spread.
const QUERIES_PER_SAMPLE: usize = 16;

/// Query tokens looked at in all samples of a part together, at least, if there are so many. Of fewer the errors at small ranks
/// look smaller than they are, and gains are fitted to what no other query bears out. They count as [`QUERIES_PER_SAMPLE`] of
/// each sample all the same, so that parts of different sizes can be added up.
const QUERIES: usize = 512;

/// Accumulates `H` for every query head.
pub(crate) struct LogitEffects<'a> {
    attention: &'a AttentionGeometry,
    /// For each rotated kv head the turns of its pairs at every position; made for the first sequences.
    turns: Option<Vec<Turns>>,
    heads: Vec<GramAccumulator>,
    queries_per_sample: usize,
    n_queries: u64,
}

/// What of a layer's attention the effects depend on, beside activations.
pub(crate) struct AttentionGeometry {
    /// For each query head a root of `W_O W_Oᵀ`, `[d_v, d_v]`: through it a value is as long as through the output map.
    roots: Vec<Mat<f32>>,
    /// Angular frequencies of the pairs that each kv head has; empty without rotation.
    frequencies: Vec<Vec<f64>>,
    d_qk: usize,
    d_v: usize,
    group_size: usize,
    scale: f32,
}

/// Cosine and sine of every pair's angle, one position after another.
type Turns = Vec<(f32, f32)>;

/// Activations of some whole sequences, rows one after another.
pub(crate) struct Rows<'a> {
    /// `[tokens, n_heads * d_qk]`, before rotation.
    pub(crate) query: &'a [f32],
    /// `[tokens, n_kv_heads * d_qk]`, before rotation.
    pub(crate) key: &'a [f32],
    /// `[tokens, n_kv_heads * d_v]`.
    pub(crate) value: &'a [f32],
}

impl AttentionGeometry {
    /// `output` is the output map of attention, `[n_heads * d_v, d_model]`.
    ///
    /// # Errors
    /// [`modegpt_linalg::Error`] if the output map is not finite.
    pub(crate) fn new(
        config: &ModelConfig,
        shape: &LayerShape,
        output: &Weight,
    ) -> Result<Self, modegpt_linalg::Error> {
        let all = config.rotary_frequencies();
        let frequencies = |head: usize| match &shape.rotary_pairs {
            Some(kept) => kept[head].iter().map(|&pair| all[pair]).collect(),
            None => all.clone(),
        };
        let n_rotated = if config.is_rotary() { config.n_kv_heads } else { 0 };
        Ok(Self {
            roots: (0..config.n_heads).map(|head| root_of_output(output, head, shape.d_v)).collect::<Result<_, _>>()?,
            frequencies: (0..n_rotated).map(frequencies).collect(),
            d_qk: shape.d_qk,
            d_v: shape.d_v,
            group_size: config.group_size(),
            scale: (config.d_head as f32).sqrt().recip(),
        })
    }

    fn n_heads(&self) -> usize {
        self.roots.len()
    }

    fn n_kv_heads(&self) -> usize {
        self.roots.len() / self.group_size
    }

    fn turns(&self, seq_len: usize) -> Vec<Turns> {
        let turn = |position: usize, frequency: f64| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            (cos as f32, sin as f32)
        };
        let of_head = |frequencies: &Vec<f64>| {
            (0..seq_len).flat_map(|position| frequencies.iter().map(move |&f| turn(position, f))).collect()
        };
        self.frequencies.iter().map(of_head).collect()
    }

    /// Rows of `U_tᵀ`, `d_qk` wide, of one sequence: for each query head of one kv head those of the queries at `positions`,
    /// times a root of what each query counts.
    ///
    /// `turns`: those of that kv head, if there is rotation.
    fn effects(
        &self,
        sequence: &Rows<'_>,
        positions: &[usize],
        root_of_count: f32,
        kv_head: usize,
        turns: Option<&Turns>,
    ) -> Vec<Vec<f32>> {
        let &Self { d_qk, d_v, group_size, scale, .. } = self;
        let (n_heads, n_kv_heads) = (self.n_heads(), self.n_kv_heads());
        let turns_at = |position: usize| turns.map(|turns| &turns[position * d_qk / 2..][..d_qk / 2]);
        let mut keys = columns(sequence.key, n_kv_heads * d_qk, kv_head * d_qk, d_qk); // [d_qk, tokens]
        let values = columns(sequence.value, n_kv_heads * d_v, kv_head * d_v, d_v); // [d_v, tokens]
        (0..keys.ncols()).for_each(|position| rotate(keys.col_as_slice_mut(position), turns_at(position)));
        let of_head = |head: usize| {
            let mut effects = Vec::new();
            for &position in positions {
                let start = (position * n_heads + head) * d_qk;
                let mut query = sequence.query[start..start + d_qk].to_vec();
                rotate(&mut query, turns_at(position));
                let (keys, values) = (keys.subcols(0, position + 1), values.subcols(0, position + 1));
                let moments = key_value_moments(&query, keys, values, scale);
                let moved = multiply(moments.as_ref(), self.roots[head].as_ref());
                push_effects(&mut effects, &query, moved.as_ref(), scale * root_of_count, turns.is_some());
            }
            effects
        };
        (kv_head * group_size..(kv_head + 1) * group_size).map(of_head).collect()
    }
}

impl<'a> LogitEffects<'a> {
    /// The sum over no tokens, of `n_samples` that are to come.
    pub(crate) fn new(attention: &'a AttentionGeometry, n_samples: usize) -> Self {
        let heads = (0..attention.n_heads()).map(|_| GramAccumulator::new(attention.d_qk)).collect();
        let queries_per_sample = QUERIES.div_ceil(n_samples.max(1)).max(QUERIES_PER_SAMPLE);
        Self { attention, turns: None, heads, queries_per_sample, n_queries: 0 }
    }

    /// Adds sequences of `seq_len` tokens each, the same every time.
    pub(crate) fn add(&mut self, rows: &Rows<'_>, seq_len: usize) {
        let attention = self.attention;
        let &AttentionGeometry { d_qk, d_v, group_size, .. } = attention;
        let (n_heads, n_kv_heads) = (attention.n_heads(), attention.n_kv_heads());
        let query = rows.query.chunks_exact(seq_len * n_heads * d_qk);
        let key = rows.key.chunks_exact(seq_len * n_kv_heads * d_qk);
        let value = rows.value.chunks_exact(seq_len * n_kv_heads * d_v);
        let sequences: Vec<Rows<'_>> =
            query.zip(key).zip(value).map(|((query, key), value)| Rows { query, key, value }).collect();
        let positions = query_positions(self.queries_per_sample, seq_len);
        let counted = QUERIES_PER_SAMPLE.min(seq_len);
        self.n_queries += (sequences.len() * counted) as u64;
        let root_of_count = (counted as f32 / positions.len() as f32).sqrt();
        let turns: &[Turns] = self.turns.get_or_insert_with(|| attention.turns(seq_len));
        // A few queries at a time, for their effects are many rows each.
        for positions in positions.chunks(QUERIES_PER_SAMPLE) {
            // Small enough to be shared out evenly, and summed in the order of the sequences whoever computes them.
            let effects: Vec<Vec<Vec<f32>>> = (0..sequences.len() * n_kv_heads)
                .into_par_iter()
                .map(|task| {
                    let (sequence, kv_head) = (&sequences[task / n_kv_heads], task % n_kv_heads);
                    attention.effects(sequence, positions, root_of_count, kv_head, turns.get(kv_head))
                })
                .collect();
            self.heads.par_iter_mut().enumerate().for_each(|(head, sum)| {
                for of_sequence in effects.chunks_exact(n_kv_heads) {
                    let rows = &of_sequence[head / group_size][head % group_size];
                    sum.add_rows(rows, rows.len() / d_qk);
                }
            });
        }
    }

    /// `H` for every query head, and the number of query tokens that it counts for.
    pub(crate) fn finish(self) -> (Vec<Gram>, u64) {
        (self.heads.into_iter().map(GramAccumulator::finish).collect(), self.n_queries)
    }
}

/// `Σ_s w_s (k_s - k̄)ᵀ v_s` under the attention weights of one query: `[d_qk, d_v]`.
///
/// `keys: [d_qk, tokens]`, `values: [d_v, tokens]`.
fn key_value_moments(query: &[f32], keys: MatRef<'_, f32>, values: MatRef<'_, f32>, scale: f32) -> Mat<f32> {
    let query = MatRef::from_column_major_slice(query, query.len(), 1);
    let mut weights = multiply(keys.transpose(), query) * faer::Scale(scale);
    softmax(weights.col_as_slice_mut(0));
    let mut weighted = values.to_owned();
    for (token, weight) in weights.col_as_slice(0).iter().enumerate() {
        weighted.col_as_slice_mut(token).iter_mut().for_each(|value| *value *= weight);
    }
    let ones = Mat::full(values.ncols(), 1, 1.0);
    let mean_key = multiply(keys, weights.as_ref()); // [d_qk, 1]
    let mean_value = multiply(weighted.as_ref(), ones.as_ref()); // [d_v, 1]
    let mut moments = multiply(keys, weighted.transpose());
    matmul(moments.as_mut(), Accum::Add, mean_key.as_ref(), mean_value.transpose(), -1.0, Par::Seq);
    moments
}

fn multiply(left: MatRef<'_, f32>, right: MatRef<'_, f32>) -> Mat<f32> {
    let mut product = Mat::zeros(left.nrows(), right.ncols());
    matmul(product.as_mut(), Accum::Replace, left, right, 1.0, Par::Seq);
    product
}

/// The positions whose queries are looked at, at most `n` of them: the middles of equal parts of the sequence.
fn query_positions(n: usize, seq_len: usize) -> Vec<usize> {
    let n = n.min(seq_len);
    (0..n).map(|part| (2 * part + 1) * seq_len / (2 * n)).collect()
}

/// Appends the rows of `U_tᵀ`, of which there is one for each column of `moved`.
///
/// Without rotation a row is that column. With it, the features are linear in the rotated key: for pair `p` of a query
/// `(a, b)` and a key `(c, d)`, `Re z = ac + bd` and `-Im z = ad - bc`, where `z` is the query's pair times the
/// conjugate of the key's.
fn push_effects(effects: &mut Vec<f32>, query: &[f32], moved: MatRef<'_, f32>, scale: f32, rotary: bool) {
    let half = query.len() / 2;
    for column in moved.col_iter() {
        if !rotary {
            effects.extend(column.iter().map(|value| value * scale));
            continue;
        }
        let real = |p: usize| query[p] * column[p] + query[p + half] * column[p + half];
        let imaginary = |p: usize| query[p] * column[p + half] - query[p + half] * column[p];
        effects.extend((0..half).map(|p| scale * real(p)));
        effects.extend((0..half).map(|p| scale * imaginary(p)));
    }
}

/// Turns the pairs of a vector of two halves, if there is rotation.
fn rotate(vector: &mut [f32], turns: Option<&[(f32, f32)]>) {
    let Some(turns) = turns else { return };
    let (first, second) = vector.split_at_mut(turns.len());
    for ((a, b), &(cos, sin)) in first.iter_mut().zip(second).zip(turns) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

fn softmax(logits: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for logit in logits.iter_mut() {
        *logit = (*logit - largest).exp();
    }
    let sum: f32 = logits.iter().sum();
    for weight in logits {
        *weight /= sum;
    }
}

/// The transpose of columns `start..start + width` of rows: `[width, rows]`.
fn columns(rows: &[f32], stride: usize, start: usize, width: usize) -> Mat<f32> {
    Mat::from_fn(width, rows.len() / stride, |col, row| rows[row * stride + start + col])
}

/// The symmetric root `(W_O W_Oᵀ)^½` of one head's rows of the output map.
fn root_of_output(output: &Weight, head: usize, d_v: usize) -> Result<Mat<f32>, modegpt_linalg::Error> {
    let rows = match output {
        Weight::Dense(matrix) => rows_of(matrix, head * d_v, d_v),
        Weight::Factorised(factors) => rows_of(&factors.a, head * d_v, d_v) * rows_of(&factors.b, 0, factors.b.rows),
    };
    let root = symmetric_root((&rows * rows.transpose()).as_ref())?;
    Ok(Mat::from_fn(d_v, d_v, |row, col| root[(row, col)] as f32))
}

fn rows_of(matrix: &Matrix, start: usize, n_rows: usize) -> Mat<f64> {
    Mat::from_fn(n_rows, matrix.cols, |row, col| f64::from(matrix.data[(start + row) * matrix.cols + col]))
}

#[cfg(test)]
mod tests {
    use modegpt_architecture::{Activation, Family, MlpKind, Norm, NormPlacement, Positions, SpecialTokens};

    use super::*;

    fn random(seed: &mut u64) -> f32 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn vector(len: usize, seed: &mut u64) -> Vec<f32> {
        (0..len).map(|_| random(seed)).collect()
    }

    fn config(rotary: bool) -> ModelConfig {
        let rotation = Positions::Rotary { theta: 100.0, scaling: None, linear_factor: 1.0 };
        ModelConfig {
            family: Family::Llama,
            vocab: 10,
            d_model: 12,
            d_embedding: 12,
            n_heads: 4,
            n_kv_heads: 2,
            d_head: 6,
            max_positions: 64,
            positions: if rotary { rotation } else { Positions::Learned { offset: 0 } },
            norm: Norm::Rms { eps: 1e-5 },
            norm_placement: NormPlacement::Pre,
            final_norm: true,
            norm_affine: true,
            mlp: MlpKind::Plain,
            activation: Activation::Relu,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            tied_head: true,
            special_tokens: SpecialTokens::default(),
            layers: vec![LayerShape::dense(8, 6)],
        }
    }

    /// The output of one head for the query at `position`, in f64. With rotation the query's pairs are multiplied by the
    /// complex `gains`, without it every logit is raised by the product of `gains` and its key.
    fn head_output(
        config: &ModelConfig,
        [query, key, value, output]: [&[f32]; 4],
        head: usize,
        position: usize,
        gains: &[f64],
    ) -> Vec<f64> {
        let (d, group) = (config.d_head, config.group_size());
        let half = d / 2;
        let kv = head / group;
        let frequencies = config.rotary_frequencies();
        let turned = |row: &[f32], at: usize| -> Vec<(f64, f64)> {
            let angle = |p: usize| if frequencies.is_empty() { 0.0 } else { at as f64 * frequencies[p] };
            (0..half)
                .map(|p| {
                    let (sin, cos) = angle(p).sin_cos();
                    let (a, b) = (f64::from(row[p]), f64::from(row[p + half]));
                    (a * cos - b * sin, b * cos + a * sin)
                })
                .collect()
        };
        let q = turned(&query[(position * config.n_heads + head) * d..][..d], position);
        let logits: Vec<f64> = (0..=position)
            .map(|s| {
                let k = turned(&key[(s * config.n_kv_heads + kv) * d..][..d], s);
                let term = |p: usize| {
                    let ((a, b), (c, e)) = (q[p], k[p]);
                    if frequencies.is_empty() {
                        (a + gains[p]) * c + (b + gains[p + half]) * e
                    } else {
                        gains[p] * (a * c + b * e) - gains[p + half] * (b * c - a * e)
                    }
                };
                (0..half).map(term).sum::<f64>() / (d as f64).sqrt()
            })
            .collect();
        let sum: f64 = logits.iter().map(|l| l.exp()).sum();
        let mixed = |col: usize| -> f64 {
            let value = |s: usize| f64::from(value[(s * config.n_kv_heads + kv) * d + col]);
            logits.iter().enumerate().map(|(s, l)| l.exp() / sum * value(s)).sum()
        };
        let mixed: Vec<f64> = (0..d).map(mixed).collect();
        let through =
            |out: usize| (0..d).map(|v| mixed[v] * f64::from(output[(head * d + v) * config.d_model + out])).sum();
        (0..config.d_model).map(through).collect()
    }

    /// `c H cᵀ` is the squared change of the outputs for a small change `c` of the gains, by central differences.
    #[test]
    fn effects_are_those_of_small_changes() {
        for rotary in [true, false] {
            let config = config(rotary);
            let (tokens, d, seed) = (7, config.d_head, &mut 1);
            let query = vector(2 * tokens * config.n_heads * d, seed);
            let key = vector(2 * tokens * config.n_kv_heads * d, seed);
            let value = vector(2 * tokens * config.n_kv_heads * d, seed);
            let output =
                Matrix::new(config.n_heads * d, config.d_model, vector(config.n_heads * d * config.d_model, seed));
            let geometry = AttentionGeometry::new(&config, &config.layers[0], &output.clone().into()).expect("finite");
            let mut effects = LogitEffects::new(&geometry, 2);
            effects.add(&Rows { query: &query, key: &key, value: &value }, tokens);
            let (grams, n_queries) = effects.finish();
            assert_eq!(n_queries, 2 * tokens as u64, "short samples are looked at whole");
            for (head, gram) in grams.iter().enumerate() {
                let direction: Vec<f64> = (0..d).map(|_| f64::from(random(seed))).collect();
                let dense: Vec<f64> = (0..d).map(|i| f64::from(u8::from(rotary && i < d / 2))).collect();
                let mut direct = 0.0;
                for sequence in 0..2 {
                    let part = |x: &'_ [f32]| {
                        let n = x.len() / 2;
                        x[sequence * n..(sequence + 1) * n].to_vec()
                    };
                    let (query, key, value) = (part(&query), part(&key), part(&value));
                    let at = |position: usize, step: f64| {
                        let gains: Vec<f64> = dense.iter().zip(&direction).map(|(g, c)| g + step * c).collect();
                        head_output(&config, [&query, &key, &value, &output.data], head, position, &gains)
                    };
                    for position in 0..tokens {
                        let (plus, minus) = (at(position, 1e-4), at(position, -1e-4));
                        direct += plus.iter().zip(&minus).map(|(p, m)| ((p - m) / 2e-4).powi(2)).sum::<f64>();
                    }
                }
                let pairs = (0..d).flat_map(|i| (0..d).map(move |j| (i, j)));
                let quadratic: f64 = pairs.map(|(i, j)| direction[i] * gram.get(i, j) * direction[j]).sum();
                assert!((quadratic - direct).abs() < 1e-4 * direct, "head {head}: {quadratic} instead of {direct}");
            }
        }
    }

    #[test]
    fn positions_are_spread_and_never_beyond_the_end() {
        for (n, seq_len) in [1, 2, 15, 16, 17, 1024].into_iter().flat_map(|seq_len| [(16, seq_len), (512, seq_len)]) {
            let positions = query_positions(n, seq_len);
            assert_eq!(positions.len(), n.min(seq_len));
            assert!(positions.is_sorted_by(|a, b| a < b) && positions.iter().all(|&position| position < seq_len));
        }
    }

    #[test]
    fn of_few_samples_more_queries_are_looked_at() {
        let config = config(true);
        let (tokens, d, seed) = (40, config.d_head, &mut 1);
        let [query, key, value] =
            [config.n_heads, config.n_kv_heads, config.n_kv_heads].map(|n| vector(tokens * n * d, seed));
        let output = Matrix::new(config.n_heads * d, config.d_model, vector(config.n_heads * d * config.d_model, seed));
        let geometry = AttentionGeometry::new(&config, &config.layers[0], &output.into()).expect("finite");
        let effects_of_one = |n_samples: usize| {
            let mut effects = LogitEffects::new(&geometry, n_samples);
            effects.add(&Rows { query: &query, key: &key, value: &value }, tokens);
            effects.finish()
        };
        let looked_at = |n_samples: usize| LogitEffects::new(&geometry, n_samples).queries_per_sample;
        assert_eq!([1, 2, 31, 32, 33, 1000].map(looked_at), [512, 256, 17, 16, 16, 16]);
        // All 40 queries count as 16 of them do.
        let ((few, n_few), (all, n_all)) = (effects_of_one(1000), effects_of_one(1));
        assert_eq!((n_few, n_all), (16, 16));
        for (few, all) in few.iter().zip(&all) {
            let ratio = all.trace() / few.trace();
            assert!(few != all && (0.7..1.4).contains(&ratio), "{ratio}");
        }
    }
}
