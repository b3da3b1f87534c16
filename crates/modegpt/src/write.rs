//! Text that a model writes.

use modegpt_evaluation::{Sampler, SamplerError, SamplerOptions, Stop, generate};
use modegpt_model::{Compute, ComputeError, Decoder};
use modegpt_text::TextError;

use crate::Model;

/// A text that a model wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The text, without the prompt.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
}

/// Why a model could not write.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is nothing to begin with.
    #[error("the prompt is empty, and this model has no token to begin a text with")]
    NoPrompt,
    /// An option is out of range.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The prompt or a new token.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The forward pass.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

/// Continues `prompt` by up to `max_new_tokens`, fewer if the model's context ends before.
///
/// `on_piece` is given each piece of text as it comes (often one token; none while a character is incomplete) and ends
/// the text by returning `false`.
///
/// # Errors
/// [`WriteError`] if options or prompt cannot be used, or the device fails.
pub async fn write(
    model: &Model,
    prompt: &str,
    max_new_tokens: usize,
    options: SamplerOptions,
    compute: &Compute,
    mut on_piece: impl FnMut(&str) -> bool,
) -> Result<Written, WriteError> {
    let mut sampler = Sampler::new(options)?;
    let prompt = prompt_ids(model, prompt)?;
    let room = model.config().max_positions.saturating_sub(prompt.len());
    let max_new_tokens = max_new_tokens.min(room);
    let mut decoder = Decoder::new(&model.checkpoint, prompt.len() + max_new_tokens, compute)?;
    let mut stream = model.tokenizer.decode_stream();
    let (mut text, mut ids, mut failure) = (String::new(), Vec::new(), None);
    let stops = model.stop_tokens();
    let stop = generate(&mut decoder, &prompt, max_new_tokens, &stops, &mut sampler, |id| {
        ids.push(id);
        match stream.push(id) {
            Ok(piece) => {
                text.push_str(&piece);
                on_piece(&piece)
            }
            Err(error) => {
                failure = Some(error);
                false
            }
        }
    })
    .await?;
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    if stop != Stop::Caller {
        let rest = stream.finish()?;
        text.push_str(&rest);
        on_piece(&rest);
    }
    Ok(Written { text, ids, stop })
}

/// The tokens of `prompt` behind those that the original tokenizer puts first.
fn prompt_ids(model: &Model, prompt: &str) -> Result<Vec<u32>, WriteError> {
    let mut ids = model.tokenizer.prefix_ids().to_vec();
    ids.extend(model.tokenizer.encode(prompt)?);
    if ids.is_empty() {
        ids.extend(model.config().special_tokens.bos);
    }
    if ids.is_empty() { Err(WriteError::NoPrompt) } else { Ok(ids) }
}
