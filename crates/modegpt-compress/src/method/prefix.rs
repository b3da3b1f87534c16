//! The down map once more, on the stream of the compressed layers before it.

use faer::Mat;
use modegpt_architecture::{LayerWeights, Linear};
use modegpt_linalg::{Gram, regress_towards};
use modegpt_statistics::PrefixStatistics;

use crate::{
    Error, Module,
    matrices::{Place, widen},
};

/// Refits the down map of layer `index`, and its bias if it has one, so that the stream comes back to that of the original
/// model as far as the hidden units can bring it. Nothing else of the layer changes.
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
    let Linear { weight, bias } = &weights.down;
    let (k, d_model) = (weight.rows, weight.cols);
    place.expect(
        "sums on the compressed prefix",
        &[k, k * d_model, k, d_model],
        &[seen.gram.dim(), seen.cross.len(), seen.hidden_sum.len(), seen.target_sum.len()],
    )?;
    let cross = Mat::from_fn(k, d_model, |row, col| seen.cross[row * d_model + col]);
    // With a bias everything is taken about the means, and the bias brings them back.
    let mean = |sum: &[f64]| -> Vec<f64> {
        let scale = if bias.is_some() && seen.weight_sum > 0.0 { seen.weight_sum.recip() } else { 0.0 };
        sum.iter().map(|value| value * scale).collect()
    };
    let (hidden_mean, target_mean) = (mean(&seen.hidden_sum), mean(&seen.target_sum));
    let packed = (0..k).flat_map(|i| (0..=i).map(move |j| (i, j)));
    let packed = packed.map(|(i, j)| seen.gram.get(i, j) - seen.hidden_sum[i] * hidden_mean[j]).collect();
    let gram = Gram::from_packed_lower(k, packed).map_err(|error| place.numerics(error))?;
    let cross = Mat::from_fn(k, d_model, |row, col| cross[(row, col)] - seen.hidden_sum[row] * target_mean[col]);
    let fit = regress_towards(&gram, cross.as_ref(), widen(weight).as_ref(), ridge);
    let fit = fit.map_err(|error| place.numerics(error))?;
    let bias = bias.as_ref().map(|_| -> Vec<f32> {
        let carried = |col: usize| (0..k).map(|row| hidden_mean[row] * fit.weight[(row, col)]).sum::<f64>();
        (0..d_model).map(|col| (target_mean[col] - carried(col)) as f32).collect()
    });
    place.check_finite("down.bias", bias.as_deref().unwrap_or_default())?;
    let down = Linear { weight: place.round("down", fit.weight.as_ref())?, bias };
    Ok((LayerWeights { down, ..weights.clone() }, fit.jitter.attempts))
}

#[cfg(test)]
mod tests {
    use faer::linalg::solvers::SolveLstsq;

    use super::*;
    use crate::testing::{Random, TinyModel, assert_close, gram_of};

    /// Without a ridge the down map is the least-squares solution, with an intercept where there is a bias.
    #[test]
    fn down_is_the_least_squares_solution_on_the_prefix() {
        for biases in [false, true] {
            let model = TinyModel { biases, ..TinyModel::default() };
            let weights = model.weights(1);
            let mut random = Random::new(2);
            let shift = random.mat(1, model.d_ff);
            let noise = random.mat(300, model.d_ff);
            let hidden = Mat::from_fn(300, model.d_ff, |row, col| noise[(row, col)] + shift[(0, col)]);
            let target = random.mat(300, model.d_model);
            let sums = |rows: &Mat<f64>| -> Vec<f64> {
                (0..rows.ncols()).map(|col| (0..rows.nrows()).map(|row| rows[(row, col)]).sum()).collect()
            };
            let cross = hidden.transpose() * &target;
            let seen = PrefixStatistics {
                gram: gram_of(hidden.as_ref()),
                cross: (0..model.d_ff)
                    .flat_map(|i| (0..model.d_model).map(move |j| (i, j)))
                    .map(|at| cross[at])
                    .collect::<Vec<_>>(),
                hidden_sum: sums(&hidden),
                target_sum: sums(&target),
                weight_sum: 300.0,
            };
            let (refitted, attempts) = refit_down(3, &weights, &seen, 0.0).expect("well conditioned");
            let rows = Mat::from_fn(300, model.d_ff + usize::from(biases), |row, col| {
                if col < model.d_ff { hidden[(row, col)] } else { 1.0 }
            });
            let direct = rows.qr().solve_lstsq(&target);
            assert_close(widen(&refitted.down.weight).as_ref(), direct.subrows(0, model.d_ff), 1e-5);
            if let Some(bias) = &refitted.down.bias {
                let bias = Mat::from_fn(1, model.d_model, |_, col| f64::from(bias[col]));
                assert_close(bias.as_ref(), direct.subrows(model.d_ff, 1), 1e-4);
            }
            assert_eq!((attempts, &refitted.up, &refitted.query), (0, &weights.up, &weights.query));
            let short = PrefixStatistics { hidden_sum: vec![0.0], ..seen };
            let message = refit_down(3, &weights, &short, 0.0).expect_err("one hidden unit").to_string();
            assert!(message.starts_with("layer 3, mlp: sums on the compressed prefix"), "{message}");
        }
    }
}
