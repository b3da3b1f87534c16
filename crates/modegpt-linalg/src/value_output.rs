//! The best low-rank product of a value and an output projection, in the metric of the data.

use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Mat, MatRef, get_global_parallelism};

use crate::check::{check_finite, check_rank, check_shape};
use crate::psd::{eigen_descending, factorise_gram};
use crate::{Error, Gram, Jitter};

/// Beyond this condition number the Cholesky factor of the value Gram is noise, and eigenvalues are floored instead.
const LARGEST_CONDITION: f64 = 1e12;

/// Factors that replace `W_V` by `W_V E` and every `W_O` of the group by `F W_O`.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueOutput {
    /// `E`, `[d, k]`.
    pub encode: Mat<f64>,
    /// `F`, `[k, d]`; `F E = I`, and column `i` of `E` is as long as row `i` of `F`.
    pub decode: Mat<f64>,
    /// `Λ`: the squared output carried by each of the `d` directions, largest first.
    pub spectrum: Vec<f64>,
    /// `Σ_j ‖V W_O,j - V E F W_O,j‖_F²` over the tokens of the Gram: the sum of the spectrum after the first `k`.
    pub error: f64,
    /// One attempt, and the floor relative to the mean diagonal, if the value Gram is numerically singular.
    pub jitter: Jitter,
    /// Estimated condition number of the value Gram, as used.
    pub condition: f64,
}

impl ValueOutput {
    /// `E F`, `[d, d]`: the projection that stands between values and output; the identity if nothing was dropped.
    pub fn reconstruct(&self) -> Mat<f64> {
        &self.encode * &self.decode
    }
}

/// The best projections of rank `rank` between the values of one key/value head and the output projections they feed.
///
/// ```text
/// G_V = Rᵀ R,      R G_O Rᵀ = P Λ Pᵀ (descending),      E = R⁻¹ P_k,      F = P_kᵀ R
/// minimises Σ_j ‖V W_O,j - V E F W_O,j‖_F² = Σ_i>k Λ_i
/// ```
///
/// where `V` are the values, one row per token, and `j` runs over the query heads of the group. This is the product that
/// the paper finds through `C^½` and `C^-½` of the block's input, for matrices of `d = d_head` instead of `d_model` rows.
/// `E` and `F` are then scaled to equal lengths, so that neither new weight leaves the range of the old ones.
///
/// A numerically singular `G_V = Q D Qᵀ` is used as `R = D^½ Qᵀ` with `D` floored at `1e-12` of its largest entry, so
/// that directions without values come last, and rank `d` still is the identity.
///
/// `MoDeGPT`, Algorithm 3 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).
///
/// # Shapes
/// - `value_gram`: `[d, d]`, of the values without bias (or of the attention outputs without it)
/// - `output_gram`: `[d, d]`, `Σ_j W_O,j W_O,jᵀ` with `W_O,j` of shape `[d, d_model]`
///
/// # Errors
/// [`Error::Shape`], [`Error::Rank`], [`Error::NotFinite`], [`Error::NotPositiveDefinite`] if the values are all zero,
/// and [`Error::NoConvergence`].
///
/// # Examples
/// ```
/// use faer::{Mat, mat};
/// use modegpt_linalg::{Gram, value_output};
///
/// let values = Gram::from_packed_lower(2, vec![4.0, 0.0, 1.0])?; // diag(4, 1)
/// let factors = value_output(&values, Mat::identity(2, 2).as_ref(), 1)?;
/// assert!((factors.reconstruct() - mat![[1.0, 0.0], [0.0, 0.0]]).norm_max() < 1e-15);
/// assert!((factors.error - 1.0).abs() < 1e-15); // the energy of the second value
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn value_output(value_gram: &Gram, output_gram: MatRef<'_, f64>, rank: usize) -> Result<ValueOutput, Error> {
    let dim = value_gram.dim();
    check_rank(rank, dim)?;
    check_shape("output_gram", output_gram, (dim, dim))?;
    check_finite("output_gram", output_gram)?;
    value_gram.check_finite("value_gram")?;
    let root = root_of(value_gram)?;
    let (mut spectrum, directions) = eigen_descending((&root.upper * output_gram * root.upper.transpose()).as_ref())?;
    for value in &mut spectrum {
        *value = value.max(0.0); // below zero only by rounding
    }
    // All directions together are the identity; saying so exactly keeps an uncompressed head as it was.
    let (encode, decode) = if rank == dim {
        (Mat::identity(dim, dim), Mat::identity(dim, dim))
    } else {
        balanced_factors(&root, directions.get(.., ..rank))
    };
    let error = 0.0 + spectrum[rank..].iter().sum::<f64>(); // an empty sum is -0
    Ok(ValueOutput { encode, decode, spectrum, error, jitter: root.jitter, condition: root.condition })
}

