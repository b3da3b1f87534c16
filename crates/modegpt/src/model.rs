//! A checkpoint with its tokenizer.

use std::sync::Arc;

use modegpt_architecture::{Family, ModelConfig, WeightProvider};
use modegpt_checkpoint::{Checkpoint, LoadError, Source, total_params};
use modegpt_text::{BpeFamily, TextError, Tokenizer};
use serde_json::Value;

/// Far above any real tokenizer.
const TOKENIZER_LIMIT_BYTES: u64 = 256 << 20;

/// A model that can be run: weights on demand, and the tokenizer that belongs to them.
#[derive(Clone)]
pub struct Model {
    /// The weights.
    pub checkpoint: Checkpoint,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    fingerprint: String,
}

/// Why a model cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Weights or configuration.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TextError),
    /// There is no tokenizer.
    #[error("{place} has no tokenizer: expected `tokenizer.json`, or `vocab.json` with `merges.txt`")]
    NoTokenizer {
        /// Where it was looked for.
        place: String,
    },
    /// The tokenizer gives ids that the model does not have.
    #[error(
        "the tokenizer has {tokenizer} tokens, but the model's vocabulary only {model}: they do not belong together"
    )]
    Vocabulary {
        /// Tokens of the tokenizer.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
    },
}

impl Model {
    /// Opens the model in `source`.
    ///
    /// # Errors
    /// [`ModelError`], naming the file and what is wrong with it.
    pub fn open(source: Arc<dyn Source>) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(source)?;
        let tokenizer = open_tokenizer(&checkpoint)?;
        let vocab = checkpoint.config().vocab;
        if tokenizer.vocab_size() > vocab {
            return Err(ModelError::Vocabulary { tokenizer: tokenizer.vocab_size(), model: vocab });
        }
        let fingerprint = checkpoint.fingerprint()?;
        Ok(Self { checkpoint, tokenizer, fingerprint })
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// Tells this model from others; see [`Checkpoint::fingerprint`].
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// All parameters, embeddings included.
    pub fn params(&self) -> u64 {
        total_params(self.config())
    }

    /// Tokens that end a text: those of `generation_config.json` if it names any, else those of `config.json`.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let from_generation = self.checkpoint.companion("generation_config.json", 1 << 20).ok().flatten();
        let json = from_generation.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let ids = match json.as_ref().and_then(|json| json.get("eos_token_id")) {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
            Some(id) => id.as_u64().into_iter().collect(),
            None => Vec::new(),
        };
        if ids.is_empty() {
            return self.config().special_tokens.eos.clone();
        }
        ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect()
    }
}

fn open_tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, ModelError> {
    let read = |file| checkpoint.companion(file, TOKENIZER_LIMIT_BYTES);
    let tokenizer = match (read("tokenizer.json")?, read("vocab.json")?, read("merges.txt")?) {
        (Some(bytes), _, _) => Tokenizer::from_tokenizer_json(&bytes)?,
        (None, Some(vocab), Some(merges)) => {
            let family = match checkpoint.config().family {
                Family::Opt => BpeFamily::Opt,
                Family::Gpt2 | Family::Llama => BpeFamily::Gpt2,
            };
            return Ok(Tokenizer::from_bpe(&vocab, &merges, family)?);
        }
        _ => return Err(ModelError::NoTokenizer { place: checkpoint.source().describe() }),
    };
    Ok(match read("tokenizer_config.json")? {
        Some(bytes) => tokenizer.with_tokenizer_config(&bytes)?,
        None => tokenizer,
    })
}
