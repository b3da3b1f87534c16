//! Which tokens the original tokenizer puts before a text.

use serde::Deserialize;

use crate::TextError;
use crate::tokenizer::{BpeFamily, bad, encode};

/// Texts tried in turn to see where a post-processor puts its tokens; any one that has a token of its own will do.
const PROBES: [&str; 6] = ["a", "the", "0", ".", "\n", "é"];

/// The special tokens before a text, and only those (`BERT` puts one behind as well), found by encoding a short text.
pub(crate) fn from_post_processor(tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>, TextError> {
    for probe in PROBES {
        let n_text = encode(tokenizer, probe, false)?.get_ids().len();
        let full = encode(tokenizer, probe, true)?;
        let is_special = full.get_special_tokens_mask();
        // A probe that is itself unknown would make the end of the prefix a guess.
        if n_text == 0 || is_special.iter().all(|mask| *mask == 1) {
            continue;
        }
        let n_prefix = is_special.iter().take_while(|mask| **mask == 1).count();
        return Ok(full.get_ids().iter().copied().take(n_prefix).collect());
    }
    Err(bad("tokenizer.json", "not even single letters have tokens"))
}

/// The prefix of a vocabulary that comes without a post-processor, with the sentence that explains it.
pub(crate) fn of_family(tokenizer: &tokenizers::Tokenizer, family: BpeFamily) -> Result<(Vec<u32>, String), TextError> {
    match family {
        BpeFamily::Gpt2 => Ok((Vec::new(), "GPT-2's tokenizer puts no token before a text".to_owned())),
        BpeFamily::Opt => {
            let ids = vec![require(tokenizer, "</s>", "OPT's tokenizer puts before a text")?];
            let note = format!("OPT's tokenizer puts {} before a text", describe(tokenizer, &ids));
            Ok((ids, note))
        }
    }
}

/// `` `</s>` (2)``, for every id.
pub(crate) fn describe(tokenizer: &tokenizers::Tokenizer, ids: &[u32]) -> String {
    let name = |id: &u32| format!("`{}` ({id})", tokenizer.id_to_token(*id).unwrap_or_default());
    ids.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// The fields of a `tokenizer_config.json` that decide about the prefix.
#[derive(Deserialize)]
pub(crate) struct TokenizerConfig {
    tokenizer_class: Option<String>,
    add_bos_token: Option<bool>,
    bos_token: Option<TokenJson>,
}

/// A token is written as text or as an object around its text.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenJson {
    Text(String),
    Object { content: String },
}

impl TokenizerConfig {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, TextError> {
        serde_json::from_slice(bytes).map_err(|e| bad("tokenizer_config.json", e.to_string()))
    }

    /// The prefix and the sentence that explains it, or `None` if the configuration leaves it to the tokenizer file.
    pub(crate) fn decide(&self, tokenizer: &tokenizers::Tokenizer) -> Result<Option<(Vec<u32>, String)>, TextError> {
        let class = self.tokenizer_class.as_deref().unwrap_or_default();
        let is_llama = class.trim_end_matches("Fast") == "LlamaTokenizer";
        match (self.add_bos_token, &self.bos_token) {
            (Some(true), None) => {
                Err(bad("tokenizer_config.json", "`add_bos_token` is true, but there is no `bos_token`"))
            }
            (Some(true), Some(token)) => {
                self::bos(tokenizer, token, "`add_bos_token` in tokenizer_config.json is true")
            }
            (None, Some(token)) if is_llama => {
                self::bos(tokenizer, token, "tokenizer_config.json names Llama's tokenizer class")
            }
            (Some(false), _) => {
                let note = "`add_bos_token` in tokenizer_config.json is false: no token before a text";
                Ok(Some((Vec::new(), note.to_owned())))
            }
            (None, _) => Ok(None),
        }
    }
}

fn bos(
    tokenizer: &tokenizers::Tokenizer,
    token: &TokenJson,
    reason: &str,
) -> Result<Option<(Vec<u32>, String)>, TextError> {
    let (TokenJson::Text(content) | TokenJson::Object { content }) = token;
    let ids = vec![require(tokenizer, content, "tokenizer_config.json puts before a text")?];
    let note = format!("{reason}: {} before a text", describe(tokenizer, &ids));
    Ok(Some((ids, note)))
}

fn require(tokenizer: &tokenizers::Tokenizer, token: &str, role: &'static str) -> Result<u32, TextError> {
    tokenizer.token_to_id(token).ok_or_else(|| TextError::MissingToken {
        token: token.to_owned(),
        role,
        vocab_size: tokenizer.get_vocab_size(true),
    })
}
