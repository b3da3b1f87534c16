//! Nyström approximation with an intercept: what is constant in the dropped units goes into the bias (MLP).

use faer::{Mat, MatRef};

use crate::check::{check_finite, check_kept};
use crate::nystrom::{complement, rows_of};
use crate::{Error, Gram, Nystrom, nystrom};

/// A variance below this share of the energy is what rounding leaves of a constant: that of sums of short f32 blocks, which
/// are exact to some 4e-7.
pub const LEAST_VARIANCE: f64 = 1e-6;

/// A variance below zero by more than this share of the energy is no rounding error, not even that of sums of short f32
/// blocks: the sums do not belong together.
const LARGEST_DEFECT: f64 = 1e-5;

/// `Γ = C - T μᵀ μ = Σ_t (h_t - μ)ᵀ (h_t - μ)`, the Gram of the deviations from the mean `μ = sum / n_tokens`.
///
/// Units that are constant up to rounding get rows and columns of exact zeros. To choose units for [`nystrom_affine`],
/// hand this to [`eliminate_units`](crate::eliminate_units).
///
/// # Errors
/// [`Error::Shape`] if `sum` does not hold one value for every unit, [`Error::NotFinite`] for NaN or infinity (a `mean`
/// over no tokens, too), [`Error::NotPositiveDefinite`] if a unit has less energy than its mean alone must.
///
/// # Examples
/// ```
/// use modegpt_linalg::{Gram, centred_gram};
///
/// let gram = Gram::from_packed_lower(2, vec![10.0, 8.0, 8.0])?; // rows (1, 2) and (3, 2)
/// assert_eq!(centred_gram(&gram, &[4.0, 4.0], 2)?.packed_lower(), [2.0, 0.0, 0.0]);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn centred_gram(gram: &Gram, sum: &[f64], n_tokens: u64) -> Result<Gram, Error> {
    let dim = gram.dim();
    gram.check_finite("gram")?;
    let mean = mean_row(sum, n_tokens, dim)?;
    let mut varies = Vec::with_capacity(dim);
    for (pivot, energy) in gram.diagonal().into_iter().enumerate() {
        let value = energy - sum[pivot] * mean[(0, pivot)];
        // NaN comes of overflow.
        if value.is_nan() || value < -LARGEST_DEFECT * energy.abs() {
            return Err(Error::NotPositiveDefinite { pivot, value, dim });
        }
        varies.push(value > LEAST_VARIANCE * energy);
    }
    let deviation = |(i, j): (usize, usize)| {
        if varies[i] && varies[j] { gram.get(i, j) - sum[i] * mean[(0, j)] } else { 0.0 }
    };
    Gram::from_packed_lower(dim, (0..dim).flat_map(|i| (0..=i).map(move |j| (i, j))).map(deviation).collect())
}

/// Replaces the down projection so that the kept hidden units and a constant carry the output of the block: the refit,
/// and what is to be added to the output bias.
///
/// ```text
/// W' = W_J + (Γ_JJ + δI)⁻¹ Γ_JD W_D,      b' - b = μ W - μ_J W'
///
/// minimise ‖H W - (H_J W' + 1 (b' - b))‖_F² + δ ‖W' - W_J‖_F²,      Γ = C - T μᵀ μ,  C = HᵀH,  μ = sum / T
/// ```
///
/// It is [`nystrom`] with one more unit that always fires and is always kept, whose row is the bias; so without a ridge it
/// never loses more. [`Nystrom::error`] is the squared norm above, the bias included. Units that never vary carry nothing
/// that the bias could not: kept ones keep their weights.
///
/// # Shapes
/// - `gram`: `C`, `[d_ff, d_ff]`
/// - `sum`: `Σ_t h_t`, `[d_ff]`, over the `n_tokens` tokens of `gram`
/// - `kept`: ascending, distinct, below `d_ff`
/// - `down`: `[d_ff, d_model]`; the bias shift is `[d_model]`
///
/// `relative_ridge` is `δ` relative to the mean diagonal of `Γ_JJ`, over the units that vary.
///
/// # Errors
/// Those of [`nystrom`] and of [`centred_gram`].
///
/// # Examples
/// ```
/// use faer::mat;
/// use modegpt_linalg::{GramAccumulator, nystrom_affine};
///
/// let mut accumulator = GramAccumulator::new(2);
/// accumulator.add_rows(&[1.0, 5.0, 2.0, 7.0, 3.0, 9.0], 3); // unit 1 is twice unit 0, plus 3
/// let gram = accumulator.finish();
/// let (refit, bias_shift) = nystrom_affine(&gram, &[6.0, 21.0], 3, &[0], mat![[1.0], [1.0]].as_ref(), 0.0)?;
/// assert!((refit.down[(0, 0)] - 3.0).abs() < 1e-12 && (bias_shift[0] - 3.0).abs() < 1e-12);
/// assert!(refit.error < 1e-12);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn nystrom_affine(
    gram: &Gram,
    sum: &[f64],
    n_tokens: u64,
    kept: &[usize],
    down: MatRef<'_, f64>,
    relative_ridge: f64,
) -> Result<(Nystrom, Vec<f64>), Error> {
    check_kept(kept, gram.dim())?;
    let deviations = centred_gram(gram, sum, n_tokens)?;
    let varying: Vec<usize> = kept.iter().copied().filter(|&unit| deviations.get(unit, unit) > 0.0).collect();
    let mut refit = nystrom(&deviations, &varying, down, relative_ridge)?;
    refit.down = with_rows(rows_of(down, kept), kept, &varying, &refit.down);

    let dropped = complement(kept, gram.dim());
    let mean = mean_row(sum, n_tokens, gram.dim())?;
    let mean_of = |units: &[usize]| Mat::from_fn(1, units.len(), |_, j| mean[(0, units[j])]);
    // μ W - μ_J W', without the rows of W that are in both.
    let shift = mean_of(&dropped) * rows_of(down, &dropped) - mean_of(kept) * (&refit.down - rows_of(down, kept));
    Ok((refit, shift.row(0).iter().copied().collect()))
}

