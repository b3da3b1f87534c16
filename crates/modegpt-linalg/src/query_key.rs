//! The best low-rank product of queries and keys, where nothing stands between the two (no rotation).

use faer::{Mat, MatRef};

use crate::check::check_shape;
use crate::{Error, Gram, Jitter, value_output};

/// Factors that replace every `W_Q` of a group by `W_Q A` and their `W_K` by `W_K B`, biases alike.
#[derive(Debug, Clone, PartialEq)]
pub struct JointQueryKey {
    /// `A`, `[d, k]`: one for all query heads that share the keys.
    pub query: Mat<f64>,
    /// `B`, `[d, k]`; `Bᵀ A = I`, and column `i` of `B` is as long as column `i` of `A`.
    pub key: Mat<f64>,
    /// `Σ²`: the squared logits carried by each of the `d` directions, largest first.
    pub spectrum: Vec<f64>,
    /// `Σ_j ‖Q_j Kᵀ - Q_j A Bᵀ Kᵀ‖_F²` over all pairs of positions: the sum of the spectrum after the first `k`.
    pub error: f64,
    /// One attempt, and the floor relative to the mean diagonal, if the key Gram is numerically singular.
    pub jitter: Jitter,
    /// Estimated condition number of the key Gram, as used.
    pub condition: f64,
}

impl JointQueryKey {
    /// `A Bᵀ`, `[d, d]`: what stands between queries and keys; the identity if nothing was dropped.
    pub fn reconstruct(&self) -> Mat<f64> {
        &self.query * self.key.transpose()
    }
}

/// The best approximation of rank `rank` of the logits of all query heads that share one key head.
///
/// ```text
/// C_K = RᵀR,      R (Σ_j C_Q,j) Rᵀ = T Σ² Tᵀ (descending),      A = Rᵀ T_k,      B = R⁻¹ T_k
/// minimises Σ_j ‖Q_j Kᵀ - (Q_j A_j)(K B)ᵀ‖_F² = Σ_i>k Σ_i²
/// ```
///
/// The logits of the group are one matrix, its heads one above the other: `[Q_1; Q_2; …] Kᵀ`. Its best approximation
/// projects on the first `k` right singular vectors, which are those of `[R_Q,1; R_Q,2; …] Rᵀ`, for `C_Q,j = R_Q,jᵀ R_Q,j`.
/// So `A_j Bᵀ = Rᵀ T_k T_kᵀ R⁻ᵀ` does not depend on the head: every `A_j` is the same `A`, although each was free. For one
/// head it is the textbook form `A = R_Q⁻¹ P_k Σ_k^½`, `B = R⁻¹ T_k Σ_k^½` of `P Σ Tᵀ = svd(R_Q Rᵀ)`, since
/// `R_Q⁻¹ P Σ = Rᵀ T`; written so, queries need no factorisation and may be singular or zero. It is [`value_output`] with
/// keys for values and queries for outputs, and shares its treatment of a numerically singular `C_K`, its exact identity
/// at rank `d` and its balance: column `i` of `A` is as long as column `i` of `B`.
///
/// Queries and keys include their biases, which are multiplied by `A` and `B` as the weights are. A softmax does not see
/// what all keys have in common, so the key Gram should be [centred](crate::centred_gram). Keys that are then all zero carry no logits: the
/// spectrum is zero, and the directions are those in which the queries are largest.
///
/// # Shapes
/// - `query_grams`: one `[d, d]` for every query head of the group, at least one
/// - `key_gram`: `[d, d]`
///
/// # Errors
/// [`Error::Shape`], [`Error::Rank`], [`Error::NotFinite`], and [`Error::NoConvergence`].
///
/// # Examples
/// ```
/// use modegpt_linalg::{Gram, joint_query_key};
///
/// let query = Gram::from_packed_lower(2, vec![1.0, 0.0, 9.0])?; // diag(1, 9)
/// let key = Gram::from_packed_lower(2, vec![4.0, 0.0, 1.0])?; // diag(4, 1)
/// let factors = joint_query_key(&[&query], &key, 1)?;
/// assert!((factors.reconstruct() - faer::mat![[0.0, 0.0], [0.0, 1.0]]).norm_max() < 1e-15);
/// assert!((factors.spectrum[0] - 9.0).abs() < 1e-12 && (factors.error - 4.0).abs() < 1e-12);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn joint_query_key(query_grams: &[&Gram], key_gram: &Gram, rank: usize) -> Result<JointQueryKey, Error> {
    key_gram.check_finite("key_gram")?;
    let queries = sum_of(query_grams, key_gram.dim())?;
    if key_gram.is_zero() { silent_keys(queries.as_ref(), rank) } else { factors(key_gram, queries.as_ref(), rank) }
}

