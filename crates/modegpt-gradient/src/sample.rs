//! Drawing tokens from the model's own predictions.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A number of `[0, 1)` for one position of one sample. Each sample has a stream of its own and each position its place
/// there, so that neither batches nor masks change the draws.
pub(crate) fn uniform(seed: u64, sample: usize, position: usize) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(sample as u64);
    rng.set_word_pos(2 * position as u128);
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Scores of a part of the vocabulary at one position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartScores {
    pub(crate) max: f64,
    /// `Σ exp(logit - max)`
    pub(crate) sum: f64,
}

impl PartScores {
    fn log_sum_exp(self) -> f64 {
        self.max + self.sum.ln()
    }
}

/// `ln Σ exp(logit)` over the whole vocabulary; NaN if any part is.
pub(crate) fn log_sum_exp(parts: &[PartScores]) -> f64 {
    let max = parts.iter().map(|part| part.max).fold(f64::NEG_INFINITY, f64::max);
    max + parts.iter().map(|part| part.sum * (part.max - max).exp()).sum::<f64>().ln()
}

/// Where in the cumulated probabilities `uniform` falls: which part, and how much of that part's probability lies before.
pub(crate) fn draw_part(parts: &[PartScores], uniform: f64) -> (usize, f64) {
    let total = log_sum_exp(parts);
    let mut left = uniform;
    let mut last = (0, 0.0);
    for (index, part) in parts.iter().enumerate() {
        let probability = (part.log_sum_exp() - total).exp();
        if left < probability {
            return (index, left);
        }
        if probability > 0.0 {
            last = (index, probability);
        }
        left -= probability;
    }
    // Rounding has left the probabilities short of one.
    last
}

/// Where in the cumulated probabilities of one part `left` falls. If rounding has left them short of it, the last token
/// that has any probability.
pub(crate) fn draw_within(probabilities: &[f32], mut left: f64) -> usize {
    let mut last = 0;
    for (index, probability) in probabilities.iter().enumerate() {
        let probability = f64::from(*probability);
        if left < probability {
            return index;
        }
        if probability > 0.0 {
            last = index;
        }
        left -= probability;
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(logits: &[f64], at_once: usize) -> Vec<PartScores> {
        let score = |part: &[f64]| {
            let max = part.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            PartScores { max, sum: part.iter().map(|logit| (logit - max).exp()).sum() }
        };
        logits.chunks(at_once).map(score).collect()
    }

    #[test]
    fn draws_follow_the_softmax_whatever_the_parts() {
        let logits = [0.3, -2.0, 4.0, 3.5, -700.0, 1.0, 3.9];
        for at_once in [1, 2, 3, 7] {
            let parts = parts(&logits, at_once);
            let total = log_sum_exp(&parts);
            let probabilities: Vec<f64> = logits.iter().map(|logit| (logit - total).exp()).collect();
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            let n = 200_000;
            let mut counts = vec![0.0; logits.len()];
            for position in 0..n {
                let (part, left) = draw_part(&parts, uniform(3, 1, position));
                let range = part * at_once..((part + 1) * at_once).min(logits.len());
                let within: Vec<f32> = probabilities[range.clone()].iter().map(|p| *p as f32).collect();
                counts[range.start + draw_within(&within, left)] += 1.0;
            }
            for (probability, count) in probabilities.iter().zip(&counts) {
                // Five standard errors of a binomial count.
                let spread = 5.0 * (n as f64 * probability).sqrt() + 1e-9;
                assert!((count - n as f64 * probability).abs() <= spread, "{count} of {n} for {probability}");
            }
        }
    }

    #[test]
    fn rounding_at_the_end_takes_the_last_possible_token() {
        assert_eq!(draw_within(&[0.25, 0.5, 0.0], 0.75), 1);
        let parts = [PartScores { max: 0.0, sum: 1.0 }, PartScores { max: f64::NEG_INFINITY, sum: 0.0 }];
        assert_eq!(draw_part(&parts, 1.0).0, 0);
    }

    #[test]
    fn seeds_samples_and_positions_have_draws_of_their_own() {
        let draws = |seed, sample| (0..50).map(|position| uniform(seed, sample, position)).collect::<Vec<_>>();
        let mut all = [draws(1, 0), draws(1, 1), draws(2, 0)].concat();
        assert_eq!(all[..50], draws(1, 0));
        assert!(all.iter().all(|u| (0.0..1.0).contains(u)));
        all.sort_by(f64::total_cmp);
        all.dedup();
        assert_eq!(all.len(), 150);
    }
}
