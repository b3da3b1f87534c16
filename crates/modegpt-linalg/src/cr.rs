//! CR decomposition: matching columns of a query and a key projection kept by score.

use crate::Gram;

/// Scores of the coordinates of one head without rotary embedding.
///
/// ```text
/// s_i = ‖C_Q^½ e_i‖ ‖C_K^½ e_i‖ = √(C_Q,ii C_K,ii)
/// ```
///
/// since `‖C^½ e_i‖² = e_iᵀ C e_i`: no square root of a matrix is needed. `query_diagonal` and `key_diagonal` are the
/// diagonals of the Grams of queries and keys, of one length. For query heads that share their keys, sum the query
/// diagonals first: the error of a shared selection adds up over the heads.
///
/// `MoDeGPT`, Algorithm 2 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).
///
/// # Examples
/// ```
/// assert_eq!(modegpt_linalg::cr_scores(&[4.0, 1.0], &[9.0, 25.0]), [6.0, 5.0]);
/// ```
pub fn cr_scores(query_diagonal: &[f64], key_diagonal: &[f64]) -> Vec<f64> {
    assert_eq!(query_diagonal.len(), key_diagonal.len(), "queries and keys should be of one width");
    query_diagonal.iter().zip(key_diagonal).map(|(query, key)| (query * key).sqrt()).collect()
}

/// Scores of the pairs of coordinates that a rotary embedding turns together.
///
/// ```text
/// s_p = e_Q,p e_K,p,      e_p = C_pp + C_p+h,p+h,      h = d / 2
/// ```
///
/// A rotation keeps the energy `e_p` of a pair, so the Grams may be taken before it or after. Pair `p` is made of the
/// coordinates `p` and `p + h` (the layout of `rotate_half`); selecting whole pairs commutes with the rotation.
/// Diagonals are of one even length `d`; returns `d / 2` scores.
///
/// # Examples
/// ```
/// // Pair 0 is coordinates 0 and 2, pair 1 is coordinates 1 and 3.
/// let scores = modegpt_linalg::rotary_pair_scores(&[1.0, 2.0, 3.0, 4.0], &[1.0, 1.0, 1.0, 2.0]);
/// assert_eq!(scores, [4.0 * 2.0, 6.0 * 3.0]);
/// ```
pub fn rotary_pair_scores(query_diagonal: &[f64], key_diagonal: &[f64]) -> Vec<f64> {
    assert_eq!(query_diagonal.len(), key_diagonal.len(), "queries and keys should be of one width");
    let (query, key) = (pair_energies(query_diagonal), pair_energies(key_diagonal));
    query.zip(key).map(|(query, key)| query * key).collect()
}

/// Squared error of the logits of all pairs of positions if the coordinates in `dropped` are left out.
///
/// ```text
/// Σ_s,t (Σ_i∈D q_si k_ti)² = 1_Dᵀ (C_Q ∘ C_K) 1_D
/// ```
///
/// Unlike the sum of squared scores it counts the cross terms between coordinates. The Grams are of one dimension, above
/// every index in `dropped`.
///
/// # Examples
/// ```
/// use modegpt_linalg::{Gram, cr_error};
///
/// let query = Gram::from_packed_lower(2, vec![1.0, 2.0, 4.0])?; // one query, (1, 2)
/// let key = Gram::from_packed_lower(2, vec![9.0, 3.0, 1.0])?; // one key, (3, 1)
/// assert_eq!(cr_error(&query, &key, &[0]), 9.0); // (1 * 3)²
/// assert_eq!(cr_error(&query, &key, &[0, 1]), 25.0); // (1 * 3 + 2 * 1)²
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn cr_error(query_gram: &Gram, key_gram: &Gram, dropped: &[usize]) -> f64 {
    assert_eq!(query_gram.dim(), key_gram.dim(), "queries and keys should be of one width");
    let row_sum = |&i: &usize| dropped.iter().map(|&j| query_gram.get(i, j) * key_gram.get(i, j)).sum::<f64>();
    dropped.iter().map(row_sum).sum()
}

