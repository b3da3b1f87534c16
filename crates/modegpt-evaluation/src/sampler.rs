//! Choosing the next token.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by this; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only so many of the likeliest tokens may be chosen; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens whose probabilities add up to this may be chosen; 1 for all.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// An option out of its range.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// Negative or not a number.
    #[error("temperature: expected a number of at least 0, found {0}")]
    Temperature(f64),
    /// Not a probability.
    #[error("top-p: expected a number above 0 and at most 1, found {0}")]
    TopP(f64),
}

/// Draws tokens, reproducibly.
pub struct Sampler {
    options: SamplerOptions,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler with the given options.
    ///
    /// # Errors
    /// [`SamplerError`] if an option is out of range.
    pub fn new(options: SamplerOptions) -> Result<Self, SamplerError> {
        if !(options.temperature.is_finite() && options.temperature >= 0.0) {
            return Err(SamplerError::Temperature(options.temperature));
        }
        if !(options.top_p > 0.0 && options.top_p <= 1.0) {
            return Err(SamplerError::TopP(options.top_p));
        }
        Ok(Self { options, rng: ChaCha8Rng::seed_from_u64(options.seed) })
    }

    /// The next token's id, given finite logits.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        if self.options.temperature == 0.0 {
            // The first of equals, as other tools choose.
            let best =
                logits.iter().enumerate().fold(0, |best, (id, logit)| if *logit > logits[best] { id } else { best });
            return best as u32;
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        if self.options.top_k > 0 {
            order.truncate(self.options.top_k);
        }
        let top = f64::from(logits[order[0]]);
        let weights: Vec<f64> =
            order.iter().map(|id| ((f64::from(logits[*id]) - top) / self.options.temperature).exp()).collect();
        let kept = self.nucleus(&weights);
        let mut left = self.uniform() * weights[..kept].iter().sum::<f64>();
        for (id, weight) in order.iter().zip(&weights[..kept]) {
            left -= weight;
            if left <= 0.0 {
                return *id as u32;
            }
        }
        order[kept - 1] as u32
    }

    /// How many of the descending weights make up `top_p` of their sum, at least one.
    fn nucleus(&self, weights: &[f64]) -> usize {
        let enough = self.options.top_p * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let before = weights.iter().take_while(|weight| {
            sum += **weight;
            sum < enough
        });
        (before.count() + 1).min(weights.len())
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl Fn(&mut SamplerOptions)) -> Sampler {
        let mut options = SamplerOptions { temperature: 1.0, seed: 7, ..SamplerOptions::default() };
        change(&mut options);
        Sampler::new(options).expect("options in range")
    }

    /// How often each of three tokens with probabilities 0.6, 0.3, 0.1 is drawn.
    fn shares(mut sampler: Sampler) -> [f64; 3] {
        let logits = [0.3_f32.ln(), 0.6_f32.ln(), 0.1_f32.ln()];
        let mut shares = [0.0; 3];
        for _ in 0..20_000 {
            shares[sampler.choose(&logits) as usize] += 1.0 / 20_000.0;
        }
        shares
    }

    fn check(found: [f64; 3], expected: [f64; 3]) {
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 0.02), "{found:?} is not near {expected:?}");
    }

    #[test]
    fn draws_follow_the_probabilities() {
        check(shares(sampler(|_| {})), [0.3, 0.6, 0.1]);
    }

    #[test]
    fn greedy_top_k_and_top_p_leave_out_the_unlikely() {
        check(shares(sampler(|o| o.temperature = 0.0)), [0.0, 1.0, 0.0]);
        check(shares(sampler(|o| o.top_k = 1)), [0.0, 1.0, 0.0]);
        check(shares(sampler(|o| o.top_k = 2)), [1.0 / 3.0, 2.0 / 3.0, 0.0]);
        check(shares(sampler(|o| o.top_p = 0.5)), [0.0, 1.0, 0.0]);
        check(shares(sampler(|o| o.top_p = 0.85)), [1.0 / 3.0, 2.0 / 3.0, 0.0]);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let draw = |seed| {
            let mut sampler = sampler(|o| o.seed = seed);
            (0..50).map(|_| sampler.choose(&[0.0; 100])).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let options =
            |temperature, top_p| Sampler::new(SamplerOptions { temperature, top_p, ..SamplerOptions::default() });
        assert_eq!(options(-1.0, 1.0).err(), Some(SamplerError::Temperature(-1.0)));
        assert!(options(f64::NAN, 1.0).is_err());
        assert_eq!(options(1.0, 0.0).err(), Some(SamplerError::TopP(0.0)));
        assert_eq!(options(1.0, 1.5).err(), Some(SamplerError::TopP(1.5)));
    }
}
