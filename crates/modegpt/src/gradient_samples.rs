//! On what the gradients of a calibration are computed.

use modegpt_statistics::Labels;
use modegpt_text::{Windows, token_hash};

use crate::Calibration;

/// Tokens of gradients where nobody says how many.
pub const GRADIENT_TOKENS: usize = 2048;

/// Where no labels are given, they are drawn from the model.
pub(crate) const LABELS: Labels = Labels::Sampled { seed: 0 };

/// Tokens of a sample that [`gradient_samples`] takes at most.
pub(crate) const LONGEST_SAMPLE: usize = 512;

/// About `n_tokens` of the calibration tokens, as the beginnings of samples spread over all of them.
///
/// Short samples, since many texts tell more than few long ones.
pub(crate) fn gradient_samples(calibration: &Calibration, n_tokens: usize) -> Calibration {
    let Windows { ids, n, seq_len } = &calibration.windows;
    let short = (*seq_len).min(LONGEST_SAMPLE);
    let count = n_tokens.div_ceil(short).clamp(1, *n);
    let starts = (0..count).map(|sample| sample * n / count * seq_len);
    let ids: Vec<u32> = starts.flat_map(|start| &ids[start..start + short]).copied().collect();
    let token_hash = token_hash(&ids);
    Calibration { windows: Windows { ids, n: count, seq_len: short }, token_hash }
}
