//! Windows that score a text from its beginning, for perplexity.

use crate::TextError;
use crate::windows::{Windows, at_least};

/// Windows of equal length, each with the targets that it scores.
///
/// The token at position `t` of a window is a target: it is predicted from positions `0..t`. Position 0 is never one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvaluationWindows {
    windows: Windows,
    /// For each window, the position of its first target; all from there to its end are scored.
    first_targets: Vec<usize>,
}

/// One window and the targets that it scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluationWindow<'a> {
    /// The tokens, `[seq_len]`.
    pub ids: &'a [u32],
    /// Position of the first target in `ids`, at least 1: the logits at `first_target - 1..seq_len - 1` are scored.
    pub first_target: usize,
}

impl<'a> EvaluationWindow<'a> {
    /// The tokens to be predicted.
    pub fn targets(&self) -> &'a [u32] {
        &self.ids[self.first_target..]
    }
}

impl EvaluationWindows {
    /// Number of windows.
    pub fn n(&self) -> usize {
        self.windows.n
    }

    /// Tokens in a window.
    pub fn seq_len(&self) -> usize {
        self.windows.seq_len
    }

    /// All tokens, `[n, seq_len]`.
    pub fn ids(&self) -> &[u32] {
        &self.windows.ids
    }

    /// Number of targets scored in all windows together: the denominator of the mean loss.
    pub fn n_scored(&self) -> usize {
        self.iter().map(|window| window.targets().len()).sum()
    }

    /// The windows in order.
    pub fn iter(&self) -> impl Iterator<Item = EvaluationWindow<'_>> {
        let windows = self.windows.iter().zip(&self.first_targets);
        windows.map(|(ids, first_target)| EvaluationWindow { ids, first_target: *first_target })
    }
}

/// A sample scored like a text: every token of a window but its first.
impl TryFrom<Windows> for EvaluationWindows {
    type Error = TextError;

    fn try_from(windows: Windows) -> Result<Self, TextError> {
        at_least("seq_len", windows.seq_len, 2)?;
        Ok(Self { first_targets: vec![1; windows.n], windows })
    }
}

/// Lays windows of `seq_len` tokens over `tokens`, each `stride` behind the one before.
///
/// - `stride = seq_len` is what papers do: windows without overlap, what is left at the end is dropped, and every window
///   scores all its tokens but the first, `seq_len - 1`. Of `N` tokens, `⌊N / seq_len⌋ · (seq_len - 1)` are scored.
/// - `stride < seq_len` gives every target at least `seq_len - stride` tokens of context: the first window scores
///   `seq_len - 1` tokens, later ones their last `stride`, and the last one, which ends with the text, those that are
///   left. All tokens but the first are scored once, `N - 1`.
///
/// Only the first `max_windows` windows are kept if it is given.
///
/// # Errors
/// [`TextError::BadRequest`] if `seq_len` is below 2, `stride` is 0 or above `seq_len`, or `max_windows` is 0;
/// [`TextError::TooShort`] if there is not one full window.
pub fn evaluation_windows(
    tokens: &[u32],
    seq_len: usize,
    stride: usize,
    max_windows: Option<usize>,
) -> Result<EvaluationWindows, TextError> {
    check_request(tokens, seq_len, stride, max_windows)?;
    let n_places = 1 + (tokens.len() - seq_len) / stride;
    let mut places: Vec<(usize, usize)> = (0..n_places.min(max_windows.unwrap_or(usize::MAX)))
        .map(|idx| (idx * stride, if idx == 0 { 1 } else { (seq_len - stride).max(1) }))
        .collect();
    let n_left = (tokens.len() - seq_len) % stride;
    if stride < seq_len && n_left > 0 && max_windows.is_none_or(|max| max > n_places) {
        places.push((tokens.len() - seq_len, seq_len - n_left));
    }
    let ids = places.iter().flat_map(|(start, _)| &tokens[*start..start + seq_len]).copied().collect();
    let windows = Windows { ids, n: places.len(), seq_len };
    Ok(EvaluationWindows { windows, first_targets: places.into_iter().map(|(_, first)| first).collect() })
}

fn check_request(tokens: &[u32], seq_len: usize, stride: usize, max_windows: Option<usize>) -> Result<(), TextError> {
    at_least("seq_len", seq_len, 2)?;
    at_least("max_windows", max_windows.unwrap_or(1), 1)?;
    if stride == 0 || stride > seq_len {
        return Err(TextError::BadRequest { what: "stride", found: stride, expected: format!("1 to {seq_len}") });
    }
    if tokens.len() < seq_len {
        return Err(TextError::TooShort { found: tokens.len(), needed: seq_len, n_windows: 1, seq_len });
    }
    Ok(())
}
