//! Greedy elimination of hidden units by what their removal really costs (MLP).

mod curve;
mod panel;
mod remaining;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use faer::{Mat, MatRef};

use crate::check::{check_finite, check_rank, check_shape};
use crate::{Error, Gram, Jitter};
use curve::errors_along;
use remaining::{Problem, Remaining};

/// How [`eliminate_units`] proceeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EliminationOptions {
    /// `λ` relative to the mean diagonal of `C`, as in [`ridge_leverage`](crate::ridge_leverage); 1e-4 by default.
    pub relative_ridge: f64,
    /// Units at which the elimination ends; 0 by default. Fewer removals cost less time.
    pub keep_at_least: usize,
    /// Removals between two updates of the large matrices, at least 1; 32 by default. It changes the time taken and,
    /// rounding aside, nothing else.
    pub block: usize,
}

impl Default for EliminationOptions {
    fn default() -> Self {
        Self { relative_ridge: 1e-4, keep_at_least: 0, block: 32 }
    }
}

/// In which order units go, and what is lost on the way: one elimination serves every rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Elimination {
    /// The units removed, in order of removal.
    pub order: Vec<usize>,
    /// `errors[r]` is what is lost when the first `r` units of `order` are gone and the down projection is refitted to
    /// those left, absolute and never falling; `errors[0]` is 0. One more value than `order` has.
    pub errors: Vec<f64>,
    /// What had to be added on top of the ridge asked for, to choose the order.
    pub jitter: Jitter,
    /// What had to be added to `C`, without any ridge, to compute `errors`.
    pub error_jitter: Jitter,
    /// Estimated condition number of `C + λI` over the units that ever fire.
    pub condition: f64,
    n_units: usize,
}

impl Elimination {
    /// The `k` units that outlive the others, ascending.
    ///
    /// `k` lies between [`smallest`](Self::smallest) and the number of units there were.
    pub fn kept(&self, k: usize) -> Vec<usize> {
        let mut is_kept = vec![true; self.n_units];
        for &unit in &self.order[..self.removals(k)] {
            is_kept[unit] = false;
        }
        (0..self.n_units).filter(|&unit| is_kept[unit]).collect()
    }

    /// What is lost when `k` units are kept, in the range of [`kept`](Self::kept).
    pub fn error(&self, k: usize) -> f64 {
        self.errors[self.removals(k)]
    }

    /// The smallest number of units that the elimination reached.
    pub fn smallest(&self) -> usize {
        self.n_units - self.order.len()
    }

    fn removals(&self, k: usize) -> usize {
        let range = self.smallest()..=self.n_units;
        assert!(range.contains(&k), "{k} units cannot be kept by an elimination that covers {range:?}");
        self.n_units - k
    }
}

