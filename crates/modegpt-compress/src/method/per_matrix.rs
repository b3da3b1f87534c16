//! Every map by itself: the best product of two thin matrices, in metrics of its inputs and outputs.
//!
//! ```text
//! x W + b  ≈  (x A) B + b,      A, B minimise ‖P (W - A B) Q‖²_F
//! ```
//!
//! The methods of this kind differ in `P` and `Q` alone; [`weighted_svd`] has their table. Widths, biases, rotary pairs and
//! the softmax scale stay. A map shrinks below [`MapShape::break_even_rank`](modegpt_architecture::MapShape).

use modegpt_architecture::{FactorRanks, Factors, LayerWeights, Linear, MapName, Weight};
use modegpt_linalg::{Metric, WeightedSvd, weighted_svd};
use serde::{Deserialize, Serialize};

use crate::{
    Error,
    matrices::{Place, widen},
};

/// How one map becomes a product.
#[derive(Clone, Debug, PartialEq)]
pub struct Factorisation<'a> {
    /// Columns of `A` and rows of `B`: from 1 to the smaller side of the map.
    pub rank: usize,
    /// How errors at its inputs are weighed, `d_in` of them.
    pub input: Metric<'a>,
    /// How errors at its outputs are weighed, `d_out` of them.
    pub output: Metric<'a>,
}

/// What became of one map.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MapReport {
    /// Which map.
    pub name: MapName,
    /// Its rank; `None` if it stayed dense.
    pub rank: Option<usize>,
    /// `‖P (W - A B) Q‖²_F / ‖P W Q‖²_F`, in the metrics of its method.
    pub relative_error: f64,
    /// `‖P W Q‖²_F`, of a map that became a product.
    pub energy: f64,
    /// Squared error of what the map puts out over the calibration tokens, as a share of its energy; `None` if that was
    /// not asked for.
    pub output_error: Option<f64>,
    /// How often a metric needed more jitter on its diagonal, or weights too small to count were raised.
    pub fallbacks: u32,
}

impl MapReport {
    /// The report on a map that was left alone.
    pub(crate) fn dense(name: MapName) -> Self {
        Self { name, rank: None, relative_error: 0.0, energy: 0.0, output_error: Some(0.0), fallbacks: 0 }
    }
}

/// A layer whose maps are products, where that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct FactorisedLayer {
    /// The weights.
    pub weights: LayerWeights<Weight>,
    /// The rank of every map.
    pub ranks: FactorRanks,
    /// One entry for each map that became a product, in the order of [`MapName::ALL`].
    pub maps: Vec<MapReport>,
}

/// Factorises the maps of layer `layer` as `choose` says; a map for which it says `None` stays dense, bit for bit.
///
/// # Errors
/// Every error names layer and map: [`Error::OutOfRange`] for a rank that the map cannot have, [`Error::Factorisation`] if
/// a metric does not fit or the decomposition fails, [`Error::NotFinite`] if factors do not fit into `f32`.
pub fn factorise_layer<'a>(
    layer: usize,
    weights: LayerWeights,
    mut choose: impl FnMut(MapName) -> Option<Factorisation<'a>>,
) -> Result<FactorisedLayer, Error> {
    let mut maps = Vec::new();
    let weights = weights.try_map(|name, linear| {
        let Some(factorisation) = choose(name) else { return Ok(linear.into()) };
        let (factorised, report) = factorise(layer, name, linear, &factorisation)?;
        maps.push(report);
        Ok::<_, Error>(factorised)
    })?;
    Ok(FactorisedLayer { ranks: weights.ranks(), weights, maps })
}

