//! From the residual stream to logits and losses, a part of the vocabulary at a time.

use burn::tensor::{Int, Tensor, TensorData};
use modegpt_architecture::{ModelConfig, WeightProvider};
use rayon::prelude::*;

use crate::{Compute, ComputeError, host, linear::Linear, norm::Norm};

mod comparison;

pub use comparison::{HeadInput, PairScores, compare_heads};

/// The last normalisation and the head.
#[derive(Debug)]
pub struct Head {
    final_norm: Option<Norm>,
    project_out: Option<Linear>,
    vocab: usize,
    chunk_rows: usize,
    /// The transposed parts of the head, where they stay on the device.
    resident: Vec<Tensor<2>>,
}

/// What is learnt of one token's prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScores {
    /// `ln Σ exp(logit)` over the vocabulary.
    pub log_sum_exp: f64,
    /// The logit of the token that came.
    pub target: f64,
    /// Whether no other token had a larger logit.
    pub is_top: bool,
}

impl TokenScores {
    /// Negative log-likelihood of the token that came, in nats.
    pub fn nll(&self) -> f64 {
        self.log_sum_exp - self.target
    }
}

impl Head {
    /// Rows of the head that are on the device at once. At a width of 4096 they take 128 MiB, what every device can bind.
    pub const LARGEST_PART: usize = 8192;

    /// The head of the model behind `weights`.
    ///
    /// # Errors
    /// [`ComputeError::Weights`] if the weights cannot be read.
    pub fn new(weights: &dyn WeightProvider, compute: &Compute) -> Result<Self, ComputeError> {
        let outer = weights.outer()?;
        let config: &ModelConfig = weights.config();
        let fits = compute.max_tensor_bytes / (4 * config.d_embedding);
        Ok(Self {
            final_norm: outer.final_norm.map(|norm| Norm::new(norm, config, compute)),
            project_out: outer.project_out.map(|linear| Linear::new(linear, compute)),
            vocab: config.vocab,
            chunk_rows: Self::LARGEST_PART.min(fits.max(1)),
            resident: Vec::new(),
        })
    }

