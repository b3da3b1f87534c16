//! The loss, and its gradient at the output of the last layer.
//!
//! ```text
//! h = norm(x) W_out,   p = softmax(h W_headᵀ),   ∂ℓ/∂h = (p − onehot(label)) W_head
//! ```
//!
//! The vocabulary is walked twice, a part at a time: once for the normaliser of the softmax, once for the gradient. Where
//! the label is drawn, the first walk finds the part in which it lies and the second the token. Norm and output projection
//! are differentiated by autodiff.

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData};
use modegpt_architecture::{ModelConfig, WeightProvider};
use modegpt_model::{Compute, ComputeError, Head};
use modegpt_statistics::Labels;

use crate::forward::check_finite;
use crate::sample::{PartScores, draw_part, draw_within, log_sum_exp, uniform};
use crate::{GradientError, Samples, Tape};

/// Positions for which the head is read once. At a width of 4096 their hidden states take 64 MiB.
const POSITIONS_PER_WALK: usize = 4096;

/// Rows whose logits for a part of the vocabulary are computed at once: 32 MiB.
const ROWS_PER_PRODUCT: usize = 1024;

/// The loss of all tokens that count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// How many there are.
    pub n_tokens: u64,
    /// The sum of their losses in nats.
    pub sum: f64,
}

/// Turns the last stream of the tape into the gradient of the loss with respect to it, and gives the loss.
///
/// `progress` is told what is done and what there is in all.
///
/// # Errors
/// [`GradientError`] if the samples do not fit the tape, none of their tokens counts, weights cannot be read, the device
/// fails, or a value is not finite.
pub async fn loss_gradient(
    weights: &dyn WeightProvider,
    samples: &Samples<'_>,
    labels: Labels,
    tape: &mut Tape<'_>,
    compute: &Compute,
    mut progress: impl FnMut(usize, usize),
) -> Result<Loss, GradientError> {
    let config = weights.config();
    let (last, seq_len) = (config.layers.len(), tape.seq_len());
    tape.check(samples, config.vocab)?;
    let predicting = samples.predicting(seq_len);
    if predicting.is_empty() {
        return Err(GradientError::NothingCounted);
    }
    let mut walk = Walk { weights, compute, head: Head::new(weights, compute)?, labels: Vec::new() };
    let mut sum = 0.0;
    for (index, positions) in predicting.chunks(POSITIONS_PER_WALK).enumerate() {
        walk.labels = positions.iter().map(|at| Label::new(labels, samples.ids, *at, seq_len)).collect();
        let x = gather(tape, last, positions)?;
        let (gradient, loss) = walk.gradient(&x, config.d_model).await?;
        scatter(tape, last, positions, &gradient)?;
        sum += loss;
        progress((index * POSITIONS_PER_WALK + positions.len()).min(predicting.len()), predicting.len());
    }
    clear_others(tape, last, &predicting, samples.ids.len())?;
    Ok(Loss { n_tokens: predicting.len() as u64, sum })
}

/// The token of which a position's loss is taken.
#[derive(Clone, Copy)]
enum Label {
    Known(usize),
    /// Not known yet: where in the cumulated probabilities it lies, from 0 to 1.
    Uniform(f64),
    /// Not known yet: in this part of the vocabulary, after so much of its probability.
    InPart(usize, f64),
}

impl Label {
    fn new(labels: Labels, ids: &[u32], position: usize, seq_len: usize) -> Self {
        match labels {
            Labels::Next => Self::Known(ids[position + 1] as usize),
            Labels::Sampled { seed } => Self::Uniform(uniform(seed, position / seq_len, position % seq_len)),
        }
    }

    fn find_part(self, scores: &[PartScores]) -> Self {
        match self {
            Self::Uniform(uniform) => {
                let (part, left) = draw_part(scores, uniform);
                Self::InPart(part, left)
            }
            known => known,
        }
    }
}

/// Elements that the gradient of the loss of `n_positions` holds at most: a part of the head as stored and transposed, four
/// tensors as large as the logits of some positions in that part (three are alive at once, and as measured one more is not
/// given back in time), and four as large as the stream of all positions.
pub fn loss_elements(config: &ModelConfig, n_positions: usize) -> usize {
    let n_positions = n_positions.min(POSITIONS_PER_WALK);
    let part = Head::LARGEST_PART.min(config.vocab);
    let rows = ROWS_PER_PRODUCT.min(n_positions);
    2 * part * config.d_embedding + 4 * rows * part + 4 * n_positions * config.d_model
}

