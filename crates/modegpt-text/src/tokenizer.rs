//! Tokenizers of the published checkpoints, from the bytes of their files.

use std::collections::HashMap;

use tokenizers::AddedToken;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::TextError;
use crate::admission;
use crate::prefix::{self, TokenizerConfig};

/// A tokenizer and the tokens that it puts before a text.
///
/// Truncation and padding stored in a `tokenizer.json` are switched off, and so is BPE dropout: encoding a text gives all
/// of its tokens, and the same ones every time.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    prefix_ids: Vec<u32>,
    special_tokens_note: String,
}

/// The families published as `vocab.json` and `merges.txt`: byte-level BPE without a space put in front of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpeFamily {
    /// Puts nothing before a text.
    Gpt2,
    /// Puts `</s>` before a text.
    Opt,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TextError::BadTokenizer`] if it does not parse, or has a part that is not supported: the model must be byte
    /// pair encoding, and the rest of what causal language models use.
    pub fn from_tokenizer_json(bytes: &[u8]) -> Result<Self, TextError> {
        admission::check(bytes)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| bad_json(&e))?;
        inner.with_truncation(None).map_err(|e| bad_json(&e))?;
        inner.with_padding(None);
        remove_dropout(&mut inner);
        let prefix_ids = prefix::from_post_processor(&inner)?;
        let special_tokens_note = match prefix_ids.as_slice() {
            [] => "tokenizer.json puts no token before a text".to_owned(),
            ids => format!("tokenizer.json puts {} before a text", prefix::describe(&inner, ids)),
        };
        Ok(Self { inner, prefix_ids, special_tokens_note })
    }

    /// Reads a byte-level BPE from `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// [`TextError::BadTokenizer`] if one of them does not parse or they do not belong together,
    /// [`TextError::MissingToken`] if the token that `family` puts first is not in the vocabulary.
    pub fn from_bpe(vocab_json: &[u8], merges_txt: &[u8], family: BpeFamily) -> Result<Self, TextError> {
        let vocab: HashMap<String, u32> =
            serde_json::from_slice(vocab_json).map_err(|e| bad("vocab.json", e.to_string()))?;
        let merges = parse_merges(merges_txt)?;
        let special: Vec<AddedToken> = family
            .special_tokens()
            .iter()
            .filter(|token| vocab.contains_key(**token))
            .map(|token| AddedToken::from(*token, true).normalized(true))
            .collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
            .build()
            .map_err(|e| bad("merges.txt", e.to_string()))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let byte_level = ByteLevel::default().add_prefix_space(false);
        inner.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
        inner.add_special_tokens(&special);
        let (prefix_ids, special_tokens_note) = prefix::of_family(&inner, family)?;
        Ok(Self { inner, prefix_ids, special_tokens_note })
    }

    /// Lets a `tokenizer_config.json` decide the tokens before a text, as the original tokenizer does.
    ///
    /// `add_bos_token` decides if it is there; without it Llama's own tokenizer class puts `bos_token` first, and every
    /// other class leaves the decision to the tokenizer file.
    ///
    /// # Errors
    /// [`TextError::BadTokenizer`] if it does not parse or asks for a `bos_token` that it does not name,
    /// [`TextError::MissingToken`] if the vocabulary lacks that token.
    pub fn with_tokenizer_config(mut self, bytes: &[u8]) -> Result<Self, TextError> {
        let config = TokenizerConfig::parse(bytes)?;
        if let Some((prefix_ids, note)) = config.decide(&self.inner)? {
            self.prefix_ids = prefix_ids;
            self.special_tokens_note = note;
        }
        Ok(self)
    }

    /// The tokens of `text`, without any put before or after it.
    ///
    /// A special token written out in `text` (such as `<|endoftext|>`) becomes that token.
    ///
    /// # Errors
    /// [`TextError::Encode`] with the tokenizer's own words.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        encode(&self.inner, text, false).map(|encoding| encoding.get_ids().to_vec())
    }

    /// The tokens that the original tokenizer puts before a text: `</s>` for OPT, `<s>` for Llama, none for GPT-2.
    pub fn prefix_ids(&self) -> &[u32] {
        &self.prefix_ids
    }

    /// A sentence for reports: how [`prefix_ids`](Self::prefix_ids) was decided.
    pub fn special_tokens_note(&self) -> &str {
        &self.special_tokens_note
    }

    /// The text of `ids`, special tokens left out, bytes that are no UTF-8 replaced by `U+FFFD`.
    ///
    /// # Errors
    /// [`TextError::NoSuchToken`], or [`TextError::Decode`] with the tokenizer's own words.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        for id in ids {
            self.is_special(*id)?;
        }
        self.inner.decode(ids, true).map_err(|e| TextError::Decode { n_tokens: ids.len(), reason: e.to_string() })
    }

    /// Decodes a text that grows token by token.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, ids: Vec::new(), emitted: 0 }
    }

    /// Number of tokens, added ones included. A model may have more rows than this (OPT pads 50,265 to 50,272).
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token given in the vocabulary's own spelling (`Ġhello`, `</s>`).
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether decoding leaves the token out; an error for an id that no token has.
    fn is_special(&self, id: u32) -> Result<bool, TextError> {
        match self.inner.id_to_token(id) {
            Some(token) => Ok(self.inner.get_added_vocabulary().is_special_token(&token)),
            None => Err(TextError::NoSuchToken { id }),
        }
    }
}

