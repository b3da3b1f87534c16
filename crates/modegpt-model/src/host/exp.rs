//! The exponential of many numbers at once, and what is made of it.

#![expect(clippy::inline_always, reason = "what is not inlined into a kernel is compiled for the oldest processor")]

use pulp::{Arch, Simd, WithSimd};

/// Rows are summed in f32 over as many values, beyond that in f64.
const SUMMED: usize = 1024;

/// `1.5 · 2²³`: added to a small number it leaves the nearest integer in the lowest bits.
const ROUND: f32 = 12_582_912.0;
/// `ln 2` in two parts, the first of so few bits that its multiples up to 126 are exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// Minimax polynomial of `(e^r - 1 - r) / r²` for `|r| ≤ ln 2 / 2`, from the highest power: e^r is met within 3.1e-9.
const POLYNOMIAL: [f32; 5] = [0.001_381_459_9, 0.008_368_717, 0.041_668_39, 0.166_665_21, 0.499_999_94];
/// Below, `e^x` is taken for 0; it is less than 1.3e-38.
const SMALLEST: f32 = -87.3;

/// `e^x` for `x ≤ 0`, with a relative error of at most 1.5e-7; NaN stays NaN.
///
/// ```text
/// e^x = 2^n e^r,   n = round(x / ln 2),   r = x - n ln 2
/// ```
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let all = |value: f32| simd.splat_f32s(value);
    let shifted = simd.mul_add_e_f32s(x, all(std::f32::consts::LOG2_E), all(ROUND));
    let n = simd.sub_f32s(shifted, all(ROUND));
    let r = simd.mul_add_e_f32s(n, all(-LN_2[0]), x);
    let r = simd.mul_add_e_f32s(n, all(-LN_2[1]), r);
    let [first, rest @ ..] = POLYNOMIAL;
    let q = rest.iter().fold(all(first), |q, c| simd.mul_add_e_f32s(q, r, all(*c)));
    let power = simd.add_f32s(simd.mul_add_e_f32s(simd.mul_f32s(r, r), q, r), all(1.0));
    // 2^n, by adding n to the exponent of one.
    let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(f32::MANTISSA_DIGITS - 1));
    let scale = simd.transmute_f32s_u32s(simd.add_u32s(n, simd.splat_u32s(1.0_f32.to_bits())));
    let y = simd.mul_f32s(power, scale);
    simd.select_f32s(simd.less_than_f32s(x, all(SMALLEST)), all(0.0), y)
}

/// The largest value; one that is NaN may be passed over.
pub(super) struct Max<'a>(pub(super) &'a [f32]);

/// Replaces every `x` by `e^(x - max)` and gives their sum.
pub(super) struct ExpInPlace<'a>(pub(super) &'a mut [f32], pub(super) f32);

/// `Σ e^(x - max)`
struct SumExp<'a>(&'a [f32], f32);

impl WithSimd for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (lanes, tail) = S::as_simd_f32s(self.0);
        let (fours, ones) = pulp::as_arrays::<4, _>(lanes);
        let mut max = [simd.splat_f32s(f32::NEG_INFINITY); 4];
        for four in fours {
            max.iter_mut().zip(four).for_each(|(max, x)| *max = simd.max_f32s(*x, *max));
        }
        for x in ones {
            max[0] = simd.max_f32s(*x, max[0]);
        }
        let max = simd.max_f32s(simd.max_f32s(max[0], max[1]), simd.max_f32s(max[2], max[3]));
        tail.iter().fold(simd.reduce_max_f32s(max), |max, x| max.max(*x))
    }
}

impl WithSimd for ExpInPlace<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let Self(row, max) = self;
        let (lanes, tail) = S::as_mut_simd_f32s(row);
        let mut sum = simd.splat_f32s(0.0);
        for x in lanes {
            *x = exp(simd, simd.sub_f32s(*x, simd.splat_f32s(max)));
            sum = simd.add_f32s(sum, *x);
        }
        for x in &mut *tail {
            *x = (*x - max).exp();
        }
        simd.reduce_sum_f32s(sum) + tail.iter().sum::<f32>()
    }
}

impl WithSimd for SumExp<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let Self(row, max) = self;
        let (lanes, tail) = S::as_simd_f32s(row);
        let mut sum = simd.splat_f32s(0.0);
        for x in lanes {
            sum = simd.add_f32s(sum, exp(simd, simd.sub_f32s(*x, simd.splat_f32s(max))));
        }
        simd.reduce_sum_f32s(sum) + tail.iter().map(|x| (*x - max).exp()).sum::<f32>()
    }
}

/// The largest value `m` of a row and `Σ e^(x - m)`; the sum is NaN if a value is.
pub(crate) fn log_sum_parts(row: &[f32]) -> (f32, f64) {
    let arch = Arch::new();
    let max = arch.dispatch(Max(row));
    (max, row.chunks(SUMMED).map(|part| f64::from(arch.dispatch(SumExp(part, max)))).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the instructions of this processor, and with none in particular.
    fn exp_of(values: &[f32]) -> [Vec<f32>; 2] {
        let (mut found, mut plain) = (values.to_vec(), values.to_vec());
        Arch::new().dispatch(ExpInPlace(&mut found, 0.0));
        ExpInPlace(&mut plain, 0.0).with_simd(pulp::Scalar::new());
        [found, plain]
    }

    #[test]
    fn every_exponential_is_met_to_the_last_bit_but_one() {
        // All of [-87.3, 0], closer together the nearer to zero: 16 at once, so that no tail is left.
        let values: Vec<f32> = (0..1 << 22).map(|at| -f32::from_bits(at * 267)).filter(|x| *x >= SMALLEST).collect();
        let values = &values[values.len() % 16..];
        assert!(values.len() > 3_000_000 && values.last().is_some_and(|x| *x < -87.0));
        for found in exp_of(values) {
            for (x, found) in values.iter().zip(found) {
                let expected = f64::from(*x).exp();
                let error = (f64::from(found) / expected - 1.0).abs();
                assert!(error <= 1.5e-7, "e^{x:e}: {found:e}, not {expected:e}: {error:e}");
            }
        }
    }

    #[test]
    fn limits_and_what_is_not_a_number_come_out_as_such() {
        let values = [0.0, -0.0, -f32::MIN_POSITIVE, -87.31, -100.0, -1e30, f32::NEG_INFINITY, f32::NAN];
        let values = [values, values].concat();
        for found in exp_of(&values) {
            for found in found.chunks(8) {
                assert_eq!(&found[..7], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
                assert!(found[7].is_nan());
            }
        }
    }

    /// Every length around the width of a register, and rows of several sums.
    #[test]
    fn a_row_is_summed_whatever_its_length() {
        for len in (1..70).chain([1023, 1024, 1025, 5000]) {
            let row: Vec<f32> = (0..len).map(|at| 9.0 * (0.37 * at as f32).sin() - 2.0).collect();
            let (max, sum) = log_sum_parts(&row);
            assert_eq!(Some(max), row.iter().copied().reduce(f32::max));
            let expected: f64 = row.iter().map(|x| (f64::from(*x) - f64::from(max)).exp()).sum();
            assert!((sum / expected - 1.0).abs() < 5e-7, "{len} values: {sum}, not {expected}");
        }
    }

    #[test]
    fn nothing_hides_a_value_that_is_no_number() {
        for at in [0, 17, 39, 40] {
            let mut row = [1.0; 41];
            row[at] = f32::NAN;
            assert!(log_sum_parts(&row).1.is_nan(), "at {at}");
        }
    }
}