/// Two walks over the vocabulary for some thousand positions.
struct Walk<'a> {
    weights: &'a dyn WeightProvider,
    compute: &'a Compute,
    head: Head,
    labels: Vec<Label>,
}

impl Walk<'_> {
    /// `x: [positions, d_model]`; gives the gradient, of the same shape, and the sum of losses.
    async fn gradient(&mut self, x: &[f32], d_model: usize) -> Result<(Vec<f32>, f64), GradientError> {
        let batches = self.batches();
        let part = |rows: &Range<usize>| x[rows.start * d_model..rows.end * d_model].to_vec();
        let inputs: Vec<Tensor<2>> =
            batches.iter().map(|rows| self.compute.tensor(part(rows), [rows.len(), d_model])).collect();
        let hidden: Vec<Tensor<2>> = inputs.iter().map(|x| self.head.hidden(x.clone())).collect();

        let normalisers = self.normalise(&batches, &hidden).await?;
        let (gradients, loss) = self.differentiate(&batches, &hidden, &normalisers).await?;

        let mut all = Vec::with_capacity(x.len());
        for (x, gradient) in inputs.into_iter().zip(gradients) {
            let x = x.autodiff().require_grad();
            let mut grads = (self.head.hidden(x.clone()) * gradient).sum().backward();
            let gradient = x.grad_remove(&mut grads).expect("the hidden states depend on the stream");
            all.extend(self.compute.read(gradient).await?);
        }
        check_finite(&all, "the gradient of the loss")?;
        Ok((all, loss))
    }

    fn batches(&self) -> Vec<Range<usize>> {
        let widest = self.head.chunks().map(|range| range.len()).max().unwrap_or(1);
        let at_once = (self.compute.max_tensor_bytes / (4 * widest)).clamp(1, ROWS_PER_PRODUCT);
        let n = self.labels.len();
        (0..n).step_by(at_once).map(|start| start..(start + at_once).min(n)).collect()
    }

    /// The first walk: `ln Σ exp(logit)` of every position, and the part of the vocabulary in which its label lies.
    async fn normalise(&mut self, batches: &[Range<usize>], hidden: &[Tensor<2>]) -> Result<Vec<f32>, GradientError> {
        let mut scores: Vec<Vec<PartScores>> = vec![Vec::new(); self.labels.len()];
        for range in self.head.chunks() {
            let head = self.compute.matrix(self.weights.head_rows(range).map_err(ComputeError::from)?).transpose();
            for (rows, hidden) in batches.iter().zip(hidden) {
                let logits = hidden.clone().matmul(head.clone());
                let max = logits.clone().max_dim(1);
                let sum = (logits - max.clone()).exp().sum_dim(1);
                let pairs = self.compute.read(Tensor::cat(vec![max, sum], 1)).await?;
                for (scores, pair) in scores[rows.clone()].iter_mut().zip(pairs.chunks_exact(2)) {
                    scores.push(PartScores { max: f64::from(pair[0]), sum: f64::from(pair[1]) });
                }
            }
        }
        for (label, scores) in self.labels.iter_mut().zip(&scores) {
            *label = label.find_part(scores);
        }
        let normalisers: Vec<f32> = scores.iter().map(|scores| log_sum_exp(scores) as f32).collect();
        check_finite(&normalisers, "the logits")?;
        Ok(normalisers)
    }

    /// The second walk: the gradient of every position's hidden state, and the sum of losses.
    async fn differentiate(
        &mut self,
        batches: &[Range<usize>],
        hidden: &[Tensor<2>],
        normalisers: &[f32],
    ) -> Result<(Vec<Tensor<2>>, f64), GradientError> {
        let mut gradients: Vec<Tensor<2>> = hidden.iter().map(Tensor::zeros_like).collect();
        let mut loss = 0.0;
        for (part, range) in self.head.chunks().enumerate() {
            let head = self.weights.head_rows(range.clone()).map_err(ComputeError::from)?;
            let head = self.compute.matrix(head);
            for ((rows, hidden), gradient) in batches.iter().zip(hidden).zip(&mut gradients) {
                let normaliser = self.compute.tensor(normalisers[rows.clone()].to_vec(), [rows.len(), 1]);
                let log_probabilities = hidden.clone().matmul(head.clone().transpose()) - normaliser;
                let probabilities = log_probabilities.clone().exp();
                self.find_labels(rows, part, &range, &probabilities).await?;
                let (places, inside) = self.places(rows, &range);
                let indices = self.indices(&places);
                let labelled = log_probabilities.gather(1, indices.clone().reshape([rows.len(), 1]));
                let labelled = self.compute.read(labelled).await?;
                loss -= labelled.iter().zip(&inside).map(|(log_p, inside)| f64::from(log_p * inside)).sum::<f64>();
                let inside = self.compute.tensor(inside, [rows.len(), 1]);
                let more = probabilities.matmul(head.clone()) - head.clone().select(0, indices) * inside;
                *gradient = gradient.clone() + more;
            }
        }
        Ok((gradients, loss))
    }

    /// Draws the labels that are known to lie in this part.
    async fn find_labels(
        &mut self,
        rows: &Range<usize>,
        part: usize,
        range: &Range<usize>,
        probabilities: &Tensor<2>,
    ) -> Result<(), GradientError> {
        let here = |(row, label): (usize, &Label)| match label {
            Label::InPart(found, left) if *found == part => Some((row, *left)),
            _ => None,
        };
        let (chosen, left): (Vec<usize>, Vec<f64>) =
            self.labels[rows.clone()].iter().enumerate().filter_map(here).unzip();
        if chosen.is_empty() {
            return Ok(());
        }
        let values = self.compute.read(probabilities.clone().select(0, self.indices(&chosen))).await?;
        for ((row, left), values) in chosen.into_iter().zip(left).zip(values.chunks_exact(range.len())) {
            self.labels[rows.start + row] = Label::Known(range.start + draw_within(values, left));
        }
        Ok(())
    }

    /// For each row the place of its label in `range`, and one if it is there. A label elsewhere is given any place and
    /// a zero.
    fn places(&self, rows: &Range<usize>, range: &Range<usize>) -> (Vec<usize>, Vec<f32>) {
        let place = |label: &Label| match label {
            Label::Known(token) if range.contains(token) => (token - range.start, 1.0),
            _ => (0, 0.0),
        };
        self.labels[rows.clone()].iter().map(place).unzip()
    }

    fn indices(&self, places: &[usize]) -> Tensor<1, Int> {
        let data = TensorData::new(places.iter().map(|place| *place as i32).collect(), [places.len()]);
        Tensor::from_data(data, (&self.compute.device, DType::I32))
    }
}

