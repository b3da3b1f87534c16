//! Nyström approximation: the kept hidden units carry the output of the dropped ones (MLP).

use faer::{Mat, MatRef};

use crate::check::{check_finite, check_kept, check_shape};
use crate::psd::factorise_kept;
use crate::{Error, Gram, Jitter};

/// The refitted rows of a down projection, and what they cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Nystrom {
    /// `W'`, `[k, d_model]`: one row for every kept unit, in the order of `kept`.
    pub down: Mat<f64>,
    /// `‖H W - H_J W'‖_F²` over the tokens of the Gram, absolute.
    pub error: f64,
    /// What had to be added on top of the ridge asked for.
    pub jitter: Jitter,
    /// Estimated condition number of the regularised `C_JJ`.
    pub condition: f64,
}

/// Replaces the down projection so that the kept hidden units carry the output of the block.
///
/// ```text
/// W' = W_J + (C_JJ + δI)⁻¹ C_JD W_D      minimises ‖H W - H_J W'‖_F² + δ ‖W' - W_J‖_F²,      C = HᵀH
/// ```
///
/// where `H` are the hidden activations, one row per token, `J` the kept units and `D` the dropped ones. Without a ridge
/// this is the paper's `C_JJ⁺ C_J: W`. With one it pulls towards the weights that were there, not towards zero: keeping
/// every unit changes nothing at all, and a unit that never fires keeps its weights, also where all kept ones are such.
///
/// The error is taken from the Grams alone, with `A = W' - W_J`:
///
/// ```text
/// ‖H W - H_J W'‖_F² = tr W_Dᵀ C_DD W_D - tr Aᵀ C_JD W_D - δ ‖A‖_F²
/// ```
///
/// `MoDeGPT`, Algorithm 1 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).
///
/// # Shapes
/// - `gram`: `[d_ff, d_ff]`
/// - `kept`: ascending, distinct, below `d_ff`
/// - `down`: `[d_ff, d_model]`
///
/// `relative_ridge` is `δ` relative to the mean diagonal of `C_JJ`.
///
/// # Errors
/// [`Error::Kept`], [`Error::Shape`], [`Error::NotFinite`], and [`Error::NotPositiveDefinite`], with the pivot, if the
/// kept block cannot be factorised.
///
/// # Examples
/// ```
/// use faer::mat;
/// use modegpt_linalg::{Gram, nystrom};
///
/// let gram = Gram::from_packed_lower(2, vec![1.0, 1.0, 2.0])?; // unit 1 is unit 0 plus noise of energy 1
/// let refit = nystrom(&gram, &[0], mat![[1.0], [1.0]].as_ref(), 0.0)?;
/// assert_eq!(refit.down, mat![[2.0]]); // unit 0 takes over the shared part,
/// assert_eq!(refit.error, 1.0); // and the noise is lost
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn nystrom(gram: &Gram, kept: &[usize], down: MatRef<'_, f64>, relative_ridge: f64) -> Result<Nystrom, Error> {
    check_kept(kept, gram.dim())?;
    check_shape("down", down, (gram.dim(), down.ncols()))?;
    check_finite("down", down)?;
    gram.check_finite("gram")?;
    let kept_down = rows_of(down, kept);
    let dropped = complement(kept, gram.dim());
    if dropped.is_empty() {
        return Ok(Nystrom { down: kept_down, error: 0.0, jitter: Jitter::default(), condition: 1.0 });
    }
    let dropped_down = rows_of(down, &dropped);
    let overlap = gram.block(kept, &dropped);
    let lost = inner(&dropped_down, &(gram.submatrix(&dropped) * &dropped_down));
    let cholesky = match factorise_kept(gram, kept, relative_ridge) {
        Err(Error::NotPositiveDefinite { .. }) if overlap.norm_max() == 0.0 && is_silent(gram, kept) => {
            return Ok(Nystrom { down: kept_down, error: lost, jitter: Jitter::default(), condition: 1.0 });
        }
        cholesky => cholesky?,
    };
    let cross = overlap * &dropped_down; // [k, d_model]
    let correction = cholesky.solve(cross.as_ref());
    let error = lost - inner(&correction, &cross) - cholesky.ridge() * correction.squared_norm_l2();
    Ok(Nystrom {
        down: kept_down + correction,
        error: error.max(0.0), // below zero only by rounding
        jitter: cholesky.jitter(),
        condition: cholesky.condition_estimate(),
    })
}

