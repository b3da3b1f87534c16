//! The predictions of two models side by side, a part of the vocabulary at a time.

use std::ops::Range;

use burn::tensor::Tensor;
use modegpt_architecture::WeightProvider;

use super::{Head, Running, TokenScores, score_columns, transposed_rows};
use crate::{Compute, ComputeError};

/// The end of one model.
#[derive(Clone, Copy)]
pub struct HeadInput<'a> {
    /// Its head.
    pub head: &'a Head,
    /// Where the head's rows come from.
    pub weights: &'a dyn WeightProvider,
    /// The residual stream at the predecessors of the targets, `[rows, d_model]`, batch by batch.
    pub batches: &'a [Vec<f32>],
}

/// What two models predict at one place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairScores {
    /// Of the model that the other is measured against.
    pub reference: TokenScores,
    /// Of the other.
    pub other: TokenScores,
    /// `KL(p ‖ q) = Σ p (ln p - ln q)` in nats, with `p` of the reference and `q` of the other.
    pub divergence: f64,
    /// Whether both think the same token likeliest.
    pub agree: bool,
}

/// Compares two models of the same vocabulary at the same places, `targets` being the tokens that came.
///
/// ```text
/// KL(p ‖ q) = Σ p (a - b) - ln Σ exp(a) + ln Σ exp(b)
/// ```
///
/// for logits `a` of the reference and `b` of the other, in one pass over the vocabulary. The sums over a part are f32,
/// those over the parts f64: errors are of the order of 1e-6 times the largest `|a - b|`, so that a divergence that is
/// nothing may come out a little below zero.
///
/// # Errors
/// [`ComputeError`] if weights cannot be read or the device fails.
///
/// # Panics
/// If the vocabularies, or the numbers of rows and targets, differ.
pub async fn compare_heads(
    reference: HeadInput<'_>,
    other: HeadInput<'_>,
    targets: &[&[u32]],
    compute: &Compute,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Vec<PairScores>>, ComputeError> {
    let vocab = reference.head.vocab;
    assert_eq!(vocab, other.head.vocab, "models of different vocabularies cannot be compared");
    let chunk_rows = reference.head.chunk_rows.min(other.head.chunk_rows);
    let hidden = [hidden(reference, targets, compute), hidden(other, targets, compute)];
    let mut running: Vec<Vec<Pair>> = targets.iter().map(|t| vec![Pair::default(); t.len()]).collect();
    let n_chunks = vocab.div_ceil(chunk_rows);
    for chunk_idx in 0..n_chunks {
        let range = chunk_idx * chunk_rows..((chunk_idx + 1) * chunk_rows).min(vocab);
        let rows = [reference, other].map(|side| transposed_rows(side.weights, range.clone(), compute));
        let [reference_rows, other_rows] = rows;
        let (reference_rows, other_rows) = (reference_rows?, other_rows?);
        for (batch_idx, targets_of_batch) in targets.iter().enumerate() {
            let a = hidden[0][batch_idx].clone().matmul(reference_rows.clone());
            let b = hidden[1][batch_idx].clone().matmul(other_rows.clone());
            let part = partial_pairs(a, b, targets_of_batch, &range, compute).await?;
            running[batch_idx].iter_mut().zip(part).for_each(|(all, part)| all.merge(part));
            progress(chunk_idx * targets.len() + batch_idx + 1, n_chunks * targets.len());
        }
    }
    Ok(running.into_iter().map(|pairs| pairs.into_iter().map(Pair::finish).collect()).collect())
}

fn hidden(input: HeadInput<'_>, targets: &[&[u32]], compute: &Compute) -> Vec<Tensor<2>> {
    assert_eq!(input.batches.len(), targets.len(), "every batch has its targets");
    let batches = input.batches.iter().zip(targets);
    let hidden = batches.map(|(x, targets)| {
        let x = compute.tensor(x.clone(), [targets.len(), x.len() / targets.len().max(1)]);
        input.head.hidden(x)
    });
    hidden.collect()
}

/// Scores of two models over a part of the vocabulary.
#[derive(Clone, Copy, Default)]
struct Pair {
    reference: Running,
    other: Running,
    /// `Σ exp(a - max a) (a - b)`
    weighted: f64,
    /// The likeliest token of each.
    top: [usize; 2],
}

impl Pair {
    fn merge(&mut self, part: Self) {
        if part.reference.max > self.reference.max {
            self.top[0] = part.top[0];
        }
        if part.other.max > self.other.max {
            self.top[1] = part.top[1];
        }
        let max = self.reference.max_with(part.reference);
        self.weighted =
            self.weighted * (self.reference.max - max).exp() + part.weighted * (part.reference.max - max).exp();
        self.reference.merge(part.reference);
        self.other.merge(part.other);
    }

    fn finish(self) -> PairScores {
        let mean = self.weighted / self.reference.sum;
        let (reference, other) = (self.reference.finish(), self.other.finish());
        PairScores {
            reference,
            other,
            divergence: mean - reference.log_sum_exp + other.log_sum_exp,
            agree: self.top[0] == self.top[1],
        }
    }
}

/// Logits `a` and `b`: `[rows, range.len()]`.
async fn partial_pairs(
    a: Tensor<2>,
    b: Tensor<2>,
    targets: &[u32],
    range: &Range<usize>,
    compute: &Compute,
) -> Result<Vec<Pair>, ComputeError> {
    let mut columns = Vec::with_capacity(9);
    columns.extend(score_columns(&a, targets, range, compute));
    columns.extend(score_columns(&b, targets, range, compute));
    let weights = (a.clone() - columns[0].clone()).exp();
    columns.push((weights * (a.clone() - b.clone())).sum_dim(1));
    // Places within a part are far below 2²⁴, so f32 holds them exactly.
    columns.extend([a.argmax(1).float(), b.argmax(1).float()]);
    let rows = compute.read(Tensor::cat(columns, 1)).await?;
    let pair = |(row, target): (&[f32], &u32)| Pair {
        reference: Running::new(&row[..3], *target, range),
        other: Running::new(&row[3..6], *target, range),
        weighted: f64::from(row[6]),
        top: [row[7], row[8]].map(|place| range.start + place as usize),
    };
    Ok(rows.chunks_exact(9).zip(targets).map(pair).collect())
}
