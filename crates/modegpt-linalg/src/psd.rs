//! Positive definite factorisation with a ridge, and the eigendecomposition of a symmetric matrix.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Mat, MatMut, MatRef, Side, get_global_parallelism};

use crate::check::{check_finite, check_shape};
use crate::condition::inverse_norm_estimate;
use crate::{Error, Gram};

/// First jitter tried where the ridge asked for does not suffice, unless that ridge is larger; relative to the mean
/// diagonal. About what f64 rounding loses in a matrix of a few thousand rows.
const SMALLEST_JITTER: f64 = 1e-12;

/// Last jitter tried. A matrix that needs more of its mean diagonal is no Gram matrix.
const LARGEST_JITTER: f64 = 1e-2;

/// What had to be added on top of the ridge asked for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Jitter {
    /// Factorisations that failed before the one that did not; 0: the ridge asked for sufficed.
    pub attempts: u32,
    /// The jitter that sufficed, relative to the mean diagonal.
    pub relative: f64,
}

/// The factorisation `L Lᵀ = A + ridge I` of a symmetric positive semi-definite `A`, with `L` lower triangular.
#[derive(Debug, Clone)]
pub struct Cholesky {
    lower: Mat<f64>,
    ridge: f64,
    /// `‖A + ridge I‖₁`.
    norm: f64,
    jitter: Jitter,
}

/// Factorises `matrix`, of which only the lower triangle is read.
///
/// ```text
/// L Lᵀ = A + (relative_ridge + jitter) mean(diag A) I
/// ```
///
/// The jitter is 0 first, then `max(relative_ridge, 1e-12)` and ten times more each time up to 1e-2, until every pivot
/// stands clear of the rounding error of its own diagonal entry (`dim ε A_ii`).
///
/// # Errors
/// [`Error::NotPositiveDefinite`] with the pivot if the largest jitter does not suffice (an all-zero matrix has a mean
/// diagonal of 0, so none does), [`Error::NotFinite`] for NaN or infinity, [`Error::Ridge`] for a negative ridge, and
/// [`Error::Shape`] if `matrix` is not square.
///
/// # Examples
/// ```
/// use faer::mat;
///
/// let cholesky = modegpt_linalg::factorise(mat![[4.0, 2.0], [2.0, 5.0]].as_ref(), 0.0)?;
/// assert_eq!(cholesky.lower(), &mat![[2.0, 0.0], [1.0, 2.0]]);
/// assert_eq!(cholesky.solve(mat![[8.0], [12.0]].as_ref()), mat![[1.0], [2.0]]);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn factorise(matrix: MatRef<'_, f64>, relative_ridge: f64) -> Result<Cholesky, Error> {
    check_shape("matrix", matrix, (matrix.nrows(), matrix.nrows()))?;
    factorise_filled(matrix.nrows(), relative_ridge, "matrix", |mut target| target.copy_from_triangular_lower(matrix))
}

impl Cholesky {
    /// Solves `(A + ridge I) X = rhs`, one column at a time or many.
    pub fn solve(&self, rhs: MatRef<'_, f64>) -> Mat<f64> {
        let mut solution = rhs.to_owned();
        let parallelism = get_global_parallelism();
        solve_lower_triangular_in_place(self.lower.as_ref(), solution.as_mut(), parallelism);
        solve_upper_triangular_in_place(self.lower.transpose(), solution.as_mut(), parallelism);
        solution
    }

    /// `h_i = [(A + ridge I)⁻¹]_ii = Σ_r [L⁻¹]_ri²`, without forming the inverse: `n³/3` multiplications and one
    /// `n x 256` buffer.
    pub fn inverse_diagonal(&self) -> Vec<f64> {
        const WIDTH: usize = 256;
        let dim = self.lower.nrows();
        let mut diagonal = Vec::with_capacity(dim);
        for first in (0..dim).step_by(WIDTH) {
            // Columns of L⁻¹ are zero above the diagonal, so the rows before `first` take no part.
            let mut columns = Mat::<f64>::identity(dim - first, WIDTH.min(dim - first));
            let lower = self.lower.get(first.., first..);
            solve_lower_triangular_in_place(lower, columns.as_mut(), get_global_parallelism());
            diagonal.extend(columns.col_iter().map(|column| column.squared_norm_l2()));
        }
        diagonal
    }

    /// `L`, zero above the diagonal.
    pub fn lower(&self) -> &Mat<f64> {
        &self.lower
    }

    /// Estimate from below of `‖B‖₁ ‖B⁻¹‖₁` for `B = A + ridge I`, usually within a factor of three; 1 for dimension 0.
    pub fn condition_estimate(&self) -> f64 {
        if self.lower.nrows() == 0 { 1.0 } else { (self.norm * inverse_norm_estimate(self)).max(1.0) }
    }

    /// What had to be added on top of the ridge asked for.
    pub fn jitter(&self) -> Jitter {
        self.jitter
    }

    /// What was added to the diagonal, jitter included; absolute.
    pub fn ridge(&self) -> f64 {
        self.ridge
    }
}

