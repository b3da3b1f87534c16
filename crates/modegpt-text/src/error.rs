use thiserror::Error;

/// What can be wrong with a tokenizer, a text or a request for windows.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TextError {
    /// A tokenizer file does not parse, or asks for something that is refused.
    #[error("`{file}` is not a usable tokenizer: {reason}")]
    BadTokenizer {
        /// Which of the tokenizer's files.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A token that the tokenizer must have is missing from its vocabulary.
    #[error("the vocabulary of {vocab_size} tokens has no `{token}`, which {role}")]
    MissingToken {
        /// The token as text.
        token: String,
        /// Why it is needed.
        role: &'static str,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// The tokenizer failed on a text.
    #[error("encoding {bytes} bytes of text failed: {reason}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// The tokenizer's own words.
        reason: String,
    },
    /// The tokenizer failed to turn ids into text.
    #[error("decoding {n_tokens} tokens failed: {reason}")]
    Decode {
        /// How many ids were to be decoded.
        n_tokens: usize,
        /// The tokenizer's own words.
        reason: String,
    },
    /// An id to be decoded belongs to no token.
    #[error("the tokenizer has no token with id {id}")]
    NoSuchToken {
        /// The id found.
        id: u32,
    },
    /// An id is too large for a model.
    #[error("token id {id} at position {position} is outside the vocabulary of {vocab_size}")]
    TokenOutsideVocabulary {
        /// The id found.
        id: u32,
        /// Its index among the ids given.
        position: usize,
        /// The first id that is too large.
        vocab_size: usize,
    },
    /// A text file does not have the structure asked for.
    #[error("text `{name}`, {place}: {reason}")]
    BadText {
        /// Name of the text.
        name: String,
        /// Line or entry, counted from 1.
        place: String,
        /// What was expected and found.
        reason: String,
    },
    /// A text file holds no document at all.
    #[error("text `{name}` holds no document")]
    EmptyText {
        /// Name of the text.
        name: String,
    },
    /// There are fewer tokens than the windows asked for need.
    #[error("text too short: found {found} tokens, needed {needed} for {n_windows} windows of {seq_len}")]
    TooShort {
        /// Tokens there are.
        found: usize,
        /// Tokens needed.
        needed: usize,
        /// Windows asked for.
        n_windows: usize,
        /// Tokens in a window.
        seq_len: usize,
    },
    /// A request for windows that makes no sense for any text.
    #[error("`{what}` is {found}, expected {expected}")]
    BadRequest {
        /// The argument.
        what: &'static str,
        /// Its value.
        found: usize,
        /// The values allowed.
        expected: String,
    },
}
