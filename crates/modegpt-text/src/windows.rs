//! Fixed-length samples of a token stream, to calibrate on.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use crate::TextError;

/// Windows of equal length, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// `[n, seq_len]`, row by row.
    pub ids: Vec<u32>,
    /// Number of windows.
    pub n: usize,
    /// Tokens in a window.
    pub seq_len: usize,
}

/// How the places of windows are chosen. Windows never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The text is cut into slots of `seq_len`, and slots are drawn without replacement. A larger sample with the same
    /// seed begins with the smaller one.
    Random,
    /// The first window begins with the text, the last ends with it, the others lie evenly between. The seed does not
    /// matter.
    Spread,
}

impl Windows {
    /// The windows in order.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, u32> {
        self.ids.chunks_exact(self.seq_len)
    }
}

impl<'a> IntoIterator for &'a Windows {
    type Item = &'a [u32];
    type IntoIter = std::slice::ChunksExact<'a, u32>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Takes `n_samples` windows of `seq_len` tokens out of `tokens`.
///
/// # Errors
/// [`TextError::BadRequest`] if `n_samples` or `seq_len` is 0, [`TextError::TooShort`] if there are fewer than
/// `n_samples · seq_len` tokens.
pub fn windows(
    tokens: &[u32],
    n_samples: usize,
    seq_len: usize,
    seed: u64,
    strategy: Strategy,
) -> Result<Windows, TextError> {
    at_least("n_samples", n_samples, 1)?;
    at_least("seq_len", seq_len, 1)?;
    let needed = n_samples.saturating_mul(seq_len);
    if tokens.len() < needed {
        return Err(TextError::TooShort { found: tokens.len(), needed, n_windows: n_samples, seq_len });
    }
    let starts = match strategy {
        Strategy::Random => random_starts(tokens.len(), n_samples, seq_len, seed),
        Strategy::Spread => spread_starts(tokens.len(), n_samples, seq_len),
    };
    let ids = starts.iter().flat_map(|start| &tokens[*start..start + seq_len]).copied().collect();
    Ok(Windows { ids, n: n_samples, seq_len })
}

/// The SHA-256 of `tokens`, each as four bytes with the lowest first, in hexadecimal: names a sample in reports.
pub fn token_hash(tokens: &[u32]) -> String {
    let mut hasher = Sha256::new();
    for id in tokens {
        hasher.update(id.to_le_bytes());
    }
    format!("{:x}", hasher.finalize())
}

/// Checks that a model whose embedding has `vocab_size` rows can read `tokens`.
///
/// # Errors
/// [`TextError::TokenOutsideVocabulary`] naming the first id that is too large.
pub fn check_vocabulary(tokens: &[u32], vocab_size: usize) -> Result<(), TextError> {
    match tokens.iter().enumerate().find(|(_, id)| **id as usize >= vocab_size) {
        Some((position, id)) => Err(TextError::TokenOutsideVocabulary { id: *id, position, vocab_size }),
        None => Ok(()),
    }
}

pub(crate) fn at_least(what: &'static str, found: usize, least: usize) -> Result<(), TextError> {
    if found < least {
        return Err(TextError::BadRequest { what, found, expected: format!("at least {least}") });
    }
    Ok(())
}

/// The first `n_samples` of a Fisher–Yates shuffle of the slots.
fn random_starts(n_tokens: usize, n_samples: usize, seq_len: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut slots: Vec<usize> = (0..n_tokens / seq_len).collect();
    for idx in 0..n_samples {
        let n_left = (slots.len() - idx) as u64;
        slots.swap(idx, idx + uniform_below(&mut rng, n_left) as usize);
    }
    slots[..n_samples].iter().map(|slot| slot * seq_len).collect()
}

/// With `n · seq_len` tokens or more, the distance between two starts is at least `seq_len`, rounded down or not.
fn spread_starts(n_tokens: usize, n_samples: usize, seq_len: usize) -> Vec<usize> {
    let last = (n_tokens - seq_len) as u128;
    let n_gaps = (n_samples - 1).max(1) as u128;
    (0..n_samples as u128).map(|idx| (idx * last / n_gaps) as usize).collect()
}

/// Uniform in `0..bound`: draws from the incomplete last round of multiples of `bound` are thrown away.
fn uniform_below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let accepted = u64::MAX - u64::MAX % bound;
    loop {
        let draw = rng.next_u64();
        if draw < accepted {
            return draw % bound;
        }
    }
}