fn factorise(
    layer: usize,
    name: MapName,
    Linear { weight, bias }: Linear,
    &Factorisation { rank, ref input, ref output }: &Factorisation<'_>,
) -> Result<(Linear<Weight>, MapReport), Error> {
    let largest = weight.rows.min(weight.cols);
    if !(1..=largest).contains(&rank) {
        return Err(Error::out_of_range(format!("layer {layer}, rank of {name}"), format!("1 to {largest}"), rank));
    }
    let WeightedSvd { a, b, spectrum, error, input_jitter, output_jitter } =
        weighted_svd(widen(&weight).as_ref(), input, output, rank).map_err(|source| Error::Factorisation {
            layer,
            name,
            source,
        })?;
    let place = Place { layer, module: name.into() };
    let round = |factor| place.round(name.as_str(), factor);
    let weight = Weight::Factorised(Factors { a: round(a.as_ref())?, b: round(b.as_ref())? });
    let energy: f64 = spectrum.iter().sum();
    let relative_error = if energy > 0.0 { error / energy } else { 0.0 };
    let fallbacks = input_jitter.attempts + output_jitter.attempts;
    let rank = Some(rank);
    Ok((Linear { weight, bias }, MapReport { name, rank, relative_error, energy, output_error: None, fallbacks }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, TinyModel, assert_close, forward, gram_of};

    /// The map that the factors stand for.
    fn multiplied(linear: &Linear<Weight>) -> faer::Mat<f64> {
        match &linear.weight {
            Weight::Dense(matrix) => widen(matrix),
            Weight::Factorised(Factors { a, b }) => widen(a) * widen(b),
        }
    }

    fn plain(rank: usize) -> Factorisation<'static> {
        Factorisation { rank, input: Metric::Identity, output: Metric::Identity }
    }

    #[test]
    fn full_rank_gives_the_map_back_and_the_bias_stays() {
        for model in [TinyModel::opt(), TinyModel::llama()] {
            let weights = model.weights(1);
            let full = |name| {
                plain(
                    weights
                        .maps()
                        .find(|(other, _)| *other == name)
                        .map_or(0, |(_, map)| map.weight.rows.min(map.weight.cols)),
                )
            };
            let layer = factorise_layer(0, weights.clone(), |name| Some(full(name))).expect("converges");
            assert_eq!(layer.maps.len(), weights.maps().count());
            for ((name, found), (_, expected)) in layer.weights.maps().zip(weights.maps()) {
                assert_close(multiplied(found).as_ref(), widen(&expected.weight).as_ref(), 1e-5);
                assert_eq!((&found.bias, layer.ranks.get(name)), (&expected.bias, Some(full(name).rank)));
            }
            assert!(layer.maps.iter().all(|map| map.relative_error < 1e-300 && map.fallbacks == 0));
        }
    }

    #[test]
    fn each_map_has_its_own_rank_and_others_stay_bit_for_bit() {
        let weights = TinyModel::llama().weights(2);
        let rank = |name| match name {
            MapName::Key => Some(3),
            MapName::Gate => Some(17),
            _ => None,
        };
        let layer = factorise_layer(0, weights.clone(), |name| rank(name).map(plain)).expect("converges");
        assert_eq!(layer.ranks, FactorRanks::from_fn(rank));
        let reported: Vec<_> = layer.maps.iter().map(|map| (map.name, map.rank)).collect();
        assert_eq!(reported, [(MapName::Key, Some(3)), (MapName::Gate, Some(17))]);
        assert_eq!(layer.weights.up, weights.up.into());
        assert_eq!(layer.weights.query, weights.query.into());
    }

    /// With the Gram of its inputs as metric, the error is that of what the map puts out.
    #[test]
    fn relative_error_is_that_of_the_outputs_and_falls_with_rank() {
        let (model, x) = (TinyModel::opt(), Random::new(3).mat(60, 32));
        let (weights, gram) = (model.weights(4), gram_of(x.as_ref()));
        let exact = forward(&weights.up, x.as_ref(), false);
        let mut last = 1.0;
        for rank in 1..=32 {
            let input = Metric::Gram(&gram);
            let choose = |name| {
                (name == MapName::Up).then(|| Factorisation { rank, input: input.clone(), output: Metric::Identity })
            };
            let layer = factorise_layer(0, weights.clone(), choose).expect("definite");
            let found = &x * multiplied(&layer.weights.up);
            let direct = (&exact - found).squared_norm_l2() / exact.squared_norm_l2();
            let reported = layer.maps[0].relative_error;
            assert!((reported - direct).abs() < 1e-6 && reported < last, "{rank}: {reported} {direct} {last}");
            last = reported;
        }
    }

    #[test]
    fn errors_name_layer_and_map() {
        let error = |factorisation: Factorisation<'_>| {
            let only_key = |name| (name == MapName::Key).then(|| factorisation.clone());
            factorise_layer(7, TinyModel::llama().weights(5), only_key).expect_err("cannot be done").to_string()
        };
        assert_eq!(error(plain(0)), "layer 7, rank of key: expected 1 to 16, found 0");
        assert_eq!(error(plain(17)), "layer 7, rank of key: expected 1 to 16, found 17");
        let wrong = Factorisation { input: Metric::Diagonal(vec![1.0; 5]), ..plain(2) };
        assert!(error(wrong).starts_with("layer 7, key: "));
        let mut weights = TinyModel::llama().weights(6);
        weights.key.weight.data[3] = f32::NAN;
        assert!(factorise_layer(7, weights, |_| Some(plain(2))).expect_err("NaN").to_string().contains("layer 7, key"));
    }
}
