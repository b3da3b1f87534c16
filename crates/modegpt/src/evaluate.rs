//! Perplexity of a model on a text.

use modegpt_evaluation::{ScoringOptions, Window, score_windows};
use modegpt_model::{Compute, ComputeError};
use modegpt_text::{Corpus, TextError, evaluation_windows, token_hash};
use serde::Serialize;

use crate::{Model, Reporter, text::encode};

/// How a text is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluationOptions {
    /// Tokens of a window.
    pub seq_len: usize,
    /// Distance between windows; `seq_len` is what papers do.
    pub stride: usize,
    /// Score only so many windows.
    pub max_windows: Option<usize>,
    /// Tokens computed at once.
    pub batch_tokens: usize,
}

/// The result, with the protocol that it was measured by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// `exp` of the mean loss of a token.
    pub perplexity: f64,
    /// Tokens scored.
    pub n_tokens: u64,
    /// Windows.
    pub n_windows: usize,
    /// Tokens of a window.
    pub seq_len: usize,
    /// Distance between windows.
    pub stride: usize,
    /// Share of tokens that the model thought likeliest.
    pub top1_accuracy: f64,
    /// SHA-256 of the windows' ids.
    pub token_hash: String,
}

/// Why a model could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// The text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The forward pass.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

/// The residual stream of windows in work stays below this.
const STREAM_BYTES: usize = 256 << 20;

/// Scores texts, joined in the given order, with one layer of the model in memory.
///
/// # Errors
/// [`EvaluationError`] if there is too little text, the weights cannot be read or the device fails.
pub async fn evaluate(
    model: &Model,
    corpora: &[Corpus],
    options: EvaluationOptions,
    compute: &Compute,
    reporter: &dyn Reporter,
) -> Result<Evaluation, EvaluationError> {
    let most = model.config().max_positions;
    if options.seq_len > most {
        return Err(ComputeError::TooLong { found: options.seq_len, most }.into());
    }
    let tokens = encode(model, corpora)?;
    let windows = evaluation_windows(&tokens, options.seq_len, options.stride, options.max_windows)?;
    let scored: Vec<Window<'_>> = windows.iter().map(|w| Window { ids: w.ids, first_target: w.first_target }).collect();
    let scoring = ScoringOptions { batch: (options.batch_tokens / options.seq_len).max(1), stream_bytes: STREAM_BYTES };
    let work = (windows.n() * windows.seq_len()) as f64;
    reporter.begin("evaluate", work as u64);
    let score =
        score_windows(&model.checkpoint, &scored, scoring, compute, |share| reporter.advance((share * work) as u64))
            .await;
    reporter.end();
    let score = score?;
    Ok(Evaluation {
        perplexity: score.perplexity(),
        n_tokens: score.n_tokens,
        n_windows: windows.n(),
        seq_len: windows.seq_len(),
        stride: options.stride,
        top1_accuracy: score.n_top as f64 / score.n_tokens as f64,
        token_hash: token_hash(windows.ids()),
    })
}