/// `RᵀR = G_V`, with the inverse of `R`.
struct Root {
    upper: Mat<f64>,
    inverse: Mat<f64>,
    jitter: Jitter,
    condition: f64,
}

fn root_of(gram: &Gram) -> Result<Root, Error> {
    if let Ok(cholesky) = factorise_gram(gram, 0.0) {
        let condition = cholesky.condition_estimate();
        if cholesky.jitter().attempts == 0 && condition <= LARGEST_CONDITION {
            let upper = cholesky.lower().transpose().to_owned();
            let mut inverse = Mat::identity(gram.dim(), gram.dim());
            solve_upper_triangular_in_place(upper.as_ref(), inverse.as_mut(), get_global_parallelism());
            return Ok(Root { upper, inverse, jitter: Jitter::default(), condition });
        }
    }
    floored_root(gram)
}

/// `R = D^½ Qᵀ` and `R⁻¹ = Q D^-½`, with `D` floored.
fn floored_root(gram: &Gram) -> Result<Root, Error> {
    let dim = gram.dim();
    let (values, vectors) = eigen_descending(gram.to_mat().as_ref())?;
    let largest = values[0];
    let floor = largest / LARGEST_CONDITION;
    // Subnormal energies count as none: their floor, or its root's inverse, would not be finite.
    if floor.is_nan() || floor < f64::MIN_POSITIVE {
        return Err(Error::NotPositiveDefinite { pivot: 0, value: largest, dim });
    }
    let roots: Vec<f64> = values.iter().map(|value| value.max(floor).sqrt()).collect();
    Ok(Root {
        upper: Mat::from_fn(dim, dim, |i, j| roots[i] * vectors[(j, i)]),
        inverse: Mat::from_fn(dim, dim, |i, j| vectors[(i, j)] / roots[j]),
        jitter: Jitter { attempts: 1, relative: floor / gram.mean_diagonal() },
        condition: (roots[0] / roots[dim - 1]).powi(2),
    })
}