/// Removes hidden units one at a time, always the one whose loss the refitted others can best make good.
///
/// ```text
/// Δ_i = w_i M w_iᵀ / P_ii,      P = (C_JJ + λI)⁻¹
///
/// P ← P - P_:r P_r: / P_rr,     W ← W - P_:r w_r / P_rr        after the removal of unit r
/// ```
///
/// where `J` are the units left, `w_i` row `i` of the down projection *as refitted to them*, and `M` weighs the errors of
/// the outputs. `Δ_i` is by how much exactly the least of `‖(H W - H_J W') M^½‖² + λ ‖(W - S_J W') M^½‖²` over all `W'`
/// rises without unit `i`. So the ridge makes large changes of the weights dear. It plays a part in the order only: the
/// errors handed out are those of the best refit without a ridge,
///
/// ```text
/// errors[r] = min over W' of ‖(H W - H_J W') M^½‖_F²
/// ```
///
/// over the tokens of the Gram, which the refit of [`nystrom`](crate::nystrom) attains but for its own ridge; if `C` is
/// singular to working precision, the smallest jitter that helps is added, and told in `error_jitter`.
///
/// Units that never fire go first and cost nothing. Ties go by lower energy `C_ii`, then by higher index.
///
/// With `P` and `B = W M Wᵀ` at hand a removal within a block needs one column of each, brought up to date from the
/// removals of the block; both matrices are updated once a block, by matrix products. An elimination of all of `n` units
/// takes `1.2 n³ + n² d_model` multiplications, and three `n x n` matrices of memory beside the Gram.
///
/// The cost is the optimal brain surgeon's, of a whole row: B. Hassibi and D. Stork, *Second order derivatives for
/// network pruning* (NIPS 1992). Without the factor `w_i M w_iᵀ` and the updates it is the ridge leverage of `MoDeGPT`.
///
/// # Shapes
/// - `gram`: `[d_ff, d_ff]`
/// - `down`: `[d_ff, d_model]`
/// - `metric`: `M`, `[d_model, d_model]`; the identity if there is none
///
/// # Errors
/// [`Error::Shape`], [`Error::NotFinite`] (also for a cost that overflows), [`Error::Ridge`], [`Error::Rank`] if more
/// units should be kept than there are, and [`Error::NotPositiveDefinite`] if no jitter makes `gram` so.
///
/// # Examples
/// ```
/// use faer::mat;
/// use modegpt_linalg::{EliminationOptions, Gram, eliminate_units};
///
/// let gram = Gram::from_packed_lower(2, vec![1.0, 1.0, 2.0])?; // unit 1 is unit 0 plus noise of energy 1
/// let options = EliminationOptions { relative_ridge: 0.0, ..Default::default() };
/// let elimination = eliminate_units(&gram, mat![[3.0], [1.0]].as_ref(), None, &options)?;
/// assert_eq!(elimination.order, [1, 0]); // unit 0 takes over the shared part: 4 h_0, and the noise is lost;
/// assert!((elimination.error(1) - 1.0).abs() < 1e-9); // without unit 0 half of its output would be: 9 / 2
/// assert!((elimination.error(0) - 17.0).abs() < 1e-9); // 9 + 2 · 3 + 2, all there was
/// # Ok::<(), modegpt_linalg::Error>(())
/// ```
pub fn eliminate_units(
    gram: &Gram,
    down: MatRef<'_, f64>,
    metric: Option<&Gram>,
    options: &EliminationOptions,
) -> Result<Elimination, Error> {
    check(gram, down, metric, options)?;
    let energy = gram.diagonal();
    let alive: Vec<usize> = (0..gram.dim()).filter(|&unit| energy[unit] > 0.0).collect();
    let n_removals = gram.dim() - options.keep_at_least;
    let mut order = dead_units(gram, &energy)?;
    order.truncate(n_removals);

    let metric = metric.map(Gram::to_mat);
    let problem = Problem { gram, energy: &energy, down, metric: metric.as_ref().map(Mat::as_ref) };
    let mut remaining = Remaining::all(problem, alive, options.relative_ridge * gram.mean_diagonal())?;
    let condition = remaining.condition();
    while order.len() < n_removals {
        order.extend(remaining.remove_block(options.block.clamp(1, n_removals - order.len()))?);
    }
    let jitter = remaining.jitter();
    drop(remaining); // two matrices the size of the Gram, which the curve needs room for
    let (errors, error_jitter) = errors_along(problem, &order)?;
    Ok(Elimination { order, errors, jitter, error_jitter, condition, n_units: gram.dim() })
}

fn check(gram: &Gram, down: MatRef<'_, f64>, metric: Option<&Gram>, options: &EliminationOptions) -> Result<(), Error> {
    check_shape("down", down, (gram.dim(), down.ncols()))?;
    check_finite("down", down)?;
    gram.check_finite("gram")?;
    if let Some(metric) = metric {
        let (expected, found) = ((down.ncols(), down.ncols()), (metric.dim(), metric.dim()));
        if expected != found {
            return Err(Error::Shape { matrix: "metric", expected, found });
        }
        metric.check_finite("metric")?;
    }
    if !(options.relative_ridge.is_finite() && options.relative_ridge >= 0.0) {
        return Err(Error::Ridge { value: options.relative_ridge });
    }
    check_rank(options.keep_at_least, gram.dim())
}

/// Units without energy, higher index first.
///
/// # Errors
/// [`Error::NotPositiveDefinite`] if such a unit has something in common with another, or less energy than none.
fn dead_units(gram: &Gram, energy: &[f64]) -> Result<Vec<usize>, Error> {
    let dim = gram.dim();
    let mut dead: Vec<usize> = (0..dim).filter(|&unit| energy[unit] <= 0.0).collect();
    dead.sort_unstable_by_key(|&unit| Reverse(unit));
    for &pivot in &dead {
        if (0..dim).any(|other| gram.get(pivot, other) != 0.0) {
            return Err(Error::NotPositiveDefinite { pivot, value: energy[pivot], dim });
        }
    }
    Ok(dead)
}
