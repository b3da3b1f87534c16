//! Type I, the MLP: hidden units are selected and the down map refitted (Nyström approximation).
//!
//! ```text
//! s_i  = [C (C + λI)⁻¹]_ii             J = the k largest
//! W_U' = W_U[:, J],  W_G' = W_G[:, J],  W_D' = (C_JJ)⁺ C_J: W_D
//! ```
//!
//! with `C` the Gram matrix of the hidden activations. The activation function acts on each unit by itself, so selecting
//! columns before it is exact; given `J`, the down map is the least-squares solution. The bias of the up (and gate) map
//! is sliced, that of the down map stays. Algorithm 1 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).

use faer::{Mat, MatRef};
use modegpt_architecture::{LayerWeights, Linear};
use modegpt_linalg::{Gram, nystrom, ridge_leverage, select_by_leverage};

use crate::{
    Error, ModuleReport, Ridges,
    matrices::{Place, select_outputs, widen},
};

/// The compressed maps of the MLP.
pub(crate) struct Mlp {
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) report: ModuleReport,
}

/// Reduces the MLP to `d_ff` hidden units.
///
/// - `gram`: of the input of the down map
/// - `d_ff`: from 1 to the present number of units; if it is that number, nothing changes
pub(crate) fn compress(
    place: Place,
    weights: &LayerWeights,
    gram: &Gram,
    d_ff: usize,
    ridges: Ridges,
) -> Result<Mlp, Error> {
    let LayerWeights { gate, up, down, .. } = weights;
    if d_ff == gram.dim() {
        return Ok(Mlp { gate: gate.clone(), up: up.clone(), down: down.clone(), report: ModuleReport::unchanged() });
    }
    let numerics = |error| place.numerics(error);
    let leverage = ridge_leverage(gram, ridges.leverage).map_err(numerics)?;
    let kept = select_by_leverage(&leverage, gram, d_ff);
    let down_weight = widen(&down.weight);
    let refitted = nystrom(gram, &kept, down_weight.as_ref(), ridges.refit).map_err(numerics)?;
    Ok(Mlp {
        gate: gate.as_ref().map(|gate| select_outputs(gate, &kept)),
        up: select_outputs(up, &kept),
        down: Linear { weight: place.round("down", refitted.down.as_ref())?, bias: down.bias.clone() },
        report: ModuleReport::new(refitted.error, energy(gram, down_weight.as_ref()))
            .with_condition(refitted.condition)
            .with_fallbacks(leverage.jitter.attempts + refitted.jitter.attempts),
    })
}

/// `‖H W‖²_F = tr(Wᵀ C W)`: what the down map puts out over all tokens.
///
/// With `D` the lower triangle of `C`, its diagonal halved, this is `2 Σ W ∘ (D W)`: half the work of the plain product,
/// done in slabs of rows so that `C` is never unpacked as a whole.
fn energy(gram: &Gram, weight: MatRef<'_, f64>) -> f64 {
    const SLAB: usize = 256;
    let mut energy = 0.0;
    for start in (0..gram.dim()).step_by(SLAB) {
        let end = (start + SLAB).min(gram.dim());
        let slab = Mat::from_fn(end - start, end, |row, col| match col.cmp(&(start + row)) {
            std::cmp::Ordering::Less => gram.get(start + row, col),
            std::cmp::Ordering::Equal => 0.5 * gram.get(col, col),
            std::cmp::Ordering::Greater => 0.0,
        });
        let product = slab.as_ref() * weight.subrows(0, end);
        let ours = weight.subrows(start, end - start);
        for col in 0..weight.ncols() {
            energy += 2.0 * (0..end - start).map(|row| ours[(row, col)] * product[(row, col)]).sum::<f64>();
        }
    }
    energy
}

#[cfg(test)]
mod tests {
    use faer::linalg::solvers::SolveLstsq;

    use super::*;
    use crate::{
        Module,
        testing::{Random, TinyModel, assert_close, gram_of},
    };

    const PLACE: Place = Place { layer: 5, module: Module::Mlp };

    #[test]
    fn energy_is_that_of_the_output() {
        for d_ff in [1, 7, 255, 256, 257, 600] {
            let mut random = Random::new(d_ff as u64);
            let (hidden, weight) = (random.mat(20, d_ff), random.mat(d_ff, 3));
            let direct = (&hidden * &weight).squared_norm_l2();
            let found = energy(&gram_of(hidden.as_ref()), weight.as_ref());
            assert!((found - direct).abs() < 1e-10 * direct, "{d_ff}: {found} instead of {direct}");
        }
    }

    /// The refitted down map solves `min ‖H W_D - H_J W‖` for the units that were kept.
    #[test]
    fn down_is_the_least_squares_solution() {
        let model = TinyModel { biases: true, ..TinyModel::default() };
        let weights = model.weights(1);
        let hidden = Random::new(2).mat(400, model.d_ff);
        let mlp =
            compress(PLACE, &weights, &gram_of(hidden.as_ref()), 17, Ridges::default()).expect("well conditioned");

        let kept: Vec<usize> = (0..17)
            .map(|unit| {
                let is_unit = |&old: &usize| {
                    mlp.up.weight.column_range(unit, unit + 1) == weights.up.weight.column_range(old, old + 1)
                };
                (0..model.d_ff).find(is_unit).expect("every kept column is one of the old ones")
            })
            .collect();
        assert!(kept.is_sorted_by(|a, b| a < b));
        assert_eq!(mlp.gate, weights.gate.as_ref().map(|gate| select_outputs(gate, &kept)));
        assert_eq!(mlp.up, select_outputs(&weights.up, &kept));
        assert_eq!(mlp.down.bias, weights.down.bias);

        let wanted = &hidden * widen(&weights.down.weight);
        let hidden_kept = Mat::from_fn(400, 17, |row, col| hidden[(row, kept[col])]);
        let direct = hidden_kept.qr().solve_lstsq(&wanted);
        assert_close(widen(&mlp.down.weight).as_ref(), direct.as_ref(), 1e-6);
        let direct_error = (&wanted - hidden_kept * &direct).squared_norm_l2() / wanted.squared_norm_l2();
        assert!(
            (mlp.report.relative_error - direct_error).abs() < 1e-6,
            "{} {direct_error}",
            mlp.report.relative_error
        );
    }

    #[test]
    fn redundant_units_go_without_loss() {
        let model = TinyModel::default();
        let mut random = Random::new(3);
        let few = random.mat(300, 12);
        let hidden = &few * random.mat(12, model.d_ff);
        let mlp =
            compress(PLACE, &model.weights(4), &gram_of(hidden.as_ref()), 16, Ridges::default()).expect("ridge helps");
        assert!(mlp.report.relative_error < 1e-6, "{}", mlp.report.relative_error);
    }

    #[test]
    fn silent_units_leave_finite_weights() {
        let model = TinyModel::default();
        let mut hidden = Random::new(5).mat(300, model.d_ff);
        for unit in 4..model.d_ff {
            hidden.col_mut(unit).fill(0.0);
        }
        let mlp = compress(PLACE, &model.weights(6), &gram_of(hidden.as_ref()), 10, Ridges::default()).expect("finite");
        assert!(mlp.report.relative_error < 1e-6, "{}", mlp.report.relative_error);
    }
}