/// `E = R⁻¹ P_k D` and `F = D⁻¹ P_kᵀ R`, with `D` such that column `i` of `E` is as long as row `i` of `F`.
fn balanced_factors(root: &Root, directions: MatRef<'_, f64>) -> (Mat<f64>, Mat<f64>) {
    let mut encode = &root.inverse * directions; // [d, k]
    let mut decode = directions.transpose() * &root.upper; // [k, d]
    for i in 0..directions.ncols() {
        let scale = (decode.row(i).norm_l2() / encode.col(i).norm_l2()).sqrt();
        encode.col_mut(i).iter_mut().for_each(|value| *value *= scale);
        decode.row_mut(i).iter_mut().for_each(|value| *value /= scale);
    }
    (encode, decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, SIZES, assert_close, assert_near, correlated_rows, gram_of, random_gram};
    use crate::{reference, singular_values};

    const D_MODEL: usize = 40;

    /// Output projections of a group of heads, and their `Σ_j W_j W_jᵀ`.
    fn group(dim: usize, n_heads: usize, seed: u64) -> (Vec<Mat<f64>>, Mat<f64>) {
        let mut random = Random::new(seed);
        let outputs: Vec<_> = (0..n_heads).map(|_| random.matrix(dim, D_MODEL)).collect();
        let gram = outputs.iter().fold(Mat::zeros(dim, dim), |sum, output| sum + output * output.transpose());
        (outputs, gram)
    }

    #[test]
    fn error_is_the_tail_of_the_spectrum_and_the_direct_error_of_the_group() {
        for dim in SIZES {
            let values = correlated_rows(dim, 3 * dim + 5, 1);
            let (outputs, output_gram) = group(dim, 3, 2);
            for rank in [0, 1, dim / 2, dim - 1] {
                let factors = value_output(&gram_of(values.as_ref()), output_gram.as_ref(), rank).expect("definite");
                let projected = &values * factors.reconstruct();
                let direct: f64 = outputs.iter().map(|w| (&values * w - &projected * w).squared_norm_l2()).sum();
                assert_near(factors.error, direct, 1e-10);
                assert_near(factors.spectrum[rank..].iter().sum(), direct, 1e-10);
            }
        }
    }

    #[test]
    fn error_is_the_smallest_any_rank_allows() {
        let (dim, rank) = (33, 12);
        let values = correlated_rows(dim, 100, 3);
        let (outputs, output_gram) = group(dim, 2, 4);
        let factors = value_output(&gram_of(values.as_ref()), output_gram.as_ref(), rank).expect("definite");
        // Eckart and Young: the tail of the singular values of V [W_O,1 W_O,2].
        let stacked = Mat::from_fn(dim, 2 * D_MODEL, |i, j| outputs[j / D_MODEL][(i, j % D_MODEL)]);
        let optimum = singular_values((values * stacked).as_ref()).expect("converges");
        assert_near(factors.error, optimum[rank..].iter().map(|value| value * value).sum(), 1e-10);
    }

    #[test]
    fn product_equals_the_one_through_the_input_covariance() {
        for (dim, rank) in [(1, 1), (2, 1), (7, 3), (7, 7), (33, 20)] {
            let input = correlated_rows(D_MODEL, 200, 5);
            let value = Random::new(6).matrix(D_MODEL, dim);
            let (outputs, output_gram) = group(dim, 1, 7);
            let factors =
                value_output(&gram_of((&input * &value).as_ref()), output_gram.as_ref(), rank).expect("definite");
            let product = &value * factors.reconstruct() * &outputs[0];
            let covariance = gram_of(input.as_ref()).to_mat();
            let (new_value, new_output) =
                reference::value_output(covariance.as_ref(), value.as_ref(), outputs[0].as_ref(), rank)
                    .expect("converges");
            assert_close(product.as_ref(), (new_value * new_output).as_ref(), 1e-10);
        }
    }

    #[test]
    fn full_rank_is_the_identity() {
        for dim in SIZES {
            let (_, output_gram) = group(dim, 2, 8);
            let gram = random_gram(dim, 2 * dim, 9);
            let factors = value_output(&gram, output_gram.as_ref(), dim).expect("definite");
            assert_eq!(factors.reconstruct(), Mat::<f64>::identity(dim, dim));
            assert_near(factors.error, 0.0, 0.0);
            // The factors that the shortcut spares are the identity too.
            let root = root_of(&gram).expect("definite");
            let whitened = &root.upper * &output_gram * root.upper.transpose();
            let (encode, decode) =
                balanced_factors(&root, eigen_descending(whitened.as_ref()).expect("converges").1.as_ref());
            assert_close((encode * decode).as_ref(), Mat::identity(dim, dim).as_ref(), 1e-10);
        }
    }

    #[test]
    fn factors_are_balanced_and_their_product_projects() {
        let (_, output_gram) = group(33, 2, 10);
        let factors = value_output(&random_gram(33, 99, 11), output_gram.as_ref(), 10).expect("definite");
        assert_close((&factors.decode * &factors.encode).as_ref(), Mat::identity(10, 10).as_ref(), 1e-12);
        for i in 0..10 {
            assert_near(factors.encode.col(i).norm_l2(), factors.decode.row(i).norm_l2(), 1e-12);
        }
    }

    #[test]
    fn error_falls_with_rank() {
        let (_, output_gram) = group(33, 2, 12);
        let gram = random_gram(33, 99, 13);
        let errors: Vec<f64> =
            (0..=33).map(|rank| value_output(&gram, output_gram.as_ref(), rank).expect("definite").error).collect();
        assert!(errors.is_sorted_by(|lower, higher| lower > higher), "{errors:?}");
    }

    #[test]
    fn singular_value_gram_loses_nothing_at_its_rank_and_completes_beyond() {
        let (dim, n_rows) = (33, 6);
        let values = correlated_rows(dim, n_rows, 14);
        let gram = gram_of(values.as_ref());
        let (outputs, output_gram) = group(dim, 1, 15);
        for rank in [n_rows, 20, dim - 1] {
            let factors = value_output(&gram, output_gram.as_ref(), rank).expect("floored");
            assert_eq!(factors.jitter.attempts, 1);
            assert_near(factors.condition, 1e12, 1e-6);
            let whole = (&values * &outputs[0]).squared_norm_l2();
            let direct = (&values * &outputs[0] - &values * factors.reconstruct() * &outputs[0]).squared_norm_l2();
            assert!(direct <= 1e-11 * whole && factors.error <= 1e-9 * whole, "{rank}: {direct:e} {:e}", factors.error);
            assert_close((&factors.decode * &factors.encode).as_ref(), Mat::identity(rank, rank).as_ref(), 1e-8);
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let gram = random_gram(3, 9, 16);
        let mut output_gram = Mat::<f64>::identity(3, 3);
        let refuse =
            |gram: &Gram, output: MatRef<'_, f64>, rank| value_output(gram, output, rank).expect_err("bad input");
        assert_eq!(refuse(&gram, output_gram.as_ref(), 4), Error::Rank { rank: 4, largest: 3 });
        assert!(matches!(refuse(&gram, output_gram.get(.., ..2), 1), Error::Shape { matrix: "output_gram", .. }));
        let silent = refuse(&Gram::zeros(3), output_gram.as_ref(), 1);
        assert_eq!(silent, Error::NotPositiveDefinite { pivot: 0, value: 0.0, dim: 3 });
        let with_nan = Gram::from_packed_lower(3, vec![f64::NAN; 6]).expect("6");
        assert!(matches!(refuse(&with_nan, output_gram.as_ref(), 1), Error::NotFinite { matrix: "value_gram", .. }));
        output_gram[(0, 2)] = f64::NAN;
        assert!(matches!(refuse(&gram, output_gram.as_ref(), 1), Error::NotFinite { matrix: "output_gram", .. }));
    }
}