/// Whether none of `units` ever fires.
fn is_silent(gram: &Gram, units: &[usize]) -> bool {
    units.iter().all(|&i| units.iter().all(|&j| gram.get(i, j) == 0.0))
}

pub(crate) fn rows_of(matrix: MatRef<'_, f64>, rows: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.len(), matrix.ncols(), |i, j| matrix[(rows[i], j)])
}

/// `⟨A, B⟩ = tr Aᵀ B`.
fn inner(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    a.col_iter().zip(b.col_iter()).map(|(a, b)| a.transpose() * b).sum()
}

pub(crate) fn complement(kept: &[usize], dim: usize) -> Vec<usize> {
    let mut is_kept = vec![false; dim];
    for &index in kept {
        is_kept[index] = true;
    }
    (0..dim).filter(|&index| !is_kept[index]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{
        Random, SIZES, assert_close, assert_near, correlated_rows, gram_of, random_gram, random_kept,
    };

    const D_MODEL: usize = 5;

    fn direct_error(hidden: &Mat<f64>, down: &Mat<f64>, kept: &[usize], refit: &Mat<f64>) -> f64 {
        let kept_hidden = rows_of(hidden.transpose(), kept);
        (hidden * down - kept_hidden.transpose() * refit).squared_norm_l2()
    }

    #[test]
    fn keeping_everything_changes_nothing() {
        for dim in SIZES {
            let down = Random::new(1).matrix(dim, D_MODEL);
            let all: Vec<usize> = (0..dim).collect();
            // Two rows only: singular for most sizes, and still the identity.
            let refit = nystrom(&random_gram(dim, 2, 2), &all, down.as_ref(), 1e-8).expect("nothing to solve");
            assert_eq!(refit.down, down);
            assert_near(refit.error, 0.0, 0.0);
        }
    }

    #[test]
    fn refit_is_the_least_squares_solution_and_its_error_the_direct_one() {
        for dim in SIZES {
            let hidden = correlated_rows(dim, 3 * dim + 4, 3);
            let gram = gram_of(hidden.as_ref());
            let down = Random::new(4).matrix(dim, D_MODEL);
            for k in [0, 1, dim / 2, dim - 1] {
                let kept = random_kept(dim, k, 5);
                let refit = nystrom(&gram, &kept, down.as_ref(), 0.0).expect("positive definite");
                let expected = reference::nystrom(gram.to_mat().as_ref(), &kept, down.as_ref()).expect("converges");
                assert_close(refit.down.as_ref(), expected.as_ref(), 1e-9);
                // Least squares: the residual is orthogonal to what was kept.
                let kept_hidden = rows_of(hidden.transpose(), &kept);
                let residual = &hidden * &down - kept_hidden.transpose() * &refit.down;
                let overlap = (&kept_hidden * &residual).norm_l2();
                assert!(overlap <= 1e-11 * kept_hidden.norm_l2() * (&hidden * &down).norm_l2().max(1.0));
                assert_near(refit.error, direct_error(&hidden, &down, &kept, &refit.down), 1e-9);
            }
        }
    }

    #[test]
    fn error_is_the_direct_one_under_any_ridge() {
        let hidden = correlated_rows(33, 100, 6);
        let gram = gram_of(hidden.as_ref());
        let down = Random::new(7).matrix(33, D_MODEL);
        let kept = random_kept(33, 20, 8);
        for relative_ridge in [1e-8, 1e-2, 1.0, 100.0] {
            let refit = nystrom(&gram, &kept, down.as_ref(), relative_ridge).expect("positive definite");
            assert_near(refit.error, direct_error(&hidden, &down, &kept, &refit.down), 1e-10);
        }
    }

    #[test]
    fn keeping_more_is_never_worse() {
        let gram = random_gram(33, 100, 9);
        let down = Random::new(10).matrix(33, D_MODEL);
        let mut scores: Vec<f64> = (0..33).map(f64::from).collect();
        scores.rotate_left(13);
        let errors: Vec<f64> = (0..=33)
            .map(|k| nystrom(&gram, &crate::top_k(&scores, k), down.as_ref(), 0.0).expect("definite").error)
            .collect();
        assert!(errors.is_sorted_by(|fewer, more| more <= fewer), "{errors:?}");
        assert!(errors[0] > 0.0 && errors[33] <= 0.0);
    }

    #[test]
    fn dropping_one_unit_costs_what_optimal_brain_surgeon_says() {
        let dim = 33;
        let gram = random_gram(dim, 100, 11);
        let down = Random::new(12).matrix(dim, D_MODEL);
        let inverse_diagonal = crate::ridge_leverage(&gram, 0.0).expect("definite").inverse_diagonal;
        for (dropped, inverse) in inverse_diagonal.into_iter().enumerate() {
            let kept: Vec<usize> = (0..dim).filter(|&i| i != dropped).collect();
            let refit = nystrom(&gram, &kept, down.as_ref(), 0.0).expect("definite");
            assert_near(refit.error, down.row(dropped).squared_norm_l2() / inverse, 1e-9);
        }
    }

    #[test]
    fn low_rank_activations_lose_nothing() {
        let (dim, rank) = (33, 6);
        let hidden = correlated_rows(rank, 80, 13) * Random::new(14).matrix(rank, dim);
        let down = Random::new(15).matrix(dim, D_MODEL);
        let kept = random_kept(dim, 2 * rank, 16);
        let refit = nystrom(&gram_of(hidden.as_ref()), &kept, down.as_ref(), 0.0).expect("jitter suffices");
        assert!(refit.jitter.attempts > 0);
        let energy = (&hidden * &down).squared_norm_l2();
        assert!(direct_error(&hidden, &down, &kept, &refit.down) <= 1e-8 * energy);
        assert!(refit.error <= 1e-8 * energy);
    }

    #[test]
    fn dead_kept_unit_keeps_its_weights() {
        let gram = Gram::from_packed_lower(3, vec![4.0, 0.0, 0.0, 2.0, 0.0, 9.0]).expect("6");
        let down = faer::mat![[1.0], [5.0], [1.0]];
        let refit = nystrom(&gram, &[0, 1], down.as_ref(), 1e-8).expect("a ridge");
        assert_near(refit.down[(0, 0)], 1.5, 1e-7);
        assert_near(refit.down[(1, 0)], 5.0, 0.0);
    }

    #[test]
    fn kept_units_that_all_never_fire_keep_their_weights() {
        // Unit 1 alone fires, and is dropped.
        let gram = Gram::from_packed_lower(3, vec![0.0, 0.0, 4.0, 0.0, 0.0, 0.0]).expect("6");
        let down = faer::mat![[1.0], [5.0], [2.0]];
        for relative_ridge in [0.0, 1e-8] {
            let refit = nystrom(&gram, &[0, 2], down.as_ref(), relative_ridge).expect("nothing to solve");
            assert_eq!((&refit.down, refit.jitter), (&faer::mat![[1.0], [2.0]], Jitter::default()));
            assert_near(refit.error, 100.0, 1e-15);
            let silent = nystrom(&Gram::zeros(3), &[1], down.as_ref(), relative_ridge).expect("nothing to solve");
            assert_eq!(silent.down, faer::mat![[5.0]]);
            assert_near(silent.error, 0.0, 0.0);
        }
        // What never fires has nothing in common with what does.
        let broken = Gram::from_packed_lower(2, vec![0.0, 1.0, 4.0]).expect("3");
        let refused = nystrom(&broken, &[0], down.get(..2, ..), 1e-8);
        assert!(matches!(refused, Err(Error::NotPositiveDefinite { pivot: 0, .. })));
        assert!(matches!(nystrom(&gram, &[0], down.as_ref(), -1.0), Err(Error::Ridge { .. })));
    }

    #[test]
    fn bad_input_is_refused() {
        let gram = random_gram(3, 9, 17);
        let down = Random::new(18).matrix(3, 2);
        for (kept, index, position) in [(vec![0, 3], 3, 1), (vec![1, 1], 1, 1), (vec![2, 0], 0, 1)] {
            let error = nystrom(&gram, &kept, down.as_ref(), 0.0).expect_err("a bad selection");
            assert_eq!(error, Error::Kept { index, position, dim: 3 });
        }
        let error = nystrom(&gram, &[0], down.get(..2, ..), 0.0).expect_err("a row short");
        assert_eq!(error, Error::Shape { matrix: "down", expected: (3, 2), found: (2, 2) });
        let mut with_nan = down.clone();
        with_nan[(2, 1)] = f64::NAN;
        let error = nystrom(&gram, &[0], with_nan.as_ref(), 0.0).expect_err("a NaN");
        assert!(matches!(error, Error::NotFinite { matrix: "down", row: 2, column: 1, .. }));
    }
}
