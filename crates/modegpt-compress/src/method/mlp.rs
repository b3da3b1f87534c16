//! Type I, the MLP: hidden units are selected and the down map refitted (Nyström approximation).
//!
//! ```text
//! s_i  = [C (C + λI)⁻¹]_ii             J = the k largest
//! W_U' = W_U[:, J],  W_G' = W_G[:, J],  W_D' = (C_JJ)⁺ C_J: W_D
//! ```
//!
//! with `C` the Gram matrix of the hidden activations. The activation function acts on each unit by itself, so selecting
//! columns before it is exact; given `J`, the down map is the least-squares solution. The bias of the up (and gate) map
//! is sliced. Algorithm 1 ([arXiv:2408.09632](https://arxiv.org/abs/2408.09632)).
//!
//! Better than all at once, units are eliminated one at a time by what their loss costs after the others are refitted
//! ([`eliminate_units`]); and where the down map has a bias, it is refitted too ([`nystrom_affine`]).

use faer::{Mat, MatRef};
use modegpt_architecture::{LayerWeights, Linear, Matrix};
use modegpt_linalg::{
    Elimination, EliminationOptions, Gram, Nystrom, centred_gram, eliminate_units, nystrom, nystrom_affine,
    reference::symmetric_root, ridge_leverage, select_by_leverage, top_k,
};

use crate::{
    Error, ErrorCurve, Layer, Methods, MlpMethod, Module, ModuleReport, Ridges,
    matrices::{select_outputs, widen},
    method::slice::Score,
};

const PLACE: Module = Module::Mlp;

/// The compressed maps of the MLP.
pub(crate) struct Mlp {
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    /// The units that are left.
    pub(crate) kept: Vec<usize>,
    pub(crate) report: ModuleReport,
}

/// Reduces the MLP to `d_ff` hidden units.
///
/// - `d_ff`: from 1 to the present number of units; if it is that number, nothing changes
/// - `order`: the units in the order of their elimination, if it is known already
pub(crate) fn compress(
    layer: &Layer<'_>,
    d_ff: usize,
    methods: Methods,
    ridges: Ridges,
    order: Option<&[usize]>,
) -> Result<Mlp, Error> {
    let place = PLACE.of(layer);
    let LayerWeights { gate, up, down, .. } = layer.weights;
    let gram = &layer.statistics.mlp;
    if d_ff == gram.dim() {
        let (gate, up, down, kept) = (gate.clone(), up.clone(), down.clone(), (0..d_ff).collect());
        return Ok(Mlp { gate, up, down, kept, report: ModuleReport::unchanged() });
    }
    if let Some(score) = methods.mlp.score() {
        let kept = top_k(&score.of_units(layer)?, d_ff);
        return Ok(sliced(layer, kept));
    }
    let (kept, attempts) = match (methods.mlp, order) {
        (MlpMethod::Leverage, _) => {
            let leverage = ridge_leverage(gram, ridges.leverage).map_err(|error| place.numerics(error))?;
            (select_by_leverage(&leverage, gram, d_ff), leverage.jitter.attempts)
        }
        (MlpMethod::Elimination, Some(order)) => (outlive(gram.dim(), order, d_ff), 0),
        _ => {
            let elimination = eliminate(layer, d_ff, methods, ridges)?;
            (elimination.kept(d_ff), elimination.jitter.attempts)
        }
    };
    let down_weight = widen(&down.weight);
    let (refitted, bias) = refit(layer, &kept, down_weight.as_ref(), methods, ridges)?;
    Ok(Mlp {
        gate: gate.as_ref().map(|gate| select_outputs(gate, &kept)),
        up: select_outputs(up, &kept),
        down: Linear { weight: place.round("down", refitted.down.as_ref())?, bias },
        report: ModuleReport::new(refitted.error, energy(gram, down_weight.as_ref()))
            .with_condition(refitted.condition)
            .with_fallbacks(attempts + refitted.jitter.attempts),
        kept,
    })
}

