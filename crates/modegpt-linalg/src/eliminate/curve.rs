//! What is lost at every rank of a nested selection, from one factorisation.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, get_global_parallelism};

use super::remaining::Problem;
use crate::nystrom::{complement, rows_of};
use crate::psd::factorise_kept;
use crate::{Error, Jitter};

/// `errors[r]`: the least of `‖(H W - H_J W') M^½‖_F²` over `W'` when the first `r` units of `order` are gone.
///
/// ```text
/// L Lᵀ = C_ππ,      X = Lᵀ W_π,      errors[r] = Σ over the last r rows of x M xᵀ
/// ```
///
/// where `π` has the units that stay, then those of `order` from its end. For `H_π = Q Lᵀ` with orthonormal columns of
/// `Q`, the first `k` of which span what the first `k` units do, whatever is kept. A sum of squares: nothing cancels.
/// Units that never fire come first in `order`; they have no part in `π`.
pub(super) fn errors_along(problem: Problem<'_>, order: &[usize]) -> Result<(Vec<f64>, Jitter), Error> {
    let mut removed = order.to_vec();
    removed.sort_unstable();
    let last_to_first = complement(&removed, problem.gram.dim()).into_iter().chain(order.iter().rev().copied());
    let sequence: Vec<usize> = last_to_first.filter(|&unit| problem.energy[unit] > 0.0).collect();
    let cholesky = factorise_kept(problem.gram, &sequence, 0.0)?;
    let carried = carried(cholesky.lower().as_ref(), rows_of(problem.down, &sequence).as_ref());
    let mut lost = problem.energies(carried.as_ref()).into_iter().rev();

    let mut errors = vec![0.0];
    let mut error = 0.0;
    for &unit in order {
        if problem.energy[unit] > 0.0 {
            error += lost.next().expect("every unit that fires has a row");
        }
        errors.push(error);
    }
    Ok((errors, cholesky.jitter()))
}

/// `Lᵀ W`.
fn carried(lower: MatRef<'_, f64>, down: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(down.nrows(), down.ncols());
    triangular::matmul(
        product.as_mut(),
        BlockStructure::Rectangular,
        Accum::Replace,
        lower.transpose(),
        BlockStructure::TriangularUpper,
        down,
        BlockStructure::Rectangular,
        1.0,
        get_global_parallelism(),
    );
    product
}
