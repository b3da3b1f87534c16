//! Calibration text as tokens.

use modegpt_text::{BosPolicy, Corpus, Strategy, TextError, TextJoin, Windows, check_vocabulary, token_hash, windows};

use crate::Model;

/// How calibration samples are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalibrationOptions {
    /// Number of samples.
    pub n_samples: usize,
    /// Tokens of each.
    pub seq_len: usize,
    /// Seed of the draw.
    pub seed: u64,
    /// How samples are placed in the text.
    pub strategy: Strategy,
}

/// Calibration samples, and what names them in reports.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// The samples.
    pub windows: Windows,
    /// SHA-256 of their ids.
    pub token_hash: String,
}

impl Calibration {
    /// Draws samples from texts, joined in the given order.
    ///
    /// # Errors
    /// [`TextError`] if there is too little text, or the tokenizer does not fit the model.
    pub fn draw(model: &Model, corpora: &[Corpus], options: CalibrationOptions) -> Result<Self, TextError> {
        Self::of(&encode(model, corpora)?, options)
    }
}

impl Calibration {
    /// As [`Calibration::draw`], and `n_held_out` more samples of the same text, if it has so many; they overlap with none.
    /// Only of samples drawn at random: those spread over the text leave none out.
    ///
    /// # Errors
    /// As [`Calibration::draw`].
    pub fn draw_and_hold_out(
        model: &Model,
        corpora: &[Corpus],
        options: CalibrationOptions,
        n_held_out: usize,
    ) -> Result<(Self, Option<Self>), TextError> {
        let CalibrationOptions { n_samples, seq_len, strategy, .. } = options;
        let tokens = encode(model, corpora)?;
        let all = n_samples + n_held_out;
        if strategy != Strategy::Random || n_held_out == 0 || tokens.len() / seq_len.max(1) < all {
            return Ok((Self::of(&tokens, options)?, None));
        }
        let Windows { mut ids, .. } = Self::of(&tokens, CalibrationOptions { n_samples: all, ..options })?.windows;
        let held_out = ids.split_off(n_samples * seq_len);
        let named = |ids: Vec<u32>, n: usize| {
            let token_hash = token_hash(&ids);
            Self { windows: Windows { ids, n, seq_len }, token_hash }
        };
        Ok((named(ids, n_samples), Some(named(held_out, n_held_out))))
    }

    fn of(tokens: &[u32], options: CalibrationOptions) -> Result<Self, TextError> {
        let CalibrationOptions { n_samples, seq_len, seed, strategy } = options;
        let windows = windows(tokens, n_samples, seq_len, seed, strategy)?;
        let token_hash = token_hash(&windows.ids);
        Ok(Self { windows, token_hash })
    }
}

/// The tokens of all texts, each document behind the tokens that the original tokenizer puts first.
pub(crate) fn encode(model: &Model, corpora: &[Corpus]) -> Result<Vec<u32>, TextError> {
    let mut tokens = Vec::new();
    for corpus in corpora {
        tokens.extend(corpus.encode(&model.tokenizer, BosPolicy::EachDocument)?);
    }
    check_vocabulary(&tokens, model.config().vocab)?;
    Ok(tokens)
}

/// How the content of a text file becomes text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorpusOptions {
    /// Field of a jsonl or JSON file that holds the text; the usual ones if `None`.
    pub field: Option<String>,
    /// How lines of plain text are joined; by the file's name if `None`.
    pub join: Option<TextJoin>,
}

/// Reads the content of a text file, by the ending of its name.
///
/// # Errors
/// [`TextError`] if the content is not what the name's ending promises.
pub fn read_corpus(name: &str, bytes: &[u8], options: &CorpusOptions) -> Result<Corpus, TextError> {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    let text = || String::from_utf8_lossy(bytes);
    match (ending, &options.field, options.join) {
        (Some("jsonl"), Some(field), _) => Corpus::from_jsonl(name, &text(), field),
        (Some("json"), Some(field), _) => Corpus::from_json_array(name, &text(), Some(field)),
        (Some("jsonl" | "json"), None, _) | (_, _, None) => Corpus::from_file(name, bytes),
        (_, _, Some(join)) => Corpus::from_plain_joined(name, &text(), join),
    }
}
