//! Which indices to keep, with ties broken the same way everywhere.

use std::cmp::Ordering;

use crate::{Gram, RidgeLeverage};

/// The `k` indices that are hardest to replace, ascending.
///
/// ```text
/// J = the k smallest h_i = [(C + λI)⁻¹]_ii        the same as the k largest s_i = 1 - λ h_i
/// ```
///
/// Ranking by `h` never subtracts nearly equal numbers. Ties go to the larger energy `C_ii`, then to the lower index.
/// `leverage` is that of `gram`, and `k` at most its dimension.
///
/// # Examples
/// ```
/// use modegpt_linalg::{Gram, ridge_leverage, select_by_leverage};
///
/// let gram = Gram::from_packed_lower(3, vec![2.0, 0.0, 9.0, 0.0, 0.0, 5.0])?; // diag(2, 9, 5)
/// assert_eq!(select_by_leverage(&ridge_leverage(&gram, 1e-4)?, &gram, 2), [1, 2]);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn select_by_leverage(leverage: &RidgeLeverage, gram: &Gram, k: usize) -> Vec<usize> {
    let inverse = &leverage.inverse_diagonal;
    let energy = gram.diagonal();
    assert_eq!(inverse.len(), energy.len(), "`leverage` should be that of `gram`");
    first_k(inverse.len(), k, |a, b| inverse[a].total_cmp(&inverse[b]).then(energy[b].total_cmp(&energy[a])))
}

/// The indices of the `k` largest scores, ascending; ties go to the lower index.
///
/// `k` is at most the number of scores. Scores are finite: the Grams they come from were checked.
///
/// # Examples
/// ```
/// assert_eq!(modegpt_linalg::top_k(&[3.0, 1.0, 2.0, 3.0], 2), [0, 3]);
/// assert_eq!(modegpt_linalg::top_k(&[1.0, 2.0, 2.0], 2), [1, 2]);
/// ```
pub fn top_k(scores: &[f64], k: usize) -> Vec<usize> {
    first_k(scores.len(), k, |a, b| scores[b].total_cmp(&scores[a]))
}

/// The first `k` of `0..n` in this order, ascending. The sort is stable, so ties keep the lower index.
fn first_k(n: usize, k: usize, order: impl Fn(usize, usize) -> Ordering) -> Vec<usize> {
    assert!(k <= n, "{k} of {n} indices cannot be kept");
    let mut indices: Vec<usize> = (0..n).collect();
    indices.sort_by(|&a, &b| order(a, b));
    indices.truncate(k);
    indices.sort_unstable();
    indices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, SIZES};
    use crate::{Jitter, ridge_leverage};

    #[test]
    fn no_dropped_score_exceeds_a_kept_one() {
        for dim in SIZES {
            let mut random = Random::new(dim as u64);
            let scores: Vec<f64> = (0..dim).map(|_| (random.uniform() * 8.0).floor()).collect();
            for k in 0..=dim {
                let kept = top_k(&scores, k);
                assert!(kept.len() == k && kept.is_sorted_by(|a, b| a < b));
                let smallest = kept.iter().map(|&i| scores[i]).fold(f64::INFINITY, f64::min);
                let dropped = (0..dim).filter(|i| !kept.contains(i)).map(|i| scores[i]);
                assert!(dropped.fold(f64::NEG_INFINITY, f64::max) <= smallest);
            }
        }
    }

    #[test]
    fn leverage_ties_go_to_energy_then_index() {
        let gram = Gram::from_packed_lower(4, vec![1.0, 0.0, 3.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 3.0]).expect("10");
        let tied = RidgeLeverage {
            scores: vec![0.5; 4],
            inverse_diagonal: vec![0.1; 4],
            jitter: Jitter::default(),
            condition: 3.0,
        };
        let kept: Vec<_> = (1..=4).map(|k| select_by_leverage(&tied, &gram, k)).collect();
        assert_eq!(kept, [vec![1], vec![1, 3], vec![0, 1, 3], vec![0, 1, 2, 3]]);
    }

    #[test]
    fn dead_units_go_first() {
        let gram = Gram::from_packed_lower(3, vec![1e-3, 0.0, 0.0, 0.0, 0.0, 9.0]).expect("6");
        let leverage = ridge_leverage(&gram, 1e-4).expect("a ridge");
        assert_eq!(select_by_leverage(&leverage, &gram, 2), [0, 2]);
    }

    #[test]
    #[should_panic(expected = "4 of 3 indices cannot be kept")]
    fn more_than_there_are_panics() {
        top_k(&[1.0, 2.0, 3.0], 4);
    }
}
