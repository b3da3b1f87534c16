//! Smooth activations, with the product of a gated MLP, in one pass.

#![expect(clippy::inline_always, reason = "what is not inlined into a kernel is compiled for the oldest processor")]

use pulp::{Arch, Simd, WithSimd};

use super::{exp::exp, in_parts};

/// Values that one thread takes at once: 64 KiB of each operand.
const PART: usize = 1 << 14;
/// `2 sqrt(2 / π)` and its product with 0.044715.
const GELU: [f32; 2] = [1.595_769, 0.071_354_814];

/// Activations of the form `x σ(u(x))`, `σ(u) = 1 / (1 + e^-u)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// `u = x`
    Silu,
    /// `u = 2 sqrt(2 / π) (x + 0.044715 x³)`, which is the approximation of GELU by a hyperbolic tangent.
    GeluTanh,
}

/// Replaces every `x` by its activation, times what stands at its place in `up` if that is given.
pub(crate) fn activate(x: &mut [f32], up: Option<&[f32]>, gate: Gate) {
    let arch = Arch::new();
    in_parts(x, PART, |start, x| {
        let up = up.map(|up| &up[start..start + x.len()]);
        arch.dispatch(Activate { x, up, gate });
    });
}

struct Activate<'a> {
    x: &'a mut [f32],
    up: Option<&'a [f32]>,
    gate: Gate,
}

impl WithSimd for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, up, gate } = self;
        let (lanes, tail) = S::as_mut_simd_f32s(x);
        if let Some(up) = up {
            let (up, up_tail) = S::as_simd_f32s(up);
            for (x, up) in lanes.iter_mut().zip(up) {
                *x = simd.mul_f32s(gate.of_lanes(simd, *x), *up);
            }
            for (x, up) in tail.iter_mut().zip(up_tail) {
                *x = gate.of(*x) * up;
            }
        } else {
            for x in lanes {
                *x = gate.of_lanes(simd, *x);
            }
            for x in tail {
                *x = gate.of(*x);
            }
        }
    }
}

impl Gate {
    #[inline(always)]
    fn of_lanes<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        let [one, zero] = [1.0, 0.0].map(|value| simd.splat_f32s(value));
        let u = match self {
            Self::Silu => x,
            Self::GeluTanh => {
                let [linear, cubic] = GELU.map(|value| simd.splat_f32s(value));
                simd.mul_f32s(x, simd.mul_add_e_f32s(simd.mul_f32s(x, x), cubic, linear))
            }
        };
        // Of -|u|, so that nothing overflows: σ(u) = 1 / (1 + e) or, below zero, e / (1 + e).
        let e = exp(simd, simd.neg_f32s(simd.abs_f32s(u)));
        let above = simd.select_f32s(simd.less_than_f32s(u, zero), e, one);
        simd.mul_f32s(x, simd.div_f32s(above, simd.add_f32s(one, e)))
    }

    fn of(self, x: f32) -> f32 {
        let u = match self {
            Self::Silu => x,
            Self::GeluTanh => x * (GELU[0] + GELU[1] * x * x),
        };
        x / (1.0 + (-u).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sigmoid(u: f64) -> f64 {
        1.0 / (1.0 + (-u).exp())
    }

    fn expected(gate: Gate, x: f64) -> f64 {
        match gate {
            Gate::Silu => x * sigmoid(x),
            Gate::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + u.tanh())
            }
        }
    }

    /// Around the width of a register and of a part, with values from far below to far above zero.
    #[test]
    fn an_activation_is_its_formula_gated_or_not() {
        for gate in [Gate::Silu, Gate::GeluTanh] {
            for len in [1, 15, 16, 17, 33, PART - 1, PART + 1, 3 * PART + 5] {
                let x: Vec<f32> = (0..len).map(|at| 12.0 * (0.37 * at as f32).sin()).collect();
                let up: Vec<f32> = (0..len).map(|at| (0.11 * at as f32).cos()).collect();
                let (mut plain, mut gated) = (x.clone(), x.clone());
                activate(&mut plain, None, gate);
                activate(&mut gated, Some(&up), gate);
                for at in 0..len {
                    let expected = expected(gate, f64::from(x[at]));
                    let close = |found: f32, x: f64| (f64::from(found) - x).abs() <= 4e-7 * x.abs().max(1.0);
                    assert!(close(plain[at], expected), "{gate:?}({}) = {}, not {expected}", x[at], plain[at]);
                    assert!(close(gated[at], expected * f64::from(up[at])), "{gate:?}({}), gated", x[at]);
                }
            }
        }
    }

    #[test]
    fn far_values_and_what_is_not_a_number_come_out_as_such() {
        for gate in [Gate::Silu, Gate::GeluTanh] {
            let values = [-200.0, 200.0, -0.0, 0.0, 1e30, -1e30, f32::INFINITY, f32::NAN];
            let mut found = [values, values].concat();
            found.push(f32::NAN);
            activate(&mut found, None, gate);
            for found in found[..16].chunks(8) {
                assert_eq!(&found[..7], [0.0, 200.0, 0.0, 0.0, 1e30, 0.0, f32::INFINITY], "{gate:?}");
                assert!(found[7].is_nan());
            }
            assert!(found[16].is_nan());
        }
    }
}
