//! Timing a piece of work, and what a plain matrix product reaches beside it.

use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use modegpt::model_runtime::{Compute, ComputeError};
use serde::Serialize;

/// Repetitions go on until both of these are reached, or [`MOST_RUNS`].
const LEAST_RUNS: usize = 3;
const LEAST_TIME: Duration = Duration::from_millis(600);
const MOST_RUNS: usize = 25;

/// Seconds that one piece of work took, over several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Timing {
    pub(crate) runs: usize,
    pub(crate) median_secs: f64,
    pub(crate) min_secs: f64,
    pub(crate) max_secs: f64,
}

impl Timing {
    /// Of at least one run.
    pub(crate) fn of(mut secs: Vec<f64>) -> Self {
        secs.sort_by(f64::total_cmp);
        let runs = secs.len();
        let median_secs = f64::midpoint(secs[(runs - 1) / 2], secs[runs / 2]);
        Self { runs, median_secs, min_secs: secs[0], max_secs: secs[runs - 1] }
    }

    /// Whether other work on the machine, or its clock, had a say in the result.
    pub(crate) fn is_unsteady(&self) -> bool {
        self.max_secs > 1.5 * self.min_secs
    }
}

/// Times `work`, after one run that does not count.
pub(crate) fn measure<E>(mut work: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    work()?;
    let mut secs = Vec::new();
    let begin = Instant::now();
    while secs.len() < LEAST_RUNS || (begin.elapsed() < LEAST_TIME && secs.len() < MOST_RUNS) {
        let run = Instant::now();
        work()?;
        secs.push(run.elapsed().as_secs_f64());
    }
    Ok(Timing::of(secs))
}

/// A product `[m, k] x [k, n]` in f32 on a device, timed.
pub(crate) fn matmul(compute: &Compute, [m, k, n]: [usize; 3]) -> Result<Timing, ComputeError> {
    let left = compute.tensor(random_values(m * k, 1), [m, k]);
    let right = compute.tensor(random_values(k * n, 2), [k, n]);
    measure(|| finish(compute, left.clone().matmul(right.clone())))
}

/// Floating-point operations of a product `[m, k] x [k, n]`.
pub(crate) fn matmul_flops([m, k, n]: [usize; 3]) -> f64 {
    2.0 * m as f64 * k as f64 * n as f64
}

/// Waits until the device has computed `tensor`, by reading one element of it.
pub(crate) fn finish(compute: &Compute, tensor: Tensor<2>) -> Result<(), ComputeError> {
    let element = tensor.narrow(0, 0, 1).narrow(1, 0, 1);
    pollster::block_on(compute.read(element)).map(drop)
}

/// `n` values in `[-1, 1)` with mean 0, the same for the same seed.
pub(crate) fn random_values(n: usize, seed: u64) -> Vec<f32> {
    // SplitMix64: <https://prng.di.unimi.it/splitmix64.c>
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    (0..n).map(|_| (next() >> 40) as f32 / 8_388_608.0 - 1.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let odd = Timing::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((odd.median_secs, odd.min_secs, odd.max_secs, odd.runs), (2.0, 1.0, 3.0, 3));
        assert!((Timing::of(vec![4.0, 1.0, 2.0, 3.0]).median_secs - 2.5).abs() < 1e-15);
        assert!(odd.is_unsteady() && !Timing::of(vec![1.0, 1.2]).is_unsteady());
    }

    #[test]
    fn the_first_run_does_not_count_and_an_error_ends_it() {
        let mut n_calls = 0;
        let timing = measure(|| {
            n_calls += 1;
            Ok::<(), ()>(())
        });
        assert_eq!(timing.expect("no call fails").runs, n_calls - 1);
        assert_eq!(n_calls, 1 + MOST_RUNS);
        assert_eq!(measure(|| Err("broken")), Err("broken"));
    }

    #[test]
    fn random_values_are_seeded_centred_and_in_range() {
        let values = random_values(10_000, 7);
        assert_eq!(values, random_values(10_000, 7));
        assert_ne!(values, random_values(10_000, 8));
        assert!(values.iter().all(|value| (-1.0..1.0).contains(value)));
        assert!(values.iter().sum::<f32>().abs() < 300.0);
    }
}