/// What the MLP would lose at each of `widths`, and the order in which its units go.
pub(crate) fn curve(
    layer: &Layer<'_>,
    widths: &[usize],
    methods: Methods,
    ridges: Ridges,
) -> Result<(ErrorCurve, Option<Vec<usize>>), Error> {
    let (errors, order) = match methods.mlp {
        MlpMethod::Elimination => {
            let elimination = eliminate(layer, widths[0], methods, ridges)?;
            (widths.iter().map(|&width| elimination.error(width)).collect(), Some(elimination.order))
        }
        MlpMethod::Leverage => (leverage_errors(layer, widths, methods, ridges)?, None),
        MlpMethod::Magnitude => (errors_of_slices(layer, widths, Score::Magnitude)?, None),
        MlpMethod::Wanda => (errors_of_slices(layer, widths, Score::Wanda)?, None),
    };
    let errors: Vec<f64> = errors;
    let n_tokens = layer.statistics.n_tokens;
    let errors = errors.into_iter().map(|error| layer.per_token(error, n_tokens)).collect();
    Ok((ErrorCurve { widths: widths.to_vec(), errors }, order))
}

/// Errors of the refit after one-shot selections.
fn leverage_errors(layer: &Layer<'_>, widths: &[usize], methods: Methods, ridges: Ridges) -> Result<Vec<f64>, Error> {
    let place = PLACE.of(layer);
    let gram = &layer.statistics.mlp;
    let leverage = ridge_leverage(gram, ridges.leverage).map_err(|error| place.numerics(error))?;
    let down = down_in_metric(layer)?;
    let error = |&width: &usize| {
        if width == gram.dim() {
            return Ok(0.0);
        }
        let kept = select_by_leverage(&leverage, gram, width);
        Ok(refit(layer, &kept, down.as_ref(), methods, ridges)?.0.error)
    };
    widths.iter().map(error).collect()
}

/// The down map, of which errors in the metric of the layer are plain ones: times a root of that metric.
fn down_in_metric(layer: &Layer<'_>) -> Result<Mat<f64>, Error> {
    let down = widen(&layer.weights.down.weight);
    let Some(metric) = layer.mlp_metric() else { return Ok(down) };
    Ok(down * symmetric_root(metric.to_mat().as_ref()).map_err(|error| PLACE.of(layer).numerics(error))?)
}

/// The MLP with the units `kept`, as they are.
fn sliced(layer: &Layer<'_>, kept: Vec<usize>) -> Mlp {
    let LayerWeights { gate, up, down, .. } = layer.weights;
    let gram = &layer.statistics.mlp;
    let weight = widen(&down.weight);
    let error = energy(gram, without_rows(weight.as_ref(), &kept).as_ref());
    let rows: Vec<f32> = kept.iter().flat_map(|&unit| down.weight.row(unit)).copied().collect();
    Mlp {
        gate: gate.as_ref().map(|gate| select_outputs(gate, &kept)),
        up: select_outputs(up, &kept),
        down: Linear { weight: Matrix::new(kept.len(), down.weight.cols, rows), bias: down.bias.clone() },
        report: ModuleReport::new(error, energy(gram, weight.as_ref())),
        kept,
    }
}

/// Errors at each of `widths` if units are kept by score and nothing is refitted.
fn errors_of_slices(layer: &Layer<'_>, widths: &[usize], score: Score) -> Result<Vec<f64>, Error> {
    let (scores, down) = (score.of_units(layer)?, down_in_metric(layer)?);
    let lost = |&width: &usize| without_rows(down.as_ref(), &top_k(&scores, width));
    Ok(widths.iter().map(|width| energy(&layer.statistics.mlp, lost(width).as_ref())).collect())
}

/// The matrix with zeros in these rows.
fn without_rows(matrix: MatRef<'_, f64>, rows: &[usize]) -> Mat<f64> {
    let mut rest = matrix.to_owned();
    for &row in rows {
        rest.row_mut(row).fill(0.0);
    }
    rest
}

