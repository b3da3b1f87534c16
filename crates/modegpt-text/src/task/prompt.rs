//! A text and its continuation, as tokens.

use super::{Question, bad};
use crate::{TextError, Tokenizer};

/// A text, and the continuation whose likelihood is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// What is given.
    pub context: String,
    /// What is scored; begins with a space.
    pub continuation: String,
    /// Characters of the choice, by which its log-likelihood is divided when it is normalised.
    pub n_chars: usize,
}

/// The tokens of a [`Prompt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTokens {
    /// Context, then continuation.
    pub ids: Vec<u32>,
    /// How many of them are context, at least 1.
    pub n_context: usize,
    /// Whether tokens at the beginning were left out because the model cannot read as many.
    pub is_truncated: bool,
}

impl Question {
    /// The tokens of every prompt, as the harness makes them: white space at the end of the context goes to the
    /// continuation; context and continuation are encoded together, behind the tokens that the original tokenizer puts
    /// first; the continuation is what there is beyond the tokens of the context alone. The last token is never read, so
    /// that `max_positions + 1` of them fit; what is too long loses its beginning.
    ///
    /// `name` is that of the file, for errors.
    ///
    /// # Errors
    /// [`TextError::BadText`] if a continuation has no token or more than `max_positions`, or a context none, and those
    /// of [`Tokenizer::encode`].
    pub fn encode(
        &self,
        name: &str,
        tokenizer: &Tokenizer,
        max_positions: usize,
    ) -> Result<Vec<PromptTokens>, TextError> {
        let encode = |prompt: &Prompt| {
            let ids = prompt.encode(tokenizer)?;
            ids.fit(max_positions).map_err(|reason| bad(name, self.line, reason))
        };
        self.prompts.iter().map(encode).collect()
    }
}

impl Prompt {
    /// As [`Question::encode`] says, of any length.
    pub(crate) fn encode(&self, tokenizer: &Tokenizer) -> Result<PromptTokens, TextError> {
        let context = self.context.trim_end();
        let mut ids = tokenizer.prefix_ids().to_vec();
        let n_context = ids.len() + tokenizer.encode(context)?.len();
        ids.extend(tokenizer.encode(&format!("{}{}", self.context, self.continuation))?);
        Ok(PromptTokens { ids, n_context, is_truncated: false })
    }
}

impl PromptTokens {
    fn fit(mut self, max_positions: usize) -> Result<Self, String> {
        let n_continuation = self.ids.len().saturating_sub(self.n_context);
        if self.n_context == 0 || n_continuation == 0 {
            return Err("the context or a choice has no token of its own".to_owned());
        }
        if n_continuation > max_positions {
            return Err(format!("a choice has {n_continuation} tokens, the model's context {max_positions}"));
        }
        let excess = self.ids.len().saturating_sub(max_positions + 1);
        self.ids.drain(..excess);
        self.n_context -= excess;
        self.is_truncated = excess > 0;
        Ok(self)
    }
}
