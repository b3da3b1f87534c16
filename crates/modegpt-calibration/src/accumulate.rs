//! Statistics of one layer while the batches come in.

use modegpt_architecture::{LayerShape, ModelConfig};
use modegpt_linalg::HeadGrams;
use modegpt_model::{Compute, ComputeError, Observations};
use modegpt_statistics::{InputGrams, InputMagnitudes, LayerStatistics};

use crate::activation_gram::{ActivationGram, GramPath, add_column_sums};
use crate::logits::{AttentionGeometry, LogitEffects, Rows};

/// Which statistics are collected beside those that every method needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collect {
    /// [`LayerStatistics::logit`]: mode `best` compresses queries and keys by it.
    pub logits: bool,
    /// [`LayerStatistics::inputs`]: methods that factorise each matrix by itself need them.
    pub inputs: bool,
    /// [`LayerStatistics::magnitudes`]: scaling by activations needs them.
    pub magnitudes: bool,
}

impl Collect {
    /// What either asks for.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            logits: self.logits || other.logits,
            inputs: self.inputs || other.inputs,
            magnitudes: self.magnitudes || other.magnitudes,
        }
    }

    /// Whether it asks for all that `other` asks for.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.or(other) == self
    }
}

/// Sums over the batches seen so far.
pub(crate) struct Accumulators<'a> {
    n_tokens: u64,
    influence_sum: f64,
    inverse_residual_sum: f64,
    logits: Option<LogitEffects<'a>>,
    inputs: Option<[ActivationGram; 3]>,
    /// Of the inputs of attention, output, MLP and down map.
    magnitudes: Option<[Vec<f64>; 4]>,
    hidden: ActivationGram,
    query: HeadGrams,
    key: HeadGrams,
    key_sum: Vec<f64>,
    value: HeadGrams,
    attention: HeadGrams,
}

impl<'a> Accumulators<'a> {
    /// Over no batches, of `n_samples` that are to come. `attention` is given if effects of the logits are collected.
    pub(crate) fn new(
        config: &ModelConfig,
        shape: &LayerShape,
        path: GramPath,
        attention: Option<&'a AttentionGeometry>,
        collect: Collect,
        n_samples: usize,
    ) -> Self {
        let widths = [config.d_model, config.n_heads * shape.d_v, config.d_model];
        Self {
            n_tokens: 0,
            influence_sum: 0.0,
            inverse_residual_sum: 0.0,
            logits: attention.map(|attention| LogitEffects::new(attention, n_samples)),
            inputs: collect.inputs.then(|| widths.map(|width| ActivationGram::new(width, path))),
            magnitudes: collect.magnitudes.then(|| {
                let [attention, output, mlp] = widths;
                [attention, output, mlp, shape.d_ff].map(|width| vec![0.0; width])
            }),
            hidden: ActivationGram::new(shape.d_ff, path),
            query: HeadGrams::new(config.n_heads, shape.d_qk),
            key: HeadGrams::new(config.n_kv_heads, shape.d_qk),
            key_sum: vec![0.0; config.n_kv_heads * shape.d_qk],
            value: HeadGrams::new(config.n_kv_heads, shape.d_v),
            attention: HeadGrams::new(config.n_heads, shape.d_v),
        }
    }

