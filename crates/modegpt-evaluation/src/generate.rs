//! Writing text, a token at a time.

use modegpt_model::{ComputeError, Decoder};

use crate::Sampler;

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended the text.
    EndOfText,
    /// As many tokens as asked for.
    Length,
    /// The caller wanted no more.
    Caller,
}

/// Continues `prompt` by up to `max_new_tokens`.
///
/// `on_token` is given each new token as it comes, and ends generation by returning `false`. A token among `stops` ends it
/// too and is not given.
///
/// # Errors
/// [`ComputeError`] if the device fails or the prompt has unknown ids.
pub async fn generate(
    decoder: &mut Decoder<'_>,
    prompt: &[u32],
    max_new_tokens: usize,
    stops: &[u32],
    sampler: &mut Sampler,
    mut on_token: impl FnMut(u32) -> bool,
) -> Result<Stop, ComputeError> {
    let mut next = prompt.to_vec();
    for _ in 0..max_new_tokens {
        let logits = decoder.next_logits(&next).await?;
        let token = sampler.choose(&logits);
        if stops.contains(&token) {
            return Ok(Stop::EndOfText);
        }
        if !on_token(token) {
            return Ok(Stop::Caller);
        }
        next = vec![token];
    }
    Ok(Stop::Length)
}
