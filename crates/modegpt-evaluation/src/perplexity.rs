//! Perplexity, with one layer in memory.

use modegpt_architecture::WeightProvider;
use modegpt_model::{Compute, ComputeError, Head, ResidualStream, TokenScores};
use serde::Serialize;

use crate::layers::{layer_share, run_layers};

/// One window of a text.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Its tokens; all windows have equally many.
    pub ids: &'a [u32],
    /// Position of the first token that is scored, at least 1. Those before are context only.
    pub first_target: usize,
}

/// How much is computed at once; changes memory and speed only.
#[derive(Clone, Copy, Debug)]
pub struct ScoringOptions {
    /// Windows that pass through a block together.
    pub batch: usize,
    /// Bytes that the residual stream of the windows in work may take. Every layer is loaded once for each such group.
    pub stream_bytes: usize,
}

/// Summed losses of a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Tokens scored.
    pub n_tokens: u64,
    /// `-Σ ln p(token)`, in nats.
    pub nll_sum: f64,
    /// Tokens that the model thought likeliest.
    pub n_top: u64,
    /// `-ln p(token)` of every token scored, in order.
    #[serde(skip)]
    pub nll: Vec<f64>,
}

impl Score {
    /// Loss of a token, in nats: `nll_sum / n_tokens`.
    pub fn mean(&self) -> f64 {
        self.nll_sum / self.n_tokens as f64
    }

    /// `exp(nll_sum / n_tokens)`
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    pub(crate) fn add(&mut self, scores: &[TokenScores]) {
        for score in scores {
            self.n_tokens += 1;
            self.nll_sum += score.nll();
            self.n_top += u64::from(score.is_top);
            self.nll.push(score.nll());
        }
    }
}

/// Scores all windows. `progress` is told the share of the work that is done, in `[0, 1]`.
///
/// # Errors
/// [`ComputeError`] if weights cannot be read, the device fails, or a loss is not finite.
pub async fn score_windows(
    weights: &dyn WeightProvider,
    windows: &[Window<'_>],
    options: ScoringOptions,
    compute: &Compute,
    mut progress: impl FnMut(f64),
) -> Result<Score, ComputeError> {
    let config = weights.config();
    let mut score = Score::default();
    let Some(seq_len) = windows.first().map(|window| window.ids.len()) else {
        return Ok(score);
    };
    let window_bytes = seq_len * config.d_model * 4;
    let group = (options.stream_bytes / window_bytes).max(1);
    // The head counts as some layers' worth of work, by its share of the multiplications.
    let layers = layer_share(weights);
    for (group_idx, windows_in_group) in windows.chunks(group).enumerate() {
        let done = (group_idx * group) as f64 / windows.len() as f64;
        let share = windows_in_group.len() as f64 / windows.len() as f64;
        let mut report = |part: f64| progress(done + share * part);
        let ids: Vec<u32> = windows_in_group.iter().flat_map(|window| window.ids).copied().collect();
        let mut stream = ResidualStream::in_memory(windows_in_group.len(), seq_len, config.d_model, options.batch);
        stream.embed(weights, &ids, compute).await?;
        run_layers(weights, std::slice::from_mut(&mut stream), compute, |part| report(part * layers)).await?;
        let head_progress = |part: f64| report(layers + part * (1.0 - layers));
        score_stream(weights, &stream, windows_in_group, compute, &mut score, head_progress).await?;
    }
    finite(score)
}

/// Scores windows whose residual stream has come to the end of the layers, one sample of the stream for each window.
///
/// # Errors
/// As [`score_windows`].
pub async fn score_end(
    weights: &dyn WeightProvider,
    stream: &ResidualStream<'_>,
    windows: &[Window<'_>],
    compute: &Compute,
) -> Result<Score, ComputeError> {
    let mut score = Score::default();
    score_stream(weights, stream, windows, compute, &mut score, |_| ()).await?;
    finite(score)
}

fn finite(score: Score) -> Result<Score, ComputeError> {
    if score.nll_sum.is_finite() { Ok(score) } else { Err(ComputeError::NotFinite { what: "the loss".to_owned() }) }
}

/// Applies the head to the end of the stream.
async fn score_stream(
    weights: &dyn WeightProvider,
    stream: &ResidualStream<'_>,
    windows: &[Window<'_>],
    compute: &Compute,
    score: &mut Score,
    mut progress: impl FnMut(f64),
) -> Result<(), ComputeError> {
    let head = Head::new(weights, compute)?;
    let d_model = weights.config().d_model;
    let mut batches = Vec::with_capacity(windows.len());
    for (idx, window) in windows.iter().enumerate() {
        let hidden = stream.load(&(idx..idx + 1))?;
        // The state at position t - 1 predicts token t.
        let scored = window.first_target - 1..window.ids.len() - 1;
        let rows = hidden[scored.start * d_model..scored.end * d_model].to_vec();
        batches.push((rows, &window.ids[window.first_target..]));
    }
    let report = |done: usize, all: usize| progress(done as f64 / all as f64);
    for scores in head.score(weights, &batches, compute, report).await? {
        score.add(&scores);
    }
    Ok(())
}