/// Turns a growing sequence of ids into text, holding back what is not yet complete UTF-8.
///
/// The pieces joined are what [`Tokenizer::decode`] gives for all ids at once.
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The ids whose text is still needed: those emitted last, as context, and those held back.
    ids: Vec<u32>,
    /// How many of `ids` have been emitted.
    emitted: usize,
}

/// A character has at most four bytes, so this many tokens without a complete one are no text, and are let go.
const HELD_BACK_AT_MOST: usize = 16;

impl DecodeStream<'_> {
    /// Takes one more id and returns the text that became complete, which may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`]; an id that no token has is not taken, and the stream can go on.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        if self.tokenizer.is_special(id)? {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = self.pending()?;
        let n_held_back = self.ids.len() - self.emitted;
        if text.is_empty() || (text.ends_with('\u{FFFD}') && n_held_back < HELD_BACK_AT_MOST) {
            return Ok(String::new());
        }
        self.ids.drain(..self.emitted);
        self.emitted = self.ids.len();
        Ok(text)
    }

    /// Ends the stream and returns what was held back, incomplete bytes replaced by `U+FFFD`.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String, TextError> {
        self.pending()
    }

    /// The text of the ids not yet emitted, in the context of those emitted last: decoders treat the start of a text
    /// in their own way (Llama's drops a space).
    fn pending(&self) -> Result<String, TextError> {
        let context = self.tokenizer.decode(&self.ids[..self.emitted])?;
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(text.get(context.len()..).unwrap_or_default().to_owned())
    }
}

impl BpeFamily {
    /// The tokens that are recognised in a text as written and left out when decoding, as in the published tokenizers.
    fn special_tokens(self) -> &'static [&'static str] {
        match self {
            Self::Gpt2 => &["<|endoftext|>"],
            Self::Opt => &["<pad>", "</s>"],
        }
    }
}

pub(crate) fn encode(
    tokenizer: &tokenizers::Tokenizer,
    text: &str,
    add_special_tokens: bool,
) -> Result<tokenizers::Encoding, TextError> {
    tokenizer
        .encode_fast(text, add_special_tokens)
        .map_err(|e| TextError::Encode { bytes: text.len(), reason: e.to_string() })
}

pub(crate) fn bad(file: &'static str, reason: impl Into<String>) -> TextError {
    TextError::BadTokenizer { file, reason: reason.into() }
}

fn bad_json(error: &tokenizers::Error) -> TextError {
    bad("tokenizer.json", error.to_string())
}

fn remove_dropout(tokenizer: &mut tokenizers::Tokenizer) {
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
}

fn parse_merges(bytes: &[u8]) -> Result<Vec<(String, String)>, TextError> {
    let text = std::str::from_utf8(bytes).map_err(|e| bad("merges.txt", e.to_string()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    lines
        .map(|(line_idx, line)| match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
            _ => Err(bad("merges.txt", format!("line {}: expected two tokens, found `{line}`", line_idx + 1))),
        })
        .collect()
}
