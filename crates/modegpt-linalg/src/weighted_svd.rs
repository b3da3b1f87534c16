//! The best low-rank approximation of one weight, in a metric of its inputs and one of its outputs.

#[cfg(test)]
mod tests;

use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Mat, MatRef, get_global_parallelism};

use crate::check::{check_finite, check_rank};
use crate::psd::factorise_gram;
use crate::{Cholesky, Error, Gram, Jitter};

/// Diagonal weights below this share of the largest are raised to it: a tenth of the digits of an f32, so that a feature
/// without any weight is all but ignored and still comes out finite.
const SMALLEST_WEIGHT: f64 = 1e-6;

/// How errors are weighed on one side of a weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Metric<'a> {
    /// All features alike.
    Identity,
    /// Feature `i` counts `p_i²`; the vector holds `p_i`, the square root of a Fisher information or the norm of an
    /// activation for example. Weights below 1e-6 of the largest are raised to that.
    Diagonal(Vec<f64>),
    /// Errors `e` count `e C eᵀ`: with the Gram of the inputs, the error is that of the outputs over its tokens.
    Gram(&'a Gram),
}

/// `W ≈ A B`, with what it costs.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedSvd {
    /// `A`, `[d_in, r]`, applied first.
    pub a: Mat<f64>,
    /// `B`, `[r, d_out]`; row `i` of `B` is as long as column `i` of `A`.
    pub b: Mat<f64>,
    /// All `min(d_in, d_out)` squared singular values of `P W Q`, largest first.
    pub spectrum: Vec<f64>,
    /// `‖P (W - A B) Q‖_F²`, in the metrics as used: the sum of the spectrum after the first `r`.
    pub error: f64,
    /// What the input metric needed: the jitter of its Gram, or one attempt and the floor relative to the largest weight
    /// if a diagonal one was floored.
    pub input_jitter: Jitter,
    /// As `input_jitter`, of the output metric.
    pub output_jitter: Jitter,
}

impl WeightedSvd {
    /// `A B`, `[d_in, d_out]`.
    pub fn reconstruct(&self) -> Mat<f64> {
        &self.a * &self.b
    }
}

/// The best product of rank `rank` in the given metrics.
///
/// ```text
/// P W Q = U Σ Vᵀ,      A = W Q V_r D⁻¹,      B = D V_rᵀ Q⁻¹
/// minimises ‖P (W - A B) Q‖_F² = Σ_i>r Σ_i²
/// ```
///
/// with `PᵀP` the metric of the inputs and `Q Qᵀ` that of the outputs. `W Q V = P⁻¹ U Σ`, so that the input metric is never
/// inverted. `D` makes column `i` of `A` as long as row `i` of `B`; without metrics both carry `Σ^½`.
///
/// | method | `input` | `output` |
/// | --- | --- | --- |
/// | SVD | `Identity` | `Identity` |
/// | FWSVD ([arXiv:2207.00112](https://arxiv.org/abs/2207.00112)) | `Diagonal` of `√Σ_j I_ij`, the Fisher information of a row | `Identity` |
/// | ASVD ([arXiv:2312.05821](https://arxiv.org/abs/2312.05821)) | `Diagonal` of `mean abs(x_i)^α` | `Identity` |
/// | SVD-LLM ([arXiv:2403.07378](https://arxiv.org/abs/2403.07378)) | `Gram` of the inputs | `Identity` |
/// | K-FAC | `Gram` of the inputs | `Gram` of the gradients at the outputs |
///
/// A Gram is factorised by [`factorise`](crate::factorise) without a ridge: one of fewer tokens than features needs
/// jitter. Spectrum and error are those of the metrics as used, jitter and floor included.
///
/// # Shapes
/// - `weight`: `[d_in, d_out]`
/// - `input`, `output`: of `d_in` and `d_out` features
///
/// # Errors
/// [`Error::Shape`], [`Error::Rank`], [`Error::NotFinite`], [`Error::Weight`] for a negative or infinite one,
/// [`Error::NoWeight`] for a metric that is zero, [`Error::NotPositiveDefinite`] for what is no Gram matrix, and
/// [`Error::NoConvergence`].
///
/// # Examples
/// ```
/// use faer::{Mat, mat};
/// use modegpt_linalg::{Metric, weighted_svd};
///
/// let weight = mat![[3.0, 0.0], [0.0, 2.0]];
/// let plain = weighted_svd(weight.as_ref(), &Metric::Identity, &Metric::Identity, 1)?;
/// assert!((plain.reconstruct() - mat![[3.0, 0.0], [0.0, 0.0]]).norm_max() < 1e-14);
/// // The second input matters twice as much, so that its row is kept: 2 · 2 > 3 · 1.
/// let weighted = weighted_svd(weight.as_ref(), &Metric::Diagonal(vec![1.0, 2.0]), &Metric::Identity, 1)?;
/// assert!((weighted.reconstruct() - mat![[0.0, 0.0], [0.0, 2.0]]).norm_max() < 1e-14);
/// assert!((weighted.error - 9.0).abs() < 1e-13);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn weighted_svd(
    weight: MatRef<'_, f64>,
    input: &Metric<'_>,
    output: &Metric<'_>,
    rank: usize,
) -> Result<WeightedSvd, Error> {
    let (rows, columns) = weight.shape();
    check_rank(rank, rows.min(columns))?;
    check_finite("weight", weight)?;
    let (input, output) = (Root::new(input, "input", rows)?, Root::new(output, "output", columns)?);
    let output_weighted = output.times_right(weight); // W Q
    let svd = input
        .transpose_times(output_weighted.as_ref())
        .thin_svd()
        .map_err(|_| Error::NoConvergence { rows, columns })?;
    let spectrum: Vec<f64> = svd.S().column_vector().iter().map(|value| value * value).collect();
    let directions = svd.V().get(.., ..rank);
    let mut a = &output_weighted * directions; // [d_in, r]
    let mut b = output.inverse_transpose_times(directions).transpose().to_owned(); // [r, d_out]
    balance(&mut a, &mut b);
    let error = 0.0 + spectrum[rank..].iter().sum::<f64>(); // an empty sum is -0
    Ok(WeightedSvd { a, b, spectrum, error, input_jitter: input.jitter(), output_jitter: output.jitter() })
}

