//! Which rotary pairs to keep, and the complex gains with which the kept ones carry the logits of the dropped.

#[cfg(test)]
mod tests;

use faer::{Mat, MatRef};

use crate::check::{check_kept, check_shape};
use crate::psd::factorise;
use crate::{Cholesky, Error, Gram, Jitter};

/// Every selection of rotary pairs that a backward elimination passes through.
#[derive(Debug, Clone, PartialEq)]
pub struct PairElimination {
    /// All pairs, in the order of their removal: the first is missed least.
    pub order: Vec<usize>,
    /// `errors[k]`: squared error of the logits, summed over the heads, when the last `k` pairs of the order are kept and
    /// their gains refitted; `n_pairs + 1` values, the last of them 0.
    pub errors: Vec<f64>,
    /// `Σ_j ‖l_j‖²`, the squared logits of the whole heads: the error when no pair is kept.
    pub energy: f64,
    /// The largest that any of the fits needed on top of the ridge asked for.
    pub jitter: Jitter,
}

impl PairElimination {
    /// The `k` pairs that outlast the others, ascending; `k` is at most the number of pairs.
    pub fn kept(&self, k: usize) -> Vec<usize> {
        let mut kept = self.order[self.order.len() - k..].to_vec();
        kept.sort_unstable();
        kept
    }
}

/// Complex gains `a + ib` for the kept pairs of the queries of one head, in the order of `kept`.
///
/// A gain commutes with the rotation, so it goes into the weights and the bias of the query: of the coordinates
/// `(x_p, x_p+h)` of a kept pair, `x_p ← a x_p - b x_p+h` and `x_p+h ← b x_p + a x_p+h`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gains {
    /// `a`.
    pub real: Vec<f64>,
    /// `b`.
    pub imaginary: Vec<f64>,
    /// `‖l - l'‖²`, squared error of the logits of this head.
    pub error: f64,
    /// What had to be added on top of the ridge asked for.
    pub jitter: Jitter,
}

/// Removes rotary pairs one after the other, each time the one whose loss the gains of the others make good best.
///
/// ```text
/// l = Σ_p Re z_p = f c₀,      f = [Re z_0, …, -Im z_0, …],      c₀ = [1, …, 0, …]
/// l' = Σ_p∈J Re (a_p + i b_p) z_p = f_J c,                      c = [a_p, …, b_p, …] of p ∈ J
/// error = Σ_j min ‖f c₀ - f_J c_j‖²
/// ```
///
/// where `z_p` is the product of query and conjugate key in pair `p`, and `j` runs over the query heads that share the
/// keys: they share the selection and have gains of their own. Removing pair `r` from the kept ones raises the error by
/// exactly `c_rᵀ [B_JJ⁻¹]_rr⁻¹ c_r`, with `2 x 2` blocks of `B = F + δI`, so that one factorisation a head prices all
/// candidates. Factorisations are made anew for every removal: nothing drifts. Ties go to the higher pair, which turns
/// more slowly.
///
/// The fits are those of [`refit_gains`], and so are their errors, free of the ridge. A head of which nothing was seen
/// costs nothing and has no say.
///
/// # Shapes
/// - `grams`: for every query head `F_j = Σ fᵀ f` over its (weighted) pairs of positions, `[2 n_pairs, 2 n_pairs]`; at
///   least one
///
/// `relative_ridge` is `δ` relative to the mean diagonal of each `F_j`.
///
/// # Errors
/// [`Error::Shape`] if the heads differ in width, [`Error::NotFinite`], [`Error::Ridge`], and
/// [`Error::NotPositiveDefinite`] for what is no Gram matrix.
///
/// # Examples
/// ```
/// use modegpt_linalg::{Gram, eliminate_pairs};
///
/// // Two pairs of which all parts are uncorrelated: the real parts have energies 1 and 4.
/// let mut packed = vec![0.0; 10];
/// [packed[0], packed[2], packed[5], packed[9]] = [1.0, 4.0, 7.0, 7.0];
/// let elimination = eliminate_pairs(&[&Gram::from_packed_lower(4, packed)?], 0.0)?;
/// assert_eq!(elimination.order, [0, 1]);
/// assert_eq!(elimination.errors, [5.0, 1.0, 0.0]);
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn eliminate_pairs(grams: &[&Gram], relative_ridge: f64) -> Result<PairElimination, Error> {
    assert!(!grams.is_empty(), "a key head should have at least one query head");
    let heads = grams.iter().map(|gram| Head::new(gram, relative_ridge)).collect::<Result<Vec<_>, _>>()?;
    let n_pairs = heads[0].n_pairs;
    for head in &heads {
        check_shape("grams", head.gram.as_ref(), (2 * n_pairs, 2 * n_pairs))?;
    }
    let mut kept: Vec<usize> = (0..n_pairs).collect();
    let (mut order, mut errors, mut jitter) = (vec![], vec![0.0; n_pairs + 1], Jitter::default());
    loop {
        let mut costs = vec![0.0; kept.len()];
        for head in &heads {
            let fit = head.fit(&kept)?;
            errors[kept.len()] += fit.error;
            for (cost, more) in costs.iter_mut().zip(fit.removal_costs()) {
                *cost += more;
            }
            jitter = if fit.jitter().relative > jitter.relative { fit.jitter() } else { jitter };
        }
        // `min_by` takes the first of equals, which is the highest pair in this direction.
        let Some((cheapest, _)) = costs.iter().enumerate().rev().min_by(|a, b| a.1.total_cmp(b.1)) else { break };
        order.push(kept.remove(cheapest));
    }
    Ok(PairElimination { order, energy: errors[0], errors, jitter })
}