/// Which units go, and what that costs.
///
/// Among few tokens units are alike that are not, and every unit seems to be made up of others: with fewer tokens than units
/// nothing would be lost by any of those that are too many. So products of different units then count less, the less the
/// fewer tokens there are: `1 / (1 + max(0, d_ff/n - 1/16))` times.
fn eliminate(layer: &Layer<'_>, keep_at_least: usize, methods: Methods, ridges: Ridges) -> Result<Elimination, Error> {
    let place = PLACE.of(layer);
    let statistics = layer.statistics;
    let centred = refits_bias(layer, methods)
        .then(|| centred_gram(&statistics.mlp, &statistics.mlp_sum, statistics.n_tokens))
        .transpose()
        .map_err(|error| place.numerics(error))?;
    let trusted = (1.0 + Ridges::shortage(statistics.mlp.dim(), statistics.n_tokens)).recip();
    let own = if trusted < 1.0 {
        Some(centred.unwrap_or_else(|| statistics.mlp.clone()).with_off_diagonal(trusted))
    } else {
        centred
    };
    let gram = own.as_ref().unwrap_or(&statistics.mlp);
    let options = EliminationOptions { relative_ridge: ridges.elimination, keep_at_least, ..Default::default() };
    let down = widen(&layer.weights.down.weight);
    eliminate_units(gram, down.as_ref(), layer.mlp_metric(), &options).map_err(|error| place.numerics(error))
}

/// The down map of the kept units, and its bias.
fn refit(
    layer: &Layer<'_>,
    kept: &[usize],
    down: MatRef<'_, f64>,
    methods: Methods,
    ridges: Ridges,
) -> Result<(Nystrom, Option<Vec<f32>>), Error> {
    let place = PLACE.of(layer);
    let statistics = layer.statistics;
    let (gram, bias) = (&statistics.mlp, &layer.weights.down.bias);
    let ridge = ridges.refit_of(kept.len(), statistics.n_tokens);
    let Some(old) = bias.as_ref().filter(|_| refits_bias(layer, methods)) else {
        let refitted = nystrom(gram, kept, down, ridge).map_err(|error| place.numerics(error))?;
        return Ok((refitted, bias.clone()));
    };
    let (refitted, shift) = nystrom_affine(gram, &statistics.mlp_sum, statistics.n_tokens, kept, down, ridge)
        .map_err(|error| place.numerics(error))?;
    let bias: Vec<f32> = old.iter().zip(&shift).map(|(&old, shift)| (f64::from(old) + shift) as f32).collect();
    place.check_finite("down.bias", &bias)?;
    Ok((refitted, Some(bias)))
}

fn refits_bias(layer: &Layer<'_>, methods: Methods) -> bool {
    methods.mlp_bias && layer.weights.down.bias.is_some()
}

/// The `k` of `n` units that are not among the first of `order`.
fn outlive(n: usize, order: &[usize], k: usize) -> Vec<usize> {
    let gone = &order[..n - k];
    let mut is_kept = vec![true; n];
    for &unit in gone {
        is_kept[unit] = false;
    }
    (0..n).filter(|&unit| is_kept[unit]).collect()
}

/// `‖H W‖²_F = tr(Wᵀ C W)`: what the down map puts out over all tokens.
///
/// With `D` the lower triangle of `C`, its diagonal halved, this is `2 Σ W ∘ (D W)`: half the work of the plain product,
/// done in slabs of rows so that `C` is never unpacked as a whole.
pub(crate) fn energy(gram: &Gram, weight: MatRef<'_, f64>) -> f64 {
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
    use crate::testing::{Random, TinyModel, assert_close, gram_of, layer, statistics};

    /// What the paper's method makes of a layer whose hidden units are `hidden` on the calibration tokens.
    fn compressed(model: &TinyModel, weights: &LayerWeights, hidden: MatRef<'_, f64>, d_ff: usize) -> Mlp {
        let config = model.config();
        let mut seen = statistics(&config, weights, Random::new(9).mat(4, model.d_model).as_ref());
        (seen.mlp, seen.n_tokens) = (gram_of(hidden), hidden.nrows() as u64);
        compress(&layer(5, &config, weights, &seen), d_ff, Methods::PAPER, Ridges::default(), None).expect("finite")
    }

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
        let mlp = compressed(&model, &weights, hidden.as_ref(), 17);

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
        let mlp = compressed(&model, &model.weights(4), hidden.as_ref(), 16);
        assert!(mlp.report.relative_error < 1e-6, "{}", mlp.report.relative_error);
    }

    #[test]
    fn silent_units_leave_finite_weights() {
        let model = TinyModel::default();
        let mut hidden = Random::new(5).mat(300, model.d_ff);
        for unit in 4..model.d_ff {
            hidden.col_mut(unit).fill(0.0);
        }
        let mlp = compressed(&model, &model.weights(6), hidden.as_ref(), 10);
        assert!(mlp.report.relative_error < 1e-6, "{}", mlp.report.relative_error);
    }
}
