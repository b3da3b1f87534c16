//! The best approximation of a matrix by a product of two thin ones.

use faer::{Mat, MatRef};

use crate::Error;
use crate::check::{check_finite, check_rank};

/// `A ≈ left right`, the singular values shared evenly between both factors.
#[derive(Debug, Clone, PartialEq)]
pub struct TruncatedSvd {
    /// `U_r Σ_r^½`, `[m, r]`.
    pub left: Mat<f64>,
    /// `Σ_r^½ V_rᵀ`, `[r, n]`.
    pub right: Mat<f64>,
    /// All `min(m, n)` singular values, largest first; the squares of those after the first `r` sum to the squared error.
    pub singular_values: Vec<f64>,
}

impl TruncatedSvd {
    /// `left right`, `[m, n]`.
    pub fn reconstruct(&self) -> Mat<f64> {
        &self.left * &self.right
    }
}

/// The best product of rank `rank`, in the Frobenius and in the spectral norm.
///
/// ```text
/// A = U Σ Vᵀ,      A ≈ (U_r Σ_r^½) (Σ_r^½ V_rᵀ),      ‖A - …‖_F² = Σ_i>r σ_i²
/// ```
///
/// # Errors
/// [`Error::Rank`] if `rank` exceeds the smaller side, [`Error::NotFinite`] for NaN or infinity,
/// [`Error::NoConvergence`] if the iteration fails.
///
/// # Examples
/// ```
/// use faer::mat;
///
/// let svd = modegpt_linalg::truncated_svd(mat![[3.0, 0.0], [0.0, 2.0]].as_ref(), 1)?;
/// assert!((svd.reconstruct() - mat![[3.0, 0.0], [0.0, 0.0]]).norm_max() < 1e-15);
/// assert!((svd.singular_values[1] - 2.0).abs() < 1e-15);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn truncated_svd(matrix: MatRef<'_, f64>, rank: usize) -> Result<TruncatedSvd, Error> {
    let (rows, columns) = matrix.shape();
    check_rank(rank, rows.min(columns))?;
    check_finite("matrix", matrix)?;
    let svd = matrix.thin_svd().map_err(|_| Error::NoConvergence { rows, columns })?;
    let (left, right) = (svd.U(), svd.V());
    let singular_values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let roots: Vec<f64> = singular_values.iter().map(|value| value.sqrt()).collect();
    Ok(TruncatedSvd {
        left: Mat::from_fn(rows, rank, |i, r| left[(i, r)] * roots[r]),
        right: Mat::from_fn(rank, columns, |r, j| roots[r] * right[(j, r)]),
        singular_values,
    })
}

/// The `min(m, n)` singular values, largest first.
///
/// # Errors
/// [`Error::NotFinite`] for NaN or infinity, [`Error::NoConvergence`] if the iteration fails.
///
/// # Examples
/// ```
/// let values = modegpt_linalg::singular_values(faer::mat![[0.0, 2.0, 0.0], [-3.0, 0.0, 0.0]].as_ref())?;
/// assert!((values[0] - 3.0).abs() < 1e-15 && (values[1] - 2.0).abs() < 1e-15);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn singular_values(matrix: MatRef<'_, f64>) -> Result<Vec<f64>, Error> {
    check_finite("matrix", matrix)?;
    matrix.singular_values().map_err(|_| Error::NoConvergence { rows: matrix.nrows(), columns: matrix.ncols() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, SIZES, assert_close, assert_near, column};

    fn shapes() -> impl Iterator<Item = (usize, usize)> {
        SIZES.into_iter().flat_map(|rows| SIZES.into_iter().map(move |columns| (rows, columns)))
    }

    #[test]
    fn full_rank_is_exact() {
        for (rows, columns) in shapes() {
            let matrix = Random::new(1).matrix(rows, columns);
            let svd = truncated_svd(matrix.as_ref(), rows.min(columns)).expect("converges");
            assert_close(svd.reconstruct().as_ref(), matrix.as_ref(), 1e-12);
        }
    }

    #[test]
    fn error_is_the_tail_and_never_grows_with_rank() {
        let matrix = Random::new(2).matrix(33, 20);
        let mut previous = f64::INFINITY;
        for rank in 0..=20 {
            let svd = truncated_svd(matrix.as_ref(), rank).expect("converges");
            let error = (svd.reconstruct() - &matrix).squared_norm_l2();
            let tail: f64 = svd.singular_values[rank..].iter().map(|value| value * value).sum();
            assert!((error - tail).abs() <= 1e-12 * matrix.squared_norm_l2());
            assert!(error <= previous);
            previous = error;
        }
    }

    #[test]
    fn low_rank_input_is_recovered() {
        let mut random = Random::new(3);
        let matrix = random.matrix(65, 4) * random.matrix(4, 33);
        let svd = truncated_svd(matrix.as_ref(), 4).expect("converges");
        assert_close(svd.reconstruct().as_ref(), matrix.as_ref(), 1e-12);
        assert_near(svd.left.squared_norm_l2(), svd.right.squared_norm_l2(), 1e-12);
    }

    #[test]
    fn values_alone_are_those_of_the_decomposition() {
        for (rows, columns) in shapes() {
            let matrix = Random::new(4).matrix(rows, columns);
            let values = singular_values(matrix.as_ref()).expect("converges");
            assert!(values.is_sorted_by(|a, b| a >= b) && values.len() == rows.min(columns));
            let expected = truncated_svd(matrix.as_ref(), 0).expect("converges").singular_values;
            assert_close(column(&values).as_ref(), column(&expected).as_ref(), 1e-12);
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let mut matrix = Random::new(5).matrix(3, 2);
        assert_eq!(truncated_svd(matrix.as_ref(), 3), Err(Error::Rank { rank: 3, largest: 2 }));
        matrix[(2, 0)] = f64::NEG_INFINITY;
        let refused = Err(Error::NotFinite { matrix: "matrix", row: 2, column: 0, value: f64::NEG_INFINITY });
        assert_eq!(truncated_svd(matrix.as_ref(), 1), refused);
        assert_eq!(singular_values(matrix.as_ref()).map(|_| ()), refused.map(|_| ()));
    }
}