/// The gains with which the kept pairs of one head come closest to its logits.
///
/// ```text
/// c = c₀,J + (F_JJ + δI)⁻¹ F_JD c₀,D      minimises ‖f c₀ - f_J c‖² + δ ‖c - c₀,J‖²
/// ```
///
/// in the symbols of [`eliminate_pairs`], with `D` the dropped pairs. The ridge pulls towards gains of 1: keeping every
/// pair changes nothing, and a pair of which nothing was seen keeps the gain 1. The error is that of the logits alone,
/// without the ridge's own term.
///
/// # Shapes
/// - `gram`: `F`, `[2 n_pairs, 2 n_pairs]`
/// - `kept`: ascending, distinct, below `n_pairs`
///
/// `relative_ridge` is `δ` relative to the mean diagonal of `F`.
///
/// # Errors
/// [`Error::Kept`], [`Error::NotFinite`], [`Error::Ridge`], and [`Error::NotPositiveDefinite`] for what is no Gram
/// matrix.
///
/// # Examples
/// ```
/// use modegpt_linalg::{Gram, refit_gains};
///
/// // Pair 1 is pair 0 turned by a quarter, z_1 = i z_0: Re z_1 = -Im z_0 and -Im z_1 = -Re z_0.
/// let packed = vec![1.0, 0.0, 1.0, 0.0, 1.0, 1.0, -1.0, 0.0, 0.0, 1.0];
/// let gains = refit_gains(&Gram::from_packed_lower(4, packed)?, &[0], 0.0)?;
/// assert_eq!((gains.real[0], gains.imaginary[0], gains.error), (1.0, 1.0, 0.0)); // z_0 + i z_0 = (1 + i) z_0
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn refit_gains(gram: &Gram, kept: &[usize], relative_ridge: f64) -> Result<Gains, Error> {
    let head = Head::new(gram, relative_ridge)?;
    check_kept(kept, head.n_pairs)?;
    let fit = head.fit(kept)?;
    let (real, imaginary) = fit.coefficients.split_at(kept.len());
    Ok(Gains { real: real.to_vec(), imaginary: imaginary.to_vec(), error: fit.error, jitter: fit.jitter() })
}

/// What is known of one query head.
struct Head {
    n_pairs: usize,
    gram: Mat<f64>,
    /// Absolute.
    ridge: f64,
}

/// The best gains of the kept pairs.
struct Fit {
    /// All real parts, then all imaginary ones.
    coefficients: Vec<f64>,
    error: f64,
    /// Of `B_JJ`; none if nothing was seen of the kept pairs, where nothing costs anything.
    cholesky: Option<Cholesky>,
}

