//! On what the gradients of a calibration are computed, and how; the same over a file system and in memory.

use modegpt_gradient::Stage;
use modegpt_statistics::Labels;
use modegpt_text::{Windows, token_hash};

use crate::{Calibration, Reporter};

/// Tokens of gradients where nobody says how many.
pub const GRADIENT_TOKENS: usize = 2048;

/// Where no labels are given, they are drawn from the model.
pub(crate) const LABELS: Labels = Labels::Sampled { seed: 0 };

/// Tokens of a sample that [`gradient_samples`] takes at most.
const LONGEST_SAMPLE: usize = 512;

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

/// Samples that are computed at once where `batch_tokens` of a plain forward pass are.
pub(crate) fn gradient_batch(batch_tokens: usize, windows: &Windows) -> usize {
    // The graph keeps everything, so fewer tokens at once.
    (batch_tokens.min(LONGEST_SAMPLE) / windows.seq_len.max(1)).clamp(1, windows.n.max(1))
}

/// Tells `reporter` of a backward pass, whose last stage is left for the caller to end.
pub(crate) fn told_to(reporter: &dyn Reporter) -> impl FnMut(Stage, usize, usize) + '_ {
    let mut told = None;
    move |stage, done, all| {
        if told != Some(stage) {
            if told.replace(stage).is_some() {
                reporter.end();
            }
            reporter.begin(stage.name(), all as u64);
        }
        reporter.advance(done as u64);
    }
}
