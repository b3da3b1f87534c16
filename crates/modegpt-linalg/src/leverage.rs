//! Ridge leverage scores: how hard a hidden unit is to replace by the others (MLP).

use crate::psd::factorise_gram;
use crate::{Error, Gram, Jitter};

/// Ridge leverage scores, and the diagonal of the inverse that they are ranked by.
#[derive(Debug, Clone, PartialEq)]
pub struct RidgeLeverage {
    /// `s_i` in `[0, 1]`; large = hard to replace. For reports: for a small ridge all are 1 to many digits.
    pub scores: Vec<f64>,
    /// `h_i = [(C + λI)⁻¹]_ii`, absolute, for ranking ([`select_by_leverage`](crate::select_by_leverage)); `1 / h_i` is
    /// what remains of unit `i` after regressing it on the others.
    pub inverse_diagonal: Vec<f64>,
    /// What had to be added on top of the ridge asked for.
    pub jitter: Jitter,
    /// Estimated condition number of `C + λI`.
    pub condition: f64,
}

impl RidgeLeverage {
    fn of_silence(dim: usize) -> Self {
        let (scores, inverse_diagonal) = (vec![0.0; dim], vec![f64::INFINITY; dim]);
        Self { scores, inverse_diagonal, jitter: Jitter::default(), condition: 1.0 }
    }
}

/// Ridge leverage scores of the hidden units with this Gram.
///
/// ```text
/// s_i = [C (C + λI)⁻¹]_ii = 1 - λ h_i,      h_i = [(C + λI)⁻¹]_ii = Σ_r [L⁻¹]_ri²,      L Lᵀ = C + λI
/// ```
///
/// `relative_ridge` is `λ` relative to the mean diagonal of `C`: a large one ranks by energy `C_ii`, a small one by what
/// the other units cannot explain. Costs one Cholesky factorisation and as much again.
///
/// Of units that all never fire none is harder to replace than another: their scores are 0, and `h` is infinite.
///
/// `MoDeGPT`, Algorithm 1 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).
///
/// # Errors
/// Those of [`factorise`](crate::factorise).
///
/// # Examples
/// ```
/// use modegpt_linalg::{Gram, ridge_leverage};
///
/// let gram = Gram::from_packed_lower(2, vec![3.0, 0.0, 1.0])?; // diag(3, 1), mean diagonal 2
/// let leverage = ridge_leverage(&gram, 0.5)?; // λ = 1
/// assert!((leverage.scores[0] - 3.0 / 4.0).abs() < 1e-15);
/// assert!((leverage.scores[1] - 1.0 / 2.0).abs() < 1e-15);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn ridge_leverage(gram: &Gram, relative_ridge: f64) -> Result<RidgeLeverage, Error> {
    let cholesky = match factorise_gram(gram, relative_ridge) {
        Err(Error::NotPositiveDefinite { .. }) if gram.is_zero() => return Ok(RidgeLeverage::of_silence(gram.dim())),
        cholesky => cholesky?,
    };
    let inverse_diagonal = cholesky.inverse_diagonal();
    let scores = inverse_diagonal.iter().map(|h| (1.0 - cholesky.ridge() * h).clamp(0.0, 1.0)).collect();
    let (jitter, condition) = (cholesky.jitter(), cholesky.condition_estimate());
    Ok(RidgeLeverage { scores, inverse_diagonal, jitter, condition })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SIZES, assert_close, column, random_gram};
    use crate::{reference, select_by_leverage, top_k};

    #[test]
    fn scores_equal_those_of_the_dense_inverse() {
        for dim in SIZES {
            for relative_ridge in [1e-6, 1e-3, 1.0, 1e3] {
                let gram = random_gram(dim, 2 * dim, 7);
                let leverage = ridge_leverage(&gram, relative_ridge).expect("positive definite");
                let ridge = relative_ridge * gram.mean_diagonal();
                let expected = reference::ridge_leverage_scores(gram.to_mat().as_ref(), ridge);
                assert_close(column(&leverage.scores).as_ref(), column(&expected).as_ref(), 1e-10);
                assert!(leverage.scores.iter().all(|score| (0.0..=1.0).contains(score)));
            }
        }
    }

    #[test]
    fn selection_by_inverse_diagonal_is_selection_by_score() {
        let gram = random_gram(33, 66, 8);
        let leverage = ridge_leverage(&gram, 0.1).expect("positive definite");
        for k in 0..=33 {
            assert_eq!(select_by_leverage(&leverage, &gram, k), top_k(&leverage.scores, k));
        }
    }

    #[test]
    fn large_ridge_ranks_by_energy() {
        let gram = random_gram(33, 66, 9);
        let leverage = ridge_leverage(&gram, 1e6).expect("positive definite");
        assert_eq!(select_by_leverage(&leverage, &gram, 12), top_k(&gram.diagonal(), 12));
    }

    #[test]
    fn rank_deficient_gram_needs_ridge() {
        let gram = random_gram(33, 5, 10);
        assert!(ridge_leverage(&gram, 0.0).expect("jitter suffices").jitter.attempts > 0);
        let leverage = ridge_leverage(&gram, 1e-4).expect("the ridge suffices");
        assert_eq!(leverage.jitter, Jitter::default());
        let effective_rank: f64 = leverage.scores.iter().sum();
        assert!((4.9..=5.0).contains(&effective_rank), "{effective_rank}");
        assert!((1e2..1e8).contains(&leverage.condition), "{:e}", leverage.condition);
    }

    #[test]
    fn units_that_never_fire_are_all_the_same() {
        let silence = Gram::zeros(5);
        for relative_ridge in [0.0, 1e-3] {
            let leverage = ridge_leverage(&silence, relative_ridge).expect("nothing to factorise");
            assert_eq!((leverage.scores.as_slice(), leverage.jitter), (&[0.0; 5][..], Jitter::default()));
            assert_eq!(select_by_leverage(&leverage, &silence, 3), [0, 1, 2]);
        }
        assert!(matches!(ridge_leverage(&silence, -1.0), Err(Error::Ridge { .. })));
    }

    #[test]
    fn nan_is_refused() {
        let gram = Gram::from_packed_lower(2, vec![1.0, f64::NAN, 1.0]).expect("3");
        let error = ridge_leverage(&gram, 1e-4).expect_err("a NaN");
        assert!(matches!(error, Error::NotFinite { matrix: "gram", row: 1, column: 0, .. }));
    }
}
