//! Perplexity of a model on a text, alone or beside another model.

use modegpt_evaluation::{KeptStreams, Score, ScoringOptions, StreamError, Window, compare_windows, score_windows};
use modegpt_model::{Compute, ComputeError};
use modegpt_text::{Corpus, EvaluationWindows, TextError, evaluation_windows, token_hash};
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
    /// Two models whose predictions cannot be compared token by token.
    #[error("the models cannot be compared: {what}")]
    Different {
        /// What differs.
        what: String,
    },
}

/// The residual stream of windows in work stays below this.
const STREAM_BYTES: usize = 256 << 20;

/// How a model's predictions compare with those of the model that it was made from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Mean of `KL(dense ‖ model)` over the scored tokens, in nats.
    pub kl_divergence: f64,
    /// Share of the scored tokens at which both think the same token likeliest.
    pub top1_agreement: f64,
    /// The dense model's perplexity on the same tokens.
    pub dense_perplexity: f64,
    /// Squared distance of the residual streams behind each layer, as a share of the dense one's energy: the error that
    /// the layers really incur together. Empty if the models have not the same layers.
    pub layer_errors: Vec<f64>,
}

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
    let windows = lay_windows(model, corpora, options)?;
    let work = (windows.n() * windows.seq_len()) as f64;
    let progress = |share| reporter.advance((share * work) as u64);
    reporter.begin("evaluate", work as u64);
    let score = score_windows(&model.checkpoint, &scored(&windows), options.scoring(), compute, progress).await;
    reporter.end();
    Ok(Evaluation::new(&score?, &windows, options))
}

/// As [`evaluate`], and compares the predictions with those of `dense`, with one layer of each in memory.
///
/// # Errors
/// As [`evaluate`], of either model; [`EvaluationError::Different`] if they do not read the same tokens.
pub async fn evaluate_against(
    model: &Model,
    dense: &Model,
    corpora: &[Corpus],
    options: EvaluationOptions,
    compute: &Compute,
    reporter: &dyn Reporter,
) -> Result<(Evaluation, Comparison), EvaluationError> {
    evaluate_against_kept(model, dense, corpora, options, None, compute, reporter).await
}

/// As [`evaluate_against`], without computing again what is kept of the streams of `dense` on these texts.
pub(crate) async fn evaluate_against_kept(
    model: &Model,
    dense: &Model,
    corpora: &[Corpus],
    options: EvaluationOptions,
    kept: Option<&dyn KeptStreams>,
    compute: &Compute,
    reporter: &dyn Reporter,
) -> Result<(Evaluation, Comparison), EvaluationError> {
    let (vocab, dense_vocab) = (model.config().vocab, dense.config().vocab);
    if vocab != dense_vocab {
        let what = format!("the vocabularies have {vocab} and {dense_vocab} tokens");
        return Err(EvaluationError::Different { what });
    }
    let windows = lay_windows(model, corpora, options)?;
    if lay_windows(dense, corpora, options)? != windows {
        return Err(EvaluationError::Different { what: "their tokenizers disagree on the text".to_owned() });
    }
    let work = (windows.n() * windows.seq_len()) as f64;
    let progress = |share| reporter.advance((share * work) as u64);
    reporter.begin("compare", work as u64);
    let models = (&dense.checkpoint, &model.checkpoint);
    let found =
        compare_windows(models.0, models.1, &scored(&windows), options.scoring(), kept, compute, progress).await;
    reporter.end();
    let found = found?;
    let comparison = Comparison {
        kl_divergence: found.kl_divergence(),
        top1_agreement: found.top1_agreement(),
        dense_perplexity: found.reference.perplexity(),
        layer_errors: found.layers.iter().map(StreamError::relative).collect(),
    };
    Ok((Evaluation::new(&found.other, &windows, options), comparison))
}

/// What [`evaluate`] would read: SHA-256 of the windows' ids, without computing anything.
///
/// # Errors
/// [`EvaluationError`] if there is too little text, or the windows do not fit the model.
pub fn evaluation_token_hash(
    model: &Model,
    corpora: &[Corpus],
    options: EvaluationOptions,
) -> Result<String, EvaluationError> {
    Ok(token_hash(lay_windows(model, corpora, options)?.ids()))
}

impl EvaluationOptions {
    fn scoring(self) -> ScoringOptions {
        ScoringOptions { batch: (self.batch_tokens / self.seq_len).max(1), stream_bytes: STREAM_BYTES }
    }
}

impl Evaluation {
    fn new(score: &Score, windows: &EvaluationWindows, options: EvaluationOptions) -> Self {
        Self {
            perplexity: score.perplexity(),
            n_tokens: score.n_tokens,
            n_windows: windows.n(),
            seq_len: windows.seq_len(),
            stride: options.stride,
            top1_accuracy: score.n_top as f64 / score.n_tokens as f64,
            token_hash: token_hash(windows.ids()),
        }
    }
}

/// The windows over all texts, if the model can read them.
fn lay_windows(
    model: &Model,
    corpora: &[Corpus],
    options: EvaluationOptions,
) -> Result<EvaluationWindows, EvaluationError> {
    let most = model.config().max_positions;
    if options.seq_len > most {
        return Err(ComputeError::TooLong { found: options.seq_len, most }.into());
    }
    let tokens = encode(model, corpora)?;
    Ok(evaluation_windows(&tokens, options.seq_len, options.stride, options.max_windows)?)
}

fn scored(windows: &EvaluationWindows) -> Vec<Window<'_>> {
    windows.iter().map(|window| Window { ids: window.ids, first_target: window.first_target }).collect()
}