/// `L`, with `L Lᵀ` the metric: `Lᵀ` weighs inputs from the left, `L` outputs from the right.
enum Root {
    Identity,
    Diagonal(Vec<f64>, Jitter),
    Lower(Cholesky),
}

impl Root {
    fn new(metric: &Metric<'_>, name: &'static str, dim: usize) -> Result<Self, Error> {
        match metric {
            Metric::Identity => Ok(Self::Identity),
            Metric::Diagonal(weights) => floored(weights, name, dim),
            Metric::Gram(gram) => {
                gram.check_finite(name)?;
                if gram.dim() != dim {
                    return Err(Error::Shape { matrix: name, expected: (dim, dim), found: (gram.dim(), gram.dim()) });
                }
                if dim > 0 && gram.packed_lower().iter().all(|&value| value == 0.0) {
                    return Err(Error::NoWeight { metric: name });
                }
                Ok(Self::Lower(factorise_gram(gram, 0.0)?))
            }
        }
    }

    /// `Lᵀ M`.
    fn transpose_times(&self, matrix: MatRef<'_, f64>) -> Mat<f64> {
        match self {
            Self::Identity => matrix.to_owned(),
            Self::Diagonal(weights, _) => scale_rows(matrix, |i| weights[i]),
            Self::Lower(cholesky) => cholesky.lower().transpose() * matrix,
        }
    }

    /// `M L`.
    fn times_right(&self, matrix: MatRef<'_, f64>) -> Mat<f64> {
        self.transpose_times(matrix.transpose()).transpose().to_owned()
    }

    /// `L⁻ᵀ M`.
    fn inverse_transpose_times(&self, matrix: MatRef<'_, f64>) -> Mat<f64> {
        match self {
            Self::Identity => matrix.to_owned(),
            Self::Diagonal(weights, _) => scale_rows(matrix, |i| 1.0 / weights[i]),
            Self::Lower(cholesky) => {
                let mut solution = matrix.to_owned();
                let upper = cholesky.lower().transpose();
                solve_upper_triangular_in_place(upper, solution.as_mut(), get_global_parallelism());
                solution
            }
        }
    }

    fn jitter(&self) -> Jitter {
        match self {
            Self::Identity => Jitter::default(),
            Self::Diagonal(_, jitter) => *jitter,
            Self::Lower(cholesky) => cholesky.jitter(),
        }
    }
}

fn floored(weights: &[f64], name: &'static str, dim: usize) -> Result<Root, Error> {
    if weights.len() != dim {
        return Err(Error::Shape { matrix: name, expected: (dim, 1), found: (weights.len(), 1) });
    }
    if let Some(index) = weights.iter().position(|weight| !(weight.is_finite() && *weight >= 0.0)) {
        return Err(Error::Weight { metric: name, index, value: weights[index] });
    }
    let largest = weights.iter().copied().fold(0.0, f64::max);
    let floor = SMALLEST_WEIGHT * largest;
    // Subnormal weights count as none: the inverse of their floor would not be finite.
    if dim > 0 && floor < f64::MIN_POSITIVE {
        return Err(Error::NoWeight { metric: name });
    }
    let is_floored = weights.iter().any(|&weight| weight < floor);
    let jitter = if is_floored { Jitter { attempts: 1, relative: SMALLEST_WEIGHT } } else { Jitter::default() };
    Ok(Root::Diagonal(weights.iter().map(|weight| weight.max(floor)).collect(), jitter))
}

fn scale_rows(matrix: MatRef<'_, f64>, scale: impl Fn(usize) -> f64) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| scale(i) * matrix[(i, j)])
}

/// Scales column `i` of `a` and row `i` of `b` to one length, and leaves their product as it was.
fn balance(a: &mut Mat<f64>, b: &mut Mat<f64>) {
    for i in 0..a.ncols() {
        let scale = (b.row(i).norm_l2() / a.col(i).norm_l2()).sqrt();
        // Where one of the two is zero, or as good as zero, lengths cannot be equal.
        if scale.is_normal() {
            a.col_mut(i).iter_mut().for_each(|value| *value *= scale);
            b.row_mut(i).iter_mut().for_each(|value| *value /= scale);
        }
    }
}