    /// `before` and `after` are the residual stream around the layer, samples of shape `[_, seq_len, d_model]`.
    pub(crate) async fn add(
        &mut self,
        before: &[f32],
        after: &[f32],
        [_, seq_len, d_model]: [usize; 3],
        seen: Observations,
        compute: &Compute,
    ) -> Result<(), ComputeError> {
        self.n_tokens += (before.len() / d_model) as u64;
        self.influence_sum += influence_sum(before, after, d_model);
        for row in after.chunks_exact(d_model) {
            let energy: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
            self.inverse_residual_sum += if energy > 0.0 { energy.recip() } else { 0.0 };
        }
        if let Some(sums) = &mut self.magnitudes {
            let inputs = [&seen.attention_input, &seen.attention, &seen.mlp_input, &seen.hidden];
            for (sum, rows) in sums.iter_mut().zip(inputs) {
                add_magnitudes(sum, &compute.read(rows.clone()).await?);
            }
        }
        self.hidden.add(seen.hidden, compute).await?;
        if let Some([attention, output, mlp]) = &mut self.inputs {
            attention.add(seen.attention_input, compute).await?;
            output.add(seen.attention.clone(), compute).await?;
            mlp.add(seen.mlp_input, compute).await?;
        }
        let query = compute.read(seen.query).await?;
        self.query.add_rows(&query);
        let key = compute.read(seen.key).await?;
        add_column_sums(&mut self.key_sum, &key);
        self.key.add_rows(&key);
        let value = compute.read(seen.value).await?;
        self.value.add_rows(&value);
        self.attention.add_rows(&compute.read(seen.attention).await?);
        if let Some(logits) = &mut self.logits {
            logits.add(&Rows { query: &query, key: &key, value: &value }, seq_len);
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> LayerStatistics {
        let (mlp, mlp_sum) = self.hidden.finish();
        let key_width = self.key.width();
        let (logit, logit_queries) = self.logits.map_or_else(Default::default, LogitEffects::finish);
        LayerStatistics {
            n_tokens: self.n_tokens,
            influence_sum: self.influence_sum,
            mlp,
            mlp_sum,
            query: self.query.finish(),
            key: self.key.finish(),
            key_sum: self.key_sum.chunks_exact(key_width).map(<[f64]>::to_vec).collect(),
            value: self.value.finish(),
            attention_output: self.attention.finish(),
            inverse_residual_sum: self.inverse_residual_sum,
            logit,
            logit_queries,
            inputs: self.inputs.map(|grams| {
                let [attention, output, mlp] = grams.map(|gram| gram.finish().0);
                InputGrams { attention, output, mlp }
            }),
            magnitudes: self.magnitudes.map(|[attention, output, mlp, hidden]| InputMagnitudes {
                attention,
                output,
                mlp,
                hidden,
            }),
        }
    }
}

/// Adds the magnitudes of every row of `rows` to `sum`, which has as many elements as a row.
fn add_magnitudes(sum: &mut [f64], rows: &[f32]) {
    for row in rows.chunks_exact(sum.len()) {
        sum.iter_mut().zip(row).for_each(|(total, value)| *total += f64::from(value.abs()));
    }
}

/// `Σ (1 - cos(x, y))` over rows; a row of zeros counts as unchanged.
fn influence_sum(before: &[f32], after: &[f32], d_model: usize) -> f64 {
    let cosine = |x: &[f32], y: &[f32]| {
        let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
        for (a, b) in x.iter().zip(y) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            xy += a * b;
            xx += a * a;
            yy += b * b;
        }
        if xx == 0.0 || yy == 0.0 { 1.0 } else { xy / (xx * yy).sqrt() }
    };
    before.chunks_exact(d_model).zip(after.chunks_exact(d_model)).map(|(x, y)| 1.0 - cosine(x, y)).sum()
}

#[cfg(test)]
mod tests {
    use super::{add_magnitudes, influence_sum};

    #[test]
    fn magnitudes_do_not_cancel() {
        let mut sums = vec![1.0, 0.0];
        add_magnitudes(&mut sums, &[0.5, -2.0, -0.5, 3.0]);
        assert_eq!(sums, [2.0, 5.0]);
    }

    #[test]
    fn influence_is_zero_for_scaling_one_for_a_right_angle_two_for_reversal() {
        let before = [1.0, 0.0, 1.0, 0.0, 3.0, 4.0];
        let after = [2.0, 0.0, 0.0, 5.0, -3.0, -4.0];
        assert!((influence_sum(&before, &after, 2) - 3.0).abs() < 1e-12);
        assert!((influence_sum(&before[..2], &after[..2], 2)).abs() < 1e-12);
    }
}
