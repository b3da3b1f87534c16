//! The last map of a module once more, on the stream of the compressed layers before it.

use faer::Mat;
use modegpt_architecture::{LayerWeights, Linear};
use modegpt_linalg::{Gram, LEAST_VARIANCE, regress_towards};
use modegpt_statistics::PrefixStatistics;

use crate::{
    Error, Module,
    matrices::{Place, widen},
};

/// Refits the output map of the attention of layer `index` as [`refit_down`] does the down map.
///
/// # Errors
/// Those of [`refit_down`].
pub fn refit_output(
    index: usize,
    weights: &LayerWeights,
    seen: &PrefixStatistics,
    ridge: f64,
) -> Result<(LayerWeights, u32), Error> {
    let place = Place { layer: index, module: Module::ValueOutput };
    let (output, attempts) = refit_last(place, "output", &weights.output, seen, ridge)?;
    Ok((LayerWeights { output, ..weights.clone() }, attempts))
}

/// Refits the down map of layer `index`, and its bias if it has one, so that the stream comes as near to the one that is
/// wanted as the hidden units can bring it. Nothing else of the layer changes.
///
/// `ridge`, relative to the mean diagonal, holds on to the map that is there. It falls with the number of tokens
/// ([`Ridges::prefix`](crate::Ridges::prefix)): without it what the refit learns of the samples is lost again on other text.
///
/// # Errors
/// [`Error::Mismatch`] if the sums are not those of such a layer, [`Error::NotFinite`], and [`Error::Numerics`] if no
/// jitter makes the Gram matrix regular. Also tells how often a factorisation was repeated.
pub fn refit_down(
    index: usize,
    weights: &LayerWeights,
    seen: &PrefixStatistics,
    ridge: f64,
) -> Result<(LayerWeights, u32), Error> {
    let place = Place { layer: index, module: Module::Mlp };
    let (down, attempts) = refit_last(place, "down", &weights.down, seen, ridge)?;
    Ok((LayerWeights { down, ..weights.clone() }, attempts))
}

/// The last map of a module, towards what it is to carry.
fn refit_last(
    place: Place,
    name: &'static str,
    linear: &Linear,
    seen: &PrefixStatistics,
    ridge: f64,
) -> Result<(Linear, u32), Error> {
    let Linear { weight, bias } = linear;
    let (k, d_model) = (weight.rows, weight.cols);
    place.expect(
        "sums on the compressed prefix",
        &[k, k * d_model, k, d_model],
        &[seen.gram.dim(), seen.cross.len(), seen.unit_sum.len(), seen.target_sum.len()],
    )?;
    let cross = Mat::from_fn(k, d_model, |row, col| seen.cross[row * d_model + col]);
    // With a bias everything is taken about the means, and the bias brings them back.
    let mean = |sum: &[f64]| -> Vec<f64> {
        let scale = if bias.is_some() && seen.weight_sum > 0.0 { seen.weight_sum.recip() } else { 0.0 };
        sum.iter().map(|value| value * scale).collect()
    };
    let (unit_mean, target_mean) = (mean(&seen.unit_sum), mean(&seen.target_sum));
    let deviation = |i: usize, j: usize| seen.gram.get(i, j) - seen.unit_sum[i] * unit_mean[j];
    // What is constant up to rounding carries nothing that the bias could not, and keeps its weights.
    let varies: Vec<bool> = (0..k).map(|i| deviation(i, i) > LEAST_VARIANCE * seen.gram.get(i, i)).collect();
    let packed = (0..k).flat_map(|i| (0..=i).map(move |j| (i, j)));
    let packed = packed.map(|(i, j)| if varies[i] && varies[j] { deviation(i, j) } else { 0.0 }).collect();
    let gram = Gram::from_packed_lower(k, packed).map_err(|error| place.numerics(error))?;
    let cross = Mat::from_fn(k, d_model, |row, col| {
        if varies[row] { cross[(row, col)] - seen.unit_sum[row] * target_mean[col] } else { 0.0 }
    });
    let fit = regress_towards(&gram, cross.as_ref(), widen(weight).as_ref(), ridge);
    let fit = fit.map_err(|error| place.numerics(error))?;
    let bias = bias.as_ref().map(|_| -> Vec<f32> {
        let carried = |col: usize| (0..k).map(|row| unit_mean[row] * fit.weight[(row, col)]).sum::<f64>();
        (0..d_model).map(|col| (target_mean[col] - carried(col)) as f32).collect()
    });
    place.check_finite(name, bias.as_deref().unwrap_or_default())?;
    Ok((Linear { weight: place.round(name, fit.weight.as_ref())?, bias }, fit.jitter.attempts))
}