/// Rows of a stream at ascending positions.
fn gather(tape: &Tape<'_>, index: usize, positions: &[usize]) -> Result<Vec<f32>, GradientError> {
    let mut rows = Vec::new();
    for run in runs(positions) {
        rows.extend(tape.rows(index, run)?);
    }
    Ok(rows)
}

fn scatter(tape: &mut Tape<'_>, index: usize, positions: &[usize], rows: &[f32]) -> Result<(), GradientError> {
    let width = rows.len() / positions.len();
    let mut start = 0;
    for run in runs(positions) {
        let end = start + run.len() * width;
        tape.replace_rows(index, run.start, &rows[start..end])?;
        start = end;
    }
    Ok(())
}

/// Positions that predict nothing have no gradient.
fn clear_others(tape: &mut Tape<'_>, index: usize, positions: &[usize], n: usize) -> Result<(), GradientError> {
    let runs = runs(positions);
    let starts = std::iter::once(0).chain(runs.iter().map(|run| run.end));
    let ends = runs.iter().map(|run| run.start).chain([n]);
    for (start, end) in starts.zip(ends) {
        let zeros = vec![0.0; tape.rows(index, start..end)?.len()];
        tape.replace_rows(index, start, &zeros)?;
    }
    Ok(())
}

/// Ascending numbers as ranges of consecutive ones.
fn runs(positions: &[usize]) -> Vec<Range<usize>> {
    positions.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[0] + run.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn runs_cover_the_positions() {
        assert_eq!(runs(&[0, 1, 2, 5, 7, 8]), [0..3, 5..6, 7..9]);
        assert!(runs(&[]).is_empty());
    }
}