/// [`factorise`] of a whole Gram.
pub(crate) fn factorise_gram(gram: &Gram, relative_ridge: f64) -> Result<Cholesky, Error> {
    factorise_filled(gram.dim(), relative_ridge, "gram", |target| fill_lower(target, |i, j| gram.get(i, j)))
}

/// [`factorise`] of the rows and columns in `kept`.
pub(crate) fn factorise_kept(gram: &Gram, kept: &[usize], relative_ridge: f64) -> Result<Cholesky, Error> {
    let entry = |i: usize, j: usize| gram.get(kept[i], kept[j]);
    factorise_filled(kept.len(), relative_ridge, "gram", |target| fill_lower(target, entry))
}

/// Eigenvalues, largest first, and the eigenvectors as columns in the same order; reads the lower triangle.
pub(crate) fn eigen_descending(matrix: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>), Error> {
    let eigen = matrix
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| Error::NoConvergence { rows: matrix.nrows(), columns: matrix.ncols() })?;
    let values = eigen.S().column_vector().iter().rev().copied().collect();
    Ok((values, eigen.U().reverse_cols().to_owned()))
}

fn fill_lower(mut target: MatMut<'_, f64>, entry: impl Fn(usize, usize) -> f64) {
    for j in 0..target.ncols() {
        for i in j..target.nrows() {
            target[(i, j)] = entry(i, j);
        }
    }
}

/// `fill` writes the lower triangle: once more for every jitter, so that one matrix of memory suffices.
fn factorise_filled(
    dim: usize,
    relative_ridge: f64,
    name: &'static str,
    fill: impl Fn(MatMut<'_, f64>),
) -> Result<Cholesky, Error> {
    if !(relative_ridge.is_finite() && relative_ridge >= 0.0) {
        return Err(Error::Ridge { value: relative_ridge });
    }
    let mut lower = Mat::zeros(dim, dim);
    fill(lower.as_mut());
    check_finite(name, lower.as_ref())?;
    let mean_diagonal = (0..dim).map(|i| lower[(i, i)]).sum::<f64>() / dim.max(1) as f64;
    let norm = norm_of_lower(lower.as_ref());
    let mut jitter = Jitter::default();
    loop {
        let ridge = (relative_ridge + jitter.relative) * mean_diagonal;
        for i in 0..dim {
            lower[(i, i)] += ridge;
        }
        let failure = match factorise_in_place(&mut lower) {
            Ok(()) => return Ok(Cholesky { lower, ridge, norm: norm + ridge, jitter }),
            Err(failure) => failure,
        };
        jitter.relative = SMALLEST_JITTER.max(relative_ridge) * 10f64.powi(jitter.attempts as i32);
        jitter.attempts += 1;
        // The powers of ten are rounded, so that the last one may exceed the bound by an ulp.
        if jitter.relative > LARGEST_JITTER * 1.001 {
            return Err(failure);
        }
        fill(lower.as_mut());
    }
}

fn factorise_in_place(lower: &mut Mat<f64>) -> Result<(), Error> {
    let dim = lower.nrows();
    let diagonal: Vec<f64> = (0..dim).map(|i| lower[(i, i)]).collect();
    let parallelism = get_global_parallelism();
    let params = faer::Spec::default();
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(dim, parallelism, params));
    let stack = MemStack::new(&mut memory);
    let result = cholesky_in_place(lower.as_mut(), LltRegularization::default(), parallelism, stack, params);
    if let Err(LltError::NonPositivePivot { index }) = result {
        return Err(Error::NotPositiveDefinite { pivot: index, value: lower[(index, index)], dim });
    }
    for (pivot, entry) in diagonal.into_iter().enumerate() {
        let value = lower[(pivot, pivot)].powi(2);
        // A pivot below the rounding error of its own entry is noise, however positive; NaN comes of overflow.
        if value.is_nan() || value <= dim as f64 * f64::EPSILON * entry {
            return Err(Error::NotPositiveDefinite { pivot, value, dim });
        }
    }
    for j in 1..dim {
        lower.col_as_slice_mut(j)[..j].fill(0.0);
    }
    Ok(())
}

