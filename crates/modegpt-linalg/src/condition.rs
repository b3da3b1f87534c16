//! How far a solve may be trusted.

use faer::Mat;

use crate::Cholesky;

/// Estimate from below of `‖B⁻¹‖₁` from the factorisation of `B`, of dimension 1 or more.
///
/// Hager's method with Higham's second start (N. Higham, *Accuracy and Stability of Numerical Algorithms*, 15.3): a few
/// solves with one right-hand side.
pub(crate) fn inverse_norm_estimate(cholesky: &Cholesky) -> f64 {
    let dim = cholesky.lower().nrows();
    let mut start = Mat::from_fn(dim, 1, |_, _| 1.0 / dim as f64);
    let mut estimate = 0.0;
    for _ in 0..5 {
        let solution = cholesky.solve(start.as_ref());
        estimate = solution.norm_l1().max(estimate);
        let signs = Mat::from_fn(dim, 1, |i, _| 1f64.copysign(solution[(i, 0)]));
        let gradient = cholesky.solve(signs.as_ref());
        let steepest =
            (0..dim).fold(0, |best, i| if gradient[(i, 0)].abs() > gradient[(best, 0)].abs() { i } else { best });
        if gradient[(steepest, 0)].abs() <= (gradient.transpose() * &start)[(0, 0)] {
            break;
        }
        start = Mat::from_fn(dim, 1, |i, _| f64::from(i == steepest));
    }
    estimate.max(alternating_estimate(cholesky))
}

/// A start that no cancellation can hide from; counts for 2/3 of its norm.
fn alternating_estimate(cholesky: &Cholesky) -> f64 {
    let dim = cholesky.lower().nrows();
    let last = (dim - 1).max(1) as f64;
    let start = Mat::from_fn(dim, 1, |i, _| (1.0 + i as f64 / last) * if i % 2 == 0 { 1.0 } else { -1.0 });
    2.0 * cholesky.solve(start.as_ref()).norm_l1() / (3.0 * dim as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorise;
    use crate::testing::{SIZES, random_gram};

    #[test]
    fn condition_estimate_is_close_from_below() {
        for dim in SIZES {
            let matrix = random_gram(dim, 2 * dim, 5).to_mat();
            let cholesky = factorise(matrix.as_ref(), 0.0).expect("positive definite");
            let inverse = cholesky.solve(Mat::<f64>::identity(dim, dim).as_ref());
            let norm = |matrix: &Mat<f64>| matrix.col_iter().map(|column| column.norm_l1()).fold(0.0, f64::max);
            let ratio = cholesky.condition_estimate() / (norm(&matrix) * norm(&inverse));
            assert!((0.33..=1.0 + 1e-9).contains(&ratio), "{dim}: {ratio}");
        }
    }
}