    /// Keeps all parts of the head on the device, for use token after token.
    ///
    /// # Errors
    /// [`ComputeError::Weights`] if the weights cannot be read.
    pub fn keep_resident(&mut self, weights: &dyn WeightProvider, compute: &Compute) -> Result<(), ComputeError> {
        self.resident =
            self.chunks().map(|range| transposed_rows(weights, range, compute)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// The hidden states that the head's rows are multiplied with: `[rows, d_model]` → `[rows, d_embedding]`.
    pub fn hidden(&self, x: Tensor<2>) -> Tensor<2> {
        let x = match &self.final_norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        match &self.project_out {
            Some(project) => project.forward(x),
            None => x,
        }
    }

    /// The parts of the vocabulary that are on the device one after another.
    pub fn chunks(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (vocab, rows) = (self.vocab, self.chunk_rows);
        (0..vocab).step_by(rows).map(move |start| start..(start + rows).min(vocab))
    }

    /// Scores each target given the residual stream at its predecessor, batch by batch.
    ///
    /// Each batch is a residual stream `[rows, d_model]` with as many targets. Every part of the head is brought to the
    /// device once for all batches.
    ///
    /// # Errors
    /// [`ComputeError`] if weights cannot be read or the device fails.
    pub async fn score(
        &self,
        weights: &dyn WeightProvider,
        batches: &[(Vec<f32>, &[u32])],
        compute: &Compute,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<Vec<TokenScores>>, ComputeError> {
        let mut hidden = Vec::with_capacity(batches.len());
        for (x, targets) in batches {
            let x = compute.tensor(x.clone(), [targets.len(), x.len() / targets.len().max(1)]);
            hidden.push(self.hidden(x));
        }
        let mut running: Vec<Vec<Running>> = batches.iter().map(|(_, t)| vec![Running::default(); t.len()]).collect();
        let n_chunks = self.chunks().count();
        for (chunk_idx, range) in self.chunks().enumerate() {
            let rows = transposed_rows(weights, range.clone(), compute)?;
            for (batch_idx, (_, targets)) in batches.iter().enumerate() {
                let logits = hidden[batch_idx].clone().matmul(rows.clone());
                let part = partial_scores(logits, targets, &range, compute).await?;
                running[batch_idx].iter_mut().zip(part).for_each(|(all, part)| all.merge(part));
                progress(chunk_idx * batches.len() + batch_idx + 1, n_chunks * batches.len());
            }
        }
        Ok(running.into_iter().map(|rows| rows.into_iter().map(Running::finish).collect()).collect())
    }

    /// All logits of the given residual stream, `rows * vocab` of them on the host, row-major.
    ///
    /// # Errors
    /// As [`Head::score`].
    pub async fn logits(
        &self,
        weights: &dyn WeightProvider,
        x: Tensor<2>,
        compute: &Compute,
    ) -> Result<Vec<f32>, ComputeError> {
        let hidden = self.hidden(x);
        let n_rows = hidden.dims()[0];
        let mut logits = vec![0.0; n_rows * self.vocab];
        for (chunk_idx, range) in self.chunks().enumerate() {
            let rows = match self.resident.get(chunk_idx) {
                Some(rows) => rows.clone(),
                None => transposed_rows(weights, range.clone(), compute)?,
            };
            let part = compute.read(hidden.clone().matmul(rows)).await?;
            for (row, values) in part.chunks_exact(range.len()).enumerate() {
                logits[row * self.vocab..][range.clone()].copy_from_slice(values);
            }
        }
        Ok(logits)
    }
}

/// Rows `range` of the head as `[d_embedding, range.len()]`.
fn transposed_rows(
    weights: &dyn WeightProvider,
    range: std::ops::Range<usize>,
    compute: &Compute,
) -> Result<Tensor<2>, ComputeError> {
    Ok(compute.matrix(weights.head_rows(range)?).transpose())
}

/// Scores over a part of the vocabulary.
#[derive(Clone, Copy)]
struct Running {
    max: f64,
    /// `Σ exp(logit - max)`
    sum: f64,
    target: Option<f64>,
}

impl Default for Running {
    fn default() -> Self {
        Self { max: f64::NEG_INFINITY, sum: 0.0, target: None }
    }
}

impl Running {
    /// From the columns of [`score_columns`].
    fn new(columns: &[f32], target: u32, range: &std::ops::Range<usize>) -> Self {
        Self {
            max: f64::from(columns[0]),
            sum: f64::from(columns[1]),
            target: range.contains(&(target as usize)).then(|| f64::from(columns[2])),
        }
    }

    fn merge(&mut self, part: Self) {
        let max = self.max_with(part);
        self.sum = self.sum * (self.max - max).exp() + part.sum * (part.max - max).exp();
        self.max = max;
        self.target = self.target.or(part.target);
    }

    /// A plain maximum would hide a NaN; this keeps it.
    fn max_with(self, part: Self) -> f64 {
        if part.max > self.max || part.max.is_nan() { part.max } else { self.max }
    }

    fn finish(self) -> TokenScores {
        let target = self.target.unwrap_or(f64::NAN);
        TokenScores { log_sum_exp: self.max + self.sum.ln(), target, is_top: target >= self.max }
    }
}

/// `logits: [rows, range.len()]`
async fn partial_scores(
    logits: Tensor<2>,
    targets: &[u32],
    range: &std::ops::Range<usize>,
    compute: &Compute,
) -> Result<Vec<Running>, ComputeError> {
    if host::takes(&logits, compute) {
        return Ok(partial_scores_on_host(logits, targets, range));
    }
    let columns = score_columns(&logits, targets, range, compute);
    let rows = compute.read(Tensor::cat(columns.to_vec(), 1)).await?;
    Ok(rows.chunks_exact(3).zip(targets).map(|(row, target)| Running::new(row, *target, range)).collect())
}

fn partial_scores_on_host(logits: Tensor<2>, targets: &[u32], range: &std::ops::Range<usize>) -> Vec<Running> {
    let logits = logits.into_data();
    let rows = host::values(&logits).par_chunks_exact(range.len()).zip(targets);
    let score = |(row, target): (&[f32], &u32)| {
        let (max, sum) = host::log_sum_parts(row);
        let target = range.contains(&(*target as usize)).then(|| f64::from(row[*target as usize - range.start]));
        Running { max: f64::from(max), sum, target }
    };
    rows.map(score).collect()
}

/// Of every row its maximum, `Σ exp(logit - maximum)` and the logit of its target, `[rows, 1]` each.
fn score_columns(
    logits: &Tensor<2>,
    targets: &[u32],
    range: &std::ops::Range<usize>,
    compute: &Compute,
) -> [Tensor<2>; 3] {
    // A target elsewhere in the vocabulary is clamped into the part, and its value not used.
    let position = |target: u32| (target as usize).clamp(range.start, range.end - 1) - range.start;
    let indices: Vec<i32> = targets.iter().map(|t| position(*t) as i32).collect();
    let indices = TensorData::new(indices, [targets.len(), 1]);
    let indices = Tensor::<2, Int>::from_data(indices, (&compute.device, burn::tensor::DType::I32));
    let target = logits.clone().gather(1, indices);
    let max = logits.clone().max_dim(1);
    let sum = (logits.clone() - max.clone()).exp().sum_dim(1);
    [max, sum, target]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Targets within the part and elsewhere, at both ends, and logits of every size.
    #[test]
    fn the_host_scores_as_is_spelt_out() {
        let compute = Compute::host();
        for width in [1, 15, 70, 3000] {
            let (range, targets) = (100..100 + width, [0, 99, 100, 100 + width as u32 - 1, 100 + width as u32, 7000]);
            let values = (0..targets.len() * width).map(|at| 20.0 * (0.731 * at as f32).sin()).collect();
            let logits = compute.tensor(values, [targets.len(), width]);
            let columns = score_columns(&logits, &targets, &range, &compute);
            let columns = Tensor::cat(columns.to_vec(), 1).into_data();
            let found = partial_scores_on_host(logits, &targets, &range);
            for ((found, row), target) in found.iter().zip(host::values(&columns).chunks_exact(3)).zip(targets) {
                let expected = Running::new(row, target, &range);
                assert_eq!((found.max.to_bits(), found.target), (expected.max.to_bits(), expected.target));
                let difference = (found.sum / expected.sum - 1.0).abs();
                assert!(difference <= 1e-6, "{width} logits, target {target}: {difference:e}");
            }
        }
    }
}
