//! Samples of one token, which show a refit how texts begin.
//!
//! The first token of a text attends to nothing but itself, and so becomes what all later tokens attend to when they have
//! nothing better to look at: the attention sink, with activations of its own, a hundred times the usual. Calibration samples
//! hold one first token each. Least squares over 32 of 32,768 do not see it: on `SmolLM2` the refit took the sink from every
//! seventh text that it had not seen (tests/results/README.md, "What mode best gains"). What becomes of a first token depends
//! on no other, so more of them cost a token each, not a sample.

use std::collections::BTreeMap;

use modegpt_text::Windows;

/// Together openings count for this share of the tokens of all samples.
const SHARE: f64 = 1.0 / 8.0;

/// One token of so many is taken for a first one.
pub(super) const EVERY: usize = 16;

/// Tokens that texts may begin with, each once.
#[derive(Debug, PartialEq)]
pub(super) struct Openings {
    /// One token in each.
    pub(super) windows: Windows,
    /// For how many tokens each counts.
    pub(super) counts: Vec<f32>,
}

impl Openings {
    /// Those of texts like `samples`: any of their tokens, for a text may be cut anywhere, as often as they occur; and with
    /// half the weight what the tokenizer puts before every text (`prefix_ids`), if anything.
    pub(super) fn of(samples: &Windows, prefix_ids: &[u32]) -> Self {
        let mut occurrences = BTreeMap::<u32, f64>::new();
        for id in samples.ids.iter().step_by(EVERY) {
            *occurrences.entry(*id).or_default() += 1.0;
        }
        let n_taken = samples.ids.len().div_ceil(EVERY) as f64;
        if let Some(first) = prefix_ids.first() {
            *occurrences.entry(*first).or_default() += n_taken;
        }
        let scale = SHARE * samples.ids.len() as f64 / occurrences.values().sum::<f64>();
        let (ids, counts): (Vec<u32>, Vec<f32>) = occurrences.iter().map(|(id, n)| (*id, (n * scale) as f32)).unzip();
        Self { windows: Windows { n: ids.len(), ids, seq_len: 1 }, counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_count_as_their_tokens_occur_and_half_for_what_begins_every_text() {
        let ids: Vec<u32> =
            (0..128).map(|at| if at % EVERY != 0 { 99 } else { [7, 3, 3, 3, 9, 9, 3, 3][at / EVERY] }).collect();
        let samples = Windows { n: 4, seq_len: 32, ids };
        let openings =
            |ids: Vec<u32>, counts: Vec<f32>| Openings { windows: Windows { n: ids.len(), seq_len: 1, ids }, counts };
        assert_eq!(Openings::of(&samples, &[]), openings(vec![3, 7, 9], vec![10.0, 2.0, 4.0]));
        assert_eq!(Openings::of(&samples, &[1, 3]), openings(vec![1, 3, 7, 9], vec![8.0, 5.0, 1.0, 2.0]));
        assert_eq!(Openings::of(&samples, &[3]), openings(vec![3, 7, 9], vec![13.0, 1.0, 2.0]));
    }
}