impl Head {
    fn new(gram: &Gram, relative_ridge: f64) -> Result<Self, Error> {
        assert!(gram.dim().is_multiple_of(2), "pairs need an even width, found {}", gram.dim());
        if !(relative_ridge.is_finite() && relative_ridge >= 0.0) {
            return Err(Error::Ridge { value: relative_ridge });
        }
        gram.check_finite("gram")?;
        let ridge = relative_ridge * gram.mean_diagonal();
        Ok(Self { n_pairs: gram.dim() / 2, gram: gram.to_mat(), ridge })
    }

    fn fit(&self, kept: &[usize]) -> Result<Fit, Error> {
        let features: Vec<usize> = kept.iter().copied().chain(kept.iter().map(|pair| pair + self.n_pairs)).collect();
        let cholesky = self.factorise(&features)?;
        let lost = self.overlap_with_dropped(kept, &features);
        let correction = cholesky.as_ref().map_or_else(|| lost.clone(), |cholesky| cholesky.solve(lost.as_ref()));
        let mut residual = self.dense();
        let mut coefficients = Vec::with_capacity(features.len());
        for (&feature, &change) in features.iter().zip(correction.col(0).iter()) {
            coefficients.push(residual[(feature, 0)] + change);
            residual[(feature, 0)] = -change;
        }
        Ok(Fit { coefficients, error: self.energy(residual.as_ref()), cholesky })
    }

    /// Of `F_JJ + δI`; none if the rows of all these features are zero, as their overlaps then are.
    fn factorise(&self, features: &[usize]) -> Result<Option<Cholesky>, Error> {
        if features.iter().all(|&feature| self.gram.col(feature).norm_max() == 0.0) {
            return Ok(None);
        }
        let entry = |i: usize, j: usize| self.gram[(features[i], features[j])] + if i == j { self.ridge } else { 0.0 };
        factorise(Mat::from_fn(features.len(), features.len(), entry).as_ref(), 0.0).map(Some)
    }

    /// `c₀`, `[2 n_pairs, 1]`.
    fn dense(&self) -> Mat<f64> {
        Mat::from_fn(2 * self.n_pairs, 1, |feature, _| f64::from(feature < self.n_pairs))
    }

    /// `F_JD c₀,D`, `[2 k, 1]`.
    fn overlap_with_dropped(&self, kept: &[usize], features: &[usize]) -> Mat<f64> {
        let dropped: Vec<usize> = (0..self.n_pairs).filter(|pair| kept.binary_search(pair).is_err()).collect();
        let overlap = |feature: usize| dropped.iter().map(|&pair| self.gram[(feature, pair)]).sum();
        Mat::from_fn(features.len(), 1, |i, _| overlap(features[i]))
    }

    /// `vᵀ F v`.
    fn energy(&self, coefficients: MatRef<'_, f64>) -> f64 {
        (coefficients.transpose() * &self.gram * coefficients)[(0, 0)].max(0.0) // below zero only by rounding
    }
}

impl Fit {
    fn jitter(&self) -> Jitter {
        self.cholesky.as_ref().map_or_else(Jitter::default, Cholesky::jitter)
    }

    /// `c_rᵀ [B_JJ⁻¹]_rr⁻¹ c_r` of every kept pair.
    fn removal_costs(&self) -> Vec<f64> {
        let n_features = self.coefficients.len();
        let n_kept = n_features / 2;
        let Some(cholesky) = &self.cholesky else { return vec![0.0; n_kept] };
        let inverse = cholesky.solve(Mat::identity(n_features, n_features).as_ref());
        let cost = |p: usize| {
            let (real, imaginary) = (self.coefficients[p], self.coefficients[p + n_kept]);
            let (a, b, c) = (inverse[(p, p)], inverse[(p + n_kept, p)], inverse[(p + n_kept, p + n_kept)]);
            // By elimination, so that both terms are squares; a pivot lost in rounding counts as what rounding is.
            let pivot = (c - b * (b / a)).max(f64::EPSILON * c);
            real * (real / a) + (imaginary - real * (b / a)).powi(2) / pivot
        };
        (0..n_kept).map(cost).collect()
    }
}