/// `sum / n_tokens` as a row.
fn mean_row(sum: &[f64], n_tokens: u64, dim: usize) -> Result<Mat<f64>, Error> {
    if sum.len() != dim {
        return Err(Error::Shape { matrix: "sum", expected: (1, dim), found: (1, sum.len()) });
    }
    let mean = Mat::from_fn(1, dim, |_, j| sum[j] / n_tokens as f64);
    check_finite("mean", mean.as_ref())?;
    Ok(mean)
}

/// `target`, whose rows belong to `units`, with those of `some` of them replaced; both ascending.
fn with_rows(mut target: Mat<f64>, units: &[usize], some: &[usize], rows: &Mat<f64>) -> Mat<f64> {
    for (unit, row) in some.iter().zip(rows.row_iter()) {
        let position = units.binary_search(unit).expect("some of the units");
        target.row_mut(position).copy_from(row);
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{Random, SIZES, assert_close, assert_near, correlated_rows, gram_of, random_kept};

    const D_MODEL: usize = 5;

    /// Rows with means that differ from unit to unit.
    fn shifted_rows(dim: usize, n_rows: usize, seed: u64) -> Mat<f64> {
        let rows = correlated_rows(dim, n_rows, seed);
        Mat::from_fn(n_rows, dim, |t, j| rows[(t, j)] + (j % 4) as f64)
    }

    fn sums(hidden: &Mat<f64>) -> Vec<f64> {
        hidden.col_iter().map(|column| column.sum()).collect()
    }

    fn direct_error(hidden: &Mat<f64>, down: &Mat<f64>, kept: &[usize], refit: &Mat<f64>, shift: &[f64]) -> f64 {
        let residual = hidden * down - rows_of(hidden.transpose(), kept).transpose() * refit;
        Mat::from_fn(hidden.nrows(), down.ncols(), |t, j| residual[(t, j)] - shift[j]).squared_norm_l2()
    }

    #[test]
    fn refit_is_the_least_squares_solution_with_an_intercept() {
        for dim in SIZES {
            let n_rows = 3 * dim + 4;
            let hidden = shifted_rows(dim, n_rows, 1);
            let (gram, sum, down) = (gram_of(hidden.as_ref()), sums(&hidden), Random::new(2).matrix(dim, D_MODEL));
            for k in [0, 1, dim / 2, dim - 1].into_iter().filter(|&k| k < dim) {
                let kept = random_kept(dim, k, 3);
                let (refit, shift) =
                    nystrom_affine(&gram, &sum, n_rows as u64, &kept, down.as_ref(), 0.0).expect("definite");
                let (expected, expected_shift) =
                    reference::nystrom_affine(gram.to_mat().as_ref(), &sum, n_rows as u64, &kept, down.as_ref())
                        .expect("converges");
                assert_close(refit.down.as_ref(), expected.as_ref(), 1e-9);
                assert_close(row(&shift).as_ref(), row(&expected_shift).as_ref(), 1e-9);
                assert_near(refit.error, direct_error(&hidden, &down, &kept, &refit.down, &shift), 1e-9);
                let plain = nystrom(&gram, &kept, down.as_ref(), 0.0).expect("definite");
                assert!(refit.error <= plain.error * (1.0 + 1e-9), "{} exceeds {}", refit.error, plain.error);
            }
        }
    }

    #[test]
    fn error_is_the_direct_one_under_any_ridge() {
        let hidden = shifted_rows(33, 100, 4);
        let (gram, sum, down) = (gram_of(hidden.as_ref()), sums(&hidden), Random::new(5).matrix(33, D_MODEL));
        let kept = random_kept(33, 20, 6);
        for relative_ridge in [1e-8, 1e-2, 1.0, 100.0] {
            let (refit, shift) =
                nystrom_affine(&gram, &sum, 100, &kept, down.as_ref(), relative_ridge).expect("definite");
            assert_near(refit.error, direct_error(&hidden, &down, &kept, &refit.down, &shift), 1e-10);
        }
    }

    #[test]
    fn intercept_is_worth_having_where_means_differ() {
        let hidden = shifted_rows(33, 100, 7);
        let (gram, sum, down) = (gram_of(hidden.as_ref()), sums(&hidden), Random::new(8).matrix(33, D_MODEL));
        let kept = random_kept(33, 3, 9);
        let (refit, _) = nystrom_affine(&gram, &sum, 100, &kept, down.as_ref(), 1e-8).expect("definite");
        let plain = nystrom(&gram, &kept, down.as_ref(), 1e-8).expect("definite");
        assert!(refit.error < 0.98 * plain.error, "{} and {}", refit.error, plain.error);
    }

    #[test]
    fn keeping_everything_changes_nothing() {
        let hidden = shifted_rows(7, 3, 10); // singular, and still the identity
        let down = Random::new(11).matrix(7, D_MODEL);
        let kept: Vec<usize> = (0..7).collect();
        let (refit, shift) =
            nystrom_affine(&gram_of(hidden.as_ref()), &sums(&hidden), 3, &kept, down.as_ref(), 1e-8).expect("nothing");
        assert_eq!((refit.down, shift), (down, vec![0.0; D_MODEL]));
        assert!(refit.error.abs() <= 0.0);
    }

    #[test]
    fn constant_units_are_the_bias() {
        // Unit 0 is always 3 and unit 2 always 1; one token makes constants of all.
        let several = faer::mat![[3.0, 1.0, 1.0], [3.0, 2.0, 1.0], [3.0, 4.0, 1.0]];
        let one = faer::mat![[3.0, 1.0, 1.0]];
        let down = faer::mat![[1.0], [10.0], [100.0]];
        for (hidden, kept, expected) in [
            (&several, vec![1], 103.0),
            (&several, vec![0, 1], 100.0),
            (&one, vec![0, 1], 100.0),
            (&one, vec![], 113.0),
        ] {
            let n_tokens = hidden.nrows() as u64;
            let (refit, shift) =
                nystrom_affine(&gram_of(hidden.as_ref()), &sums(hidden), n_tokens, &kept, down.as_ref(), 1e-8)
                    .expect("what varies is definite");
            assert_eq!((refit.down, shift), (rows_of(down.as_ref(), &kept), vec![expected]));
            assert!(refit.error.abs() <= 0.0 && refit.jitter.attempts == 0);
        }
    }

    #[test]
    fn elimination_of_deviations_ends_in_the_errors_of_the_affine_refit() {
        let hidden = shifted_rows(33, 100, 12);
        let (gram, sum, down) = (gram_of(hidden.as_ref()), sums(&hidden), Random::new(13).matrix(33, D_MODEL));
        let deviations = centred_gram(&gram, &sum, 100).expect("sums that belong together");
        let elimination =
            crate::eliminate_units(&deviations, down.as_ref(), None, &crate::EliminationOptions::default())
                .expect("definite");
        for k in 0..33 {
            let kept = elimination.kept(k);
            let (refit, _) = nystrom_affine(&gram, &sum, 100, &kept, down.as_ref(), 0.0).expect("definite");
            assert_near(elimination.error(k), refit.error, 1e-9);
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let hidden = shifted_rows(3, 9, 14);
        let (gram, sum, down) = (gram_of(hidden.as_ref()), sums(&hidden), Random::new(15).matrix(3, 2));
        let affine = |sum: &[f64], n_tokens, kept: &[usize]| {
            nystrom_affine(&gram, sum, n_tokens, kept, down.as_ref(), 0.0).expect_err("bad input")
        };
        assert_eq!(affine(&sum[..2], 9, &[0]), Error::Shape { matrix: "sum", expected: (1, 3), found: (1, 2) });
        assert!(matches!(affine(&sum, 0, &[0]), Error::NotFinite { matrix: "mean", .. }));
        assert!(matches!(affine(&[f64::NAN; 3], 9, &[0]), Error::NotFinite { matrix: "mean", row: 0, column: 0, .. }));
        assert!(matches!(affine(&[1e200; 3], 9, &[0]), Error::NotPositiveDefinite { pivot: 0, .. }));
        assert!(matches!(affine(&[0.0, 0.0, 300.0], 9, &[0]), Error::NotPositiveDefinite { pivot: 2, .. }));
        assert_eq!(affine(&sum, 9, &[1, 1]), Error::Kept { index: 1, position: 1, dim: 3 });
    }

    fn row(values: &[f64]) -> Mat<f64> {
        Mat::from_fn(1, values.len(), |_, j| values[j])
    }
}