/// `‖A‖₁` of the symmetric matrix with this lower triangle.
fn norm_of_lower(lower: MatRef<'_, f64>) -> f64 {
    let mut sums = vec![0.0; lower.nrows()];
    for j in 0..lower.ncols() {
        sums[j] += lower[(j, j)].abs();
        for i in j + 1..lower.nrows() {
            let magnitude = lower[(i, j)].abs();
            sums[i] += magnitude;
            sums[j] += magnitude;
        }
    }
    sums.into_iter().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, SIZES, assert_close, assert_near, column, random_gram};

    #[test]
    fn factor_times_its_transpose_is_the_regularised_matrix() {
        for dim in SIZES {
            let gram = random_gram(dim, 2 * dim + 3, 1);
            let cholesky = factorise(gram.to_mat().as_ref(), 1e-3).expect("positive definite");
            let ridge = 1e-3 * gram.mean_diagonal();
            assert_near(cholesky.ridge(), ridge, 1e-14);
            assert_eq!(cholesky.jitter(), Jitter::default());
            let expected = Mat::from_fn(dim, dim, |i, j| gram.get(i, j) + if i == j { ridge } else { 0.0 });
            assert_close((cholesky.lower() * cholesky.lower().transpose()).as_ref(), expected.as_ref(), 1e-14);
        }
    }

    #[test]
    fn solve_inverts_the_product() {
        for dim in SIZES.into_iter().chain([300]) {
            let matrix = random_gram(dim, 3 * dim + 3, 2).to_mat();
            let solution = Random::new(3).matrix(dim, 5);
            let cholesky = factorise(matrix.as_ref(), 0.0).expect("positive definite");
            assert_close(cholesky.solve((&matrix * &solution).as_ref()).as_ref(), solution.as_ref(), 1e-10);
        }
    }

    #[test]
    fn inverse_diagonal_is_that_of_the_inverse() {
        for dim in SIZES.into_iter().chain([300]) {
            let gram = random_gram(dim, 3 * dim + 3, 3);
            let cholesky = factorise_gram(&gram, 0.0).expect("positive definite");
            let inverse = cholesky.solve(Mat::<f64>::identity(dim, dim).as_ref());
            let expected: Vec<f64> = (0..dim).map(|i| inverse[(i, i)]).collect();
            assert_close(column(&cholesky.inverse_diagonal()).as_ref(), column(&expected).as_ref(), 1e-12);
        }
    }

    #[test]
    fn only_the_lower_triangle_is_read_and_written() {
        let with_nan = faer::mat![[4.0, f64::NAN], [2.0, 5.0]];
        let cholesky = factorise(with_nan.as_ref(), 0.0).expect("positive definite");
        assert_eq!(cholesky.lower(), &faer::mat![[2.0, 0.0], [1.0, 2.0]]);
    }

    #[test]
    fn rank_deficient_gram_needs_jitter_and_says_so() {
        for dim in [7, 33, 65] {
            let gram = random_gram(dim, 3, 4);
            let jitter = factorise_gram(&gram, 0.0).expect("jitter suffices").jitter();
            assert!(
                jitter.attempts >= 1 && jitter.relative >= SMALLEST_JITTER && jitter.relative <= 1e-9,
                "{jitter:?}"
            );
            let ridged = factorise_gram(&gram, 1e-6).expect("the ridge suffices");
            assert_eq!(ridged.jitter(), Jitter::default());
        }
    }

    #[test]
    fn every_jitter_up_to_the_largest_is_tried() {
        // The smaller eigenvalue is 1 - 1.009 = -0.009: of the tenfold steps only the last, 1e-2, lifts it.
        let cholesky = factorise(faer::mat![[1.0, 1.009], [1.009, 1.0]].as_ref(), 0.0).expect("the last jitter");
        assert_eq!(cholesky.jitter().attempts, 11);
        assert_near(cholesky.jitter().relative, 1e-2, 1e-12);
        assert_near(cholesky.ridge(), 1e-2, 1e-12);
    }

    #[test]
    fn indefinite_matrix_is_refused_with_its_pivot() {
        let error = factorise(faer::mat![[4.0, 0.0], [0.0, -1.0]].as_ref(), 0.0).expect_err("indefinite");
        let Error::NotPositiveDefinite { pivot: 1, value, dim: 2 } = error else { panic!("{error}") };
        assert!((-1.0..-0.9).contains(&value), "{value}");
        let zero = factorise_gram(&Gram::zeros(3), 1e-4).expect_err("no energy");
        assert_eq!(zero, Error::NotPositiveDefinite { pivot: 0, value: 0.0, dim: 3 });
    }

    #[test]
    fn bad_input_is_refused() {
        let mut matrix = Mat::<f64>::identity(3, 3);
        for ridge in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(factorise(matrix.as_ref(), ridge), Err(Error::Ridge { .. })));
        }
        assert!(matches!(factorise(matrix.get(..2, ..), 0.0), Err(Error::Shape { .. })));
        matrix[(2, 1)] = f64::NAN;
        assert!(matches!(
            factorise(matrix.as_ref(), 0.0),
            Err(Error::NotFinite { matrix: "matrix", row: 2, column: 1, .. })
        ));
    }

    #[test]
    fn dimension_zero_is_no_special_case() {
        let cholesky = factorise(Mat::<f64>::zeros(0, 0).as_ref(), 1e-4).expect("nothing to fail");
        assert!(cholesky.inverse_diagonal().is_empty());
        assert_eq!(cholesky.solve(Mat::zeros(0, 4).as_ref()).shape(), (0, 4));
        assert_near(cholesky.condition_estimate(), 1.0, 0.0);
    }

    #[test]
    fn eigenvalues_descend_and_reconstruct() {
        for dim in SIZES {
            let matrix = random_gram(dim, dim, 6).to_mat();
            let (values, vectors) = eigen_descending(matrix.as_ref()).expect("converges");
            assert!(values.is_sorted_by(|a, b| a >= b));
            let scaled = Mat::from_fn(dim, dim, |i, j| vectors[(i, j)] * values[j]);
            assert_close((scaled * vectors.transpose()).as_ref(), matrix.as_ref(), 1e-13);
        }
    }
}
