//! Least squares that stay close to a solution that is there already.

use faer::{Mat, MatRef};

use crate::check::{check_finite, check_shape};
use crate::psd::factorise_gram;
use crate::{Error, Gram, Jitter};

/// A solution, and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Regression {
    /// `W`, `[k, d]`.
    pub weight: Mat<f64>,
    /// By how much the squared error falls from that of the prior, absolute.
    pub gain: f64,
    /// What had to be added on top of the ridge asked for.
    pub jitter: Jitter,
}

/// The weights that map rows `z` to targets `t`, close to `prior`.
///
/// ```text
/// W = W₀ + (A + δI)⁻¹ (B - A W₀)        minimises ‖T - Z W‖_F² + δ ‖W - W₀‖_F²,      A = ZᵀZ,  B = ZᵀT
/// ```
///
/// So what the rows do not tell stays as it was: directions in which they hardly vary, and everything if `δ` is large or
/// the rows are all zero.
///
/// # Shapes
/// - `gram`: `A`, `[k, k]`
/// - `cross`: `B`, `[k, d]`
/// - `prior`: `W₀`, `[k, d]`
///
/// `relative_ridge` is `δ` relative to the mean diagonal of `A`.
///
/// # Errors
/// [`Error::Shape`], [`Error::NotFinite`], [`Error::Ridge`], and [`Error::NotPositiveDefinite`] if no jitter helps.
///
/// # Examples
/// ```
/// use faer::mat;
/// use modegpt_linalg::{Gram, regress_towards};
///
/// let gram = Gram::from_packed_lower(2, vec![1.0, 0.0, 0.0])?; // the second input is never anything but zero
/// let cross = mat![[3.0], [0.0]];
/// let fit = regress_towards(&gram, cross.as_ref(), mat![[1.0], [7.0]].as_ref(), 1e-9)?;
/// assert!((fit.weight - mat![[3.0], [7.0]]).norm_max() < 1e-6 && (fit.gain - 4.0).abs() < 1e-6);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn regress_towards(
    gram: &Gram,
    cross: MatRef<'_, f64>,
    prior: MatRef<'_, f64>,
    relative_ridge: f64,
) -> Result<Regression, Error> {
    check_shape("cross", cross, (gram.dim(), prior.ncols()))?;
    check_shape("prior", prior, (gram.dim(), prior.ncols()))?;
    check_finite("cross", cross)?;
    check_finite("prior", prior)?;
    let cholesky = match factorise_gram(gram, relative_ridge) {
        Err(Error::NotPositiveDefinite { .. }) if gram.is_zero() && cross.norm_max() == 0.0 => {
            return Ok(Regression { weight: prior.to_owned(), gain: 0.0, jitter: Jitter::default() });
        }
        cholesky => cholesky?,
    };
    let lower = gram.to_mat();
    let unexplained = cross - &lower * prior;
    let step = cholesky.solve(unexplained.as_ref());
    // ‖T - Z W₀‖² - ‖T - Z (W₀ + S)‖² = 2 tr(Sᵀ (B - A W₀)) - tr(Sᵀ A S)
    let gain = 2.0 * inner(step.as_ref(), unexplained.as_ref()) - inner(step.as_ref(), (&lower * &step).as_ref());
    Ok(Regression { weight: prior + &step, gain, jitter: cholesky.jitter() })
}

fn inner(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    a.col_iter().zip(b.col_iter()).map(|(a, b)| a.transpose() * b).sum()
}

#[cfg(test)]
mod tests {
    use faer::linalg::solvers::SolveLstsq;

    use super::*;
    use crate::testing::{Random, SIZES, assert_close, assert_near, gram_of};

    #[test]
    fn without_a_ridge_it_is_least_squares() {
        for dim in SIZES.into_iter().filter(|dim| *dim > 0) {
            let mut random = Random::new(dim as u64);
            let (rows, targets, prior) =
                (random.matrix(3 * dim + 5, dim), random.matrix(3 * dim + 5, 4), random.matrix(dim, 4));
            let fit =
                regress_towards(&gram_of(rows.as_ref()), (rows.transpose() * &targets).as_ref(), prior.as_ref(), 0.0)
                    .expect("well conditioned");
            assert_close(fit.weight.as_ref(), rows.qr().solve_lstsq(&targets).as_ref(), 1e-9);
            let error = |weight: &Mat<f64>| (&targets - &rows * weight).squared_norm_l2();
            assert_near(fit.gain, error(&prior) - error(&fit.weight), 1e-9);
        }
    }

    #[test]
    fn a_large_ridge_keeps_the_prior() {
        let mut random = Random::new(1);
        let (rows, targets, prior) = (random.matrix(40, 9), random.matrix(40, 3), random.matrix(9, 3));
        let cross = rows.transpose() * &targets;
        let fit = regress_towards(&gram_of(rows.as_ref()), cross.as_ref(), prior.as_ref(), 1e9).expect("regular");
        assert_close(fit.weight.as_ref(), prior.as_ref(), 1e-6);
        assert!(fit.gain >= 0.0);
    }

    #[test]
    fn fewer_rows_than_inputs_leave_the_rest_alone() {
        let mut random = Random::new(2);
        let (rows, targets, prior) = (random.matrix(5, 20), random.matrix(5, 3), random.matrix(20, 3));
        let cross = rows.transpose() * &targets;
        let fit =
            regress_towards(&gram_of(rows.as_ref()), cross.as_ref(), prior.as_ref(), 1e-9).expect("the ridge helps");
        assert!((&targets - &rows * &fit.weight).norm_max() < 1e-5, "the rows that there are, are met");
        // What is changed lies in the span of the rows.
        let other = random.matrix(20, 1);
        let coefficients = rows.transpose().to_owned().qr().solve_lstsq(&other);
        let outside = &other - rows.transpose() * coefficients;
        assert!((outside.transpose() * (&fit.weight - &prior)).norm_max() < 1e-5);
    }

    #[test]
    fn rows_of_zeros_leave_everything_alone() {
        let (silence, prior) = (Gram::zeros(3), Random::new(4).matrix(3, 2));
        let fit = regress_towards(&silence, Mat::zeros(3, 2).as_ref(), prior.as_ref(), 1e-3).expect("nothing to solve");
        assert_eq!(fit, Regression { weight: prior.clone(), gain: 0.0, jitter: Jitter::default() });
        // Rows of zeros have nothing in common with any target.
        let refused = regress_towards(&silence, prior.as_ref(), prior.as_ref(), 1e-3);
        assert!(matches!(refused, Err(Error::NotPositiveDefinite { .. })));
    }

    #[test]
    fn shapes_and_values_are_checked() {
        let gram = gram_of(Random::new(3).matrix(9, 3).as_ref());
        let matrix = |rows, value| Mat::<f64>::full(rows, 2, value);
        assert!(matches!(
            regress_towards(&gram, matrix(4, 1.0).as_ref(), matrix(3, 1.0).as_ref(), 0.0),
            Err(Error::Shape { matrix: "cross", .. })
        ));
        assert!(matches!(
            regress_towards(&gram, matrix(3, f64::NAN).as_ref(), matrix(3, 1.0).as_ref(), 0.0),
            Err(Error::NotFinite { matrix: "cross", .. })
        ));
    }
}