fn factors(key_gram: &Gram, queries: MatRef<'_, f64>, rank: usize) -> Result<JointQueryKey, Error> {
    let factors = value_output(key_gram, queries, rank)?;
    Ok(JointQueryKey {
        query: factors.decode.transpose().to_owned(),
        key: factors.encode,
        spectrum: factors.spectrum,
        error: factors.error,
        jitter: factors.jitter,
        condition: factors.condition,
    })
}

/// Every product is zero, so any factors serve; an identity in the place of the keys keeps the largest queries.
fn silent_keys(queries: MatRef<'_, f64>, rank: usize) -> Result<JointQueryKey, Error> {
    let dim = queries.nrows();
    let packed = (0..dim).flat_map(|i| (0..=i).map(move |j| f64::from(i == j))).collect();
    let factors = factors(&Gram::from_packed_lower(dim, packed)?, queries, rank)?;
    Ok(JointQueryKey { spectrum: vec![0.0; dim], error: 0.0, ..factors })
}

fn sum_of(query_grams: &[&Gram], dim: usize) -> Result<Mat<f64>, Error> {
    assert!(!query_grams.is_empty(), "a key head should have at least one query head");
    let mut sum = Mat::zeros(dim, dim);
    for gram in query_grams {
        gram.check_finite("query_grams")?;
        let gram = gram.to_mat();
        check_shape("query_grams", gram.as_ref(), (dim, dim))?;
        sum += gram;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, SIZES, assert_close, assert_near, correlated_rows, gram_of, random_gram};
    use crate::{centred_gram, cr_error, cr_scores, reference, singular_values, top_k};

    /// Queries of a group, keys, and factors of their logits.
    fn group(dim: usize, n_heads: u64, seed: u64) -> (Vec<Mat<f64>>, Mat<f64>) {
        let queries = (0..n_heads).map(|j| correlated_rows(dim, 2 * dim + 3, seed + j)).collect();
        // Keys of another kind than the queries, so that both metrics matter.
        (queries, correlated_rows(dim, 2 * dim + 9, seed + 100) * Random::new(seed + 200).matrix(dim, dim))
    }

    fn joint(queries: &[Mat<f64>], keys: &Mat<f64>, rank: usize) -> JointQueryKey {
        let grams: Vec<Gram> = queries.iter().map(|queries| gram_of(queries.as_ref())).collect();
        let query_grams: Vec<&Gram> = grams.iter().collect();
        joint_query_key(&query_grams, &gram_of(keys.as_ref()), rank).expect("converges")
    }

    fn direct_error(queries: &[Mat<f64>], keys: &Mat<f64>, factors: &JointQueryKey) -> f64 {
        let error = |queries: &Mat<f64>| {
            let logits = (queries * &factors.query) * (keys * &factors.key).transpose();
            (queries * keys.transpose() - logits).squared_norm_l2()
        };
        queries.iter().map(error).sum()
    }

    #[test]
    fn error_is_the_tail_the_direct_error_and_the_smallest_any_rank_allows() {
        for dim in SIZES {
            for n_heads in [1, 3] {
                let (queries, keys) = group(dim, n_heads, 1);
                let n_rows = queries[0].nrows();
                let stacked = Mat::from_fn(n_rows * queries.len(), dim, |i, j| queries[i / n_rows][(i % n_rows, j)]);
                // Eckart and Young, on the logits themselves.
                let optimum = singular_values((stacked * keys.transpose()).as_ref()).expect("converges");
                for rank in [0, dim / 3, dim / 2, dim - 1] {
                    let factors = joint(&queries, &keys, rank);
                    assert_near(factors.error, direct_error(&queries, &keys, &factors), 1e-9);
                    assert_near(factors.error, factors.spectrum[rank..].iter().sum(), 1e-14);
                    assert_near(factors.error, optimum[rank..].iter().map(|value| value * value).sum(), 1e-9);
                }
            }
        }
    }

    #[test]
    fn product_equals_the_one_through_both_roots() {
        for dim in SIZES {
            let (queries, keys) = group(dim, 1, 2);
            let rank = dim.div_ceil(2);
            let grams = (gram_of(queries[0].as_ref()).to_mat(), gram_of(keys.as_ref()).to_mat());
            let (query, key) = reference::joint_query_key(grams.0.as_ref(), grams.1.as_ref(), rank).expect("converges");
            let expected = query * key.transpose();
            assert_close(joint(&queries, &keys, rank).reconstruct().as_ref(), expected.as_ref(), 1e-8);
        }
    }

    #[test]
    fn error_falls_with_rank_to_the_identity() {
        let (queries, keys) = group(33, 2, 3);
        let errors: Vec<f64> = (0..=33).map(|rank| joint(&queries, &keys, rank).error).collect();
        assert!(errors.is_sorted_by(|lower, higher| lower > higher), "{errors:?}");
        assert_eq!(joint(&queries, &keys, 33).reconstruct(), Mat::<f64>::identity(33, 33));
    }

    #[test]
    fn no_selection_or_random_subspace_is_better() {
        let (queries, keys) = group(9, 1, 4);
        let (query_gram, key_gram) = (gram_of(queries[0].as_ref()), gram_of(keys.as_ref()));
        let factors = joint(&queries, &keys, 4);
        let kept = top_k(&cr_scores(&query_gram.diagonal(), &key_gram.diagonal()), 4);
        let dropped: Vec<usize> = (0..9).filter(|i| !kept.contains(i)).collect();
        assert!(factors.error < cr_error(&query_gram, &key_gram, &dropped));
        let mut random = Random::new(5);
        for _ in 0..20 {
            let mut other = factors.clone();
            other.query += random.matrix(9, 4) * faer::Scale(1e-3);
            other.key += random.matrix(9, 4) * faer::Scale(1e-3);
            assert!(factors.error < direct_error(&queries, &keys, &other));
        }
    }

    #[test]
    fn factors_are_balanced_and_their_product_projects() {
        let (queries, keys) = group(33, 2, 6);
        let factors = joint(&queries, &keys, 10);
        assert_close((factors.key.transpose() * &factors.query).as_ref(), Mat::identity(10, 10).as_ref(), 1e-9);
        for i in 0..10 {
            assert_near(factors.query.col(i).norm_l2(), factors.key.col(i).norm_l2(), 1e-12);
        }
    }

    #[test]
    fn singular_queries_and_keys_lose_nothing_at_their_rank() {
        let dim = 20;
        let (wide, narrow) = (correlated_rows(dim, 50, 7), correlated_rows(dim, 6, 8));
        for (queries, keys, is_key_singular) in [(&wide, &narrow, true), (&narrow, &wide, false)] {
            let factors = joint(std::slice::from_ref(queries), keys, 6);
            assert_eq!(factors.jitter.attempts, u32::from(is_key_singular));
            let energy = (queries * keys.transpose()).squared_norm_l2();
            let direct = direct_error(std::slice::from_ref(queries), keys, &factors);
            assert!(direct <= 1e-11 * energy && factors.error <= 1e-9 * energy, "{direct:e} {:e}", factors.error);
        }
    }

    #[test]
    fn silent_queries_or_keys_cost_nothing() {
        let (gram, zero) = (random_gram(5, 12, 9), Gram::zeros(5));
        for (query, key) in [(&gram, &zero), (&zero, &gram), (&zero, &zero)] {
            let factors = joint_query_key(&[query], key, 2).expect("nothing to lose");
            assert_eq!((factors.error, factors.spectrum), (0.0, vec![0.0; 5]));
            let product = &factors.query * factors.key.transpose();
            assert_close((&product * &product).as_ref(), product.as_ref(), 1e-12);
        }
    }

    #[test]
    fn common_part_of_the_keys_changes_no_centred_logit() {
        let (queries, keys) = (correlated_rows(6, 15, 11), correlated_rows(6, 20, 12));
        let shifted = Mat::from_fn(20, 6, |t, j| keys[(t, j)] + 30.0);
        let factors = |keys: &Mat<f64>| {
            let sum: Vec<f64> = keys.col_iter().map(|column| column.sum()).collect();
            let key_gram = centred_gram(&gram_of(keys.as_ref()), &sum, 20).expect("sums that belong together");
            joint_query_key(&[&gram_of(queries.as_ref())], &key_gram, 3).expect("definite").reconstruct()
        };
        assert_close(factors(&shifted).as_ref(), factors(&keys).as_ref(), 1e-8);
    }

    #[test]
    fn bad_input_is_refused() {
        let gram = random_gram(3, 9, 13);
        let refuse = |query: &Gram, key: &Gram, rank| joint_query_key(&[query], key, rank).expect_err("bad input");
        assert_eq!(refuse(&gram, &gram, 4), Error::Rank { rank: 4, largest: 3 });
        assert_eq!(refuse(&gram, &Gram::zeros(3), 4), Error::Rank { rank: 4, largest: 3 });
        let small = random_gram(2, 9, 14);
        assert_eq!(refuse(&small, &gram, 1), Error::Shape { matrix: "query_grams", expected: (3, 3), found: (2, 2) });
        let with_nan = Gram::from_packed_lower(3, vec![f64::NAN; 6]).expect("6");
        assert!(matches!(refuse(&with_nan, &gram, 1), Error::NotFinite { matrix: "query_grams", .. }));
        assert!(matches!(refuse(&gram, &with_nan, 1), Error::NotFinite { matrix: "key_gram", .. }));
        let negative = Gram::from_packed_lower(1, vec![-1.0]).expect("1");
        let refused = refuse(&Gram::zeros(1), &negative, 0);
        assert_eq!(refused, Error::NotPositiveDefinite { pivot: 0, value: -1.0, dim: 1 });
    }

    #[test]
    #[should_panic(expected = "at least one query head")]
    fn keys_without_queries_panic() {
        joint_query_key(&[], &Gram::zeros(2), 1).ok();
    }
}