fn pair_energies(diagonal: &[f64]) -> impl Iterator<Item = f64> {
    assert!(diagonal.len().is_multiple_of(2), "pairs need an even width, found {}", diagonal.len());
    let (first, second) = diagonal.split_at(diagonal.len() / 2);
    first.iter().zip(second).map(|(first, second)| first + second)
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::*;
    use crate::reference;
    use crate::testing::{
        SIZES, assert_close, assert_near, column, correlated_rows, gram_of, random_gram, random_kept,
    };

    #[test]
    fn scores_equal_those_through_the_matrix_root() {
        for dim in SIZES {
            let (query, key) = (random_gram(dim, dim + 3, 1), random_gram(dim, dim + 3, 2));
            let scores = cr_scores(&query.diagonal(), &key.diagonal());
            let expected = reference::cr_scores(query.to_mat().as_ref(), key.to_mat().as_ref()).expect("converges");
            assert_close(column(&scores).as_ref(), column(&expected).as_ref(), 1e-12);
        }
    }

    #[test]
    fn error_is_the_direct_sum_over_all_pairs_of_positions() {
        for dim in SIZES {
            let (queries, keys) = (correlated_rows(dim, 20, 3), correlated_rows(dim, 30, 4));
            let (query_gram, key_gram) = (gram_of(queries.as_ref()), gram_of(keys.as_ref()));
            for k in [0, 1, dim / 2, dim] {
                let dropped = random_kept(dim, k, 5);
                let mut direct = 0.0;
                for (s, t) in (0..20).flat_map(|s| (0..30).map(move |t| (s, t))) {
                    let logit: f64 = dropped.iter().map(|&i| queries[(s, i)] * keys[(t, i)]).sum();
                    direct += logit * logit;
                }
                assert_near(cr_error(&query_gram, &key_gram, &dropped), direct, 1e-11);
            }
        }
    }

    #[test]
    fn one_dropped_coordinate_costs_its_score_squared() {
        let (query, key) = (random_gram(7, 9, 6), random_gram(7, 9, 7));
        for (i, score) in cr_scores(&query.diagonal(), &key.diagonal()).into_iter().enumerate() {
            assert_near(cr_error(&query, &key, &[i]), score * score, 1e-13);
        }
    }

    /// Turns pair `p` of row `t` by `t θ^(-2p/d)`.
    fn rotate(rows: &Mat<f64>) -> Mat<f64> {
        let half = rows.ncols() / 2;
        Mat::from_fn(rows.nrows(), rows.ncols(), |t, i| {
            let pair = i % half;
            let angle = t as f64 * 10000f64.powf(-(pair as f64) / half as f64);
            let (a, b) = (rows[(t, pair)], rows[(t, pair + half)]);
            if i < half { a * angle.cos() - b * angle.sin() } else { b * angle.cos() + a * angle.sin() }
        })
    }

    #[test]
    fn pair_scores_are_the_same_before_and_after_rotation() {
        for dim in [2, 8, 34, 64] {
            let (queries, keys) = (correlated_rows(dim, 50, 8), correlated_rows(dim, 50, 9));
            let scores = |queries: &Mat<f64>, keys: &Mat<f64>| {
                let (query, key) = (gram_of(queries.as_ref()), gram_of(keys.as_ref()));
                rotary_pair_scores(&query.diagonal(), &key.diagonal())
            };
            let before = scores(&queries, &keys);
            assert_eq!(before.len(), dim / 2);
            let rotated = rotate(&queries);
            assert!((&rotated - &queries).norm_max() > 0.1, "the rotation should turn something");
            assert_close(column(&scores(&rotated, &rotate(&keys))).as_ref(), column(&before).as_ref(), 1e-13);
        }
    }

    #[test]
    #[should_panic(expected = "pairs need an even width, found 3")]
    fn odd_width_has_no_pairs() {
        rotary_pair_scores(&[1.0; 3], &[1.0; 3]);
    }
}