#[cfg(test)]
mod tests {
    use faer::linalg::solvers::SolveLstsq;

    use super::*;
    use crate::testing::{Random, TinyModel, assert_close, gram_of};

    type Refit = fn(usize, &LayerWeights, &PrefixStatistics, f64) -> Result<(LayerWeights, u32), Error>;

    /// Weighed alike, over rows of what enters the map and of what it is to carry.
    fn sums_of(units: &Mat<f64>, target: &Mat<f64>) -> PrefixStatistics {
        let sums = |rows: &Mat<f64>| -> Vec<f64> {
            (0..rows.ncols()).map(|col| (0..rows.nrows()).map(|row| rows[(row, col)]).sum()).collect()
        };
        let cross = units.transpose() * target;
        PrefixStatistics {
            gram: gram_of(units.as_ref()),
            cross: (0..cross.nrows())
                .flat_map(|i| (0..cross.ncols()).map(move |j| (i, j)))
                .map(|at| cross[at])
                .collect(),
            unit_sum: sums(units),
            target_sum: sums(target),
            weight_sum: units.nrows() as f64,
        }
    }

    /// Without a ridge the map is the least-squares solution, with an intercept where there is a bias; nothing else changes.
    #[test]
    fn the_last_map_is_the_least_squares_solution_on_the_prefix() {
        let cases: [(Refit, &str); 2] = [(refit_down, "layer 3, mlp"), (refit_output, "layer 3, value-output")];
        for ((refit, place), biases) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
            let model = TinyModel { biases, ..TinyModel::default() };
            let weights = model.weights(1);
            let is_down = place.ends_with("mlp");
            let map = |weights: &LayerWeights| if is_down { weights.down.clone() } else { weights.output.clone() };
            let k = map(&weights).weight.rows;
            let mut random = Random::new(2);
            let shift = random.mat(1, k);
            let noise = random.mat(300, k);
            let units = Mat::from_fn(300, k, |row, col| noise[(row, col)] + shift[(0, col)]);
            let target = random.mat(300, model.d_model);
            let seen = sums_of(&units, &target);

            let (refitted, attempts) = refit(3, &weights, &seen, 0.0).expect("well conditioned");
            let rows =
                Mat::from_fn(300, k + usize::from(biases), |row, col| if col < k { units[(row, col)] } else { 1.0 });
            let direct = rows.qr().solve_lstsq(&target);
            let found = map(&refitted);
            assert_close(widen(&found.weight).as_ref(), direct.subrows(0, k), 1e-5);
            if let Some(bias) = &found.bias {
                let bias = Mat::from_fn(1, model.d_model, |_, col| f64::from(bias[col]));
                assert_close(bias.as_ref(), direct.subrows(k, 1), 1e-4);
            }
            assert_eq!((attempts, &refitted.up, &refitted.query), (0, &weights.up, &weights.query));
            let others = |weights: &LayerWeights| if is_down { weights.output.clone() } else { weights.down.clone() };
            assert_eq!(others(&refitted), others(&weights));

            let (held, _) = refit(3, &weights, &seen, 1e12).expect("well conditioned");
            assert_close(widen(&map(&held).weight).as_ref(), widen(&map(&weights).weight).as_ref(), 1e-6);
            let short = PrefixStatistics { unit_sum: vec![0.0], ..seen };
            let message = refit(3, &weights, &short, 0.0).expect_err("one unit").to_string();
            assert!(message.starts_with(&format!("{place}: sums on the compressed prefix")), "{message}");
        }
    }
}
