//! Models whose maps are held as products, made from dense ones.

use modegpt::Model;
use modegpt::architecture::{Factors, LayerWeights, Linear, MapShape, Matrix, Weight};
use modegpt::compress::{Factorisation, factorise_layer};
use modegpt::linalg::Metric;

use crate::{Replaced, dense_layer};

/// `model` with every map factorised by a plain singular value decomposition, at the rank that `rank` gives to the map of
/// a layer, or left dense.
///
/// # Panics
/// If the model cannot be read, or has maps that are factorised already.
pub fn factorised(model: &Model, rank: impl Fn(usize, &MapShape) -> Option<usize>) -> Replaced<'_> {
    let mut config = model.config().clone();
    let mut layers = Vec::new();
    for index in 0..config.layers.len() {
        let factorisation = |name| {
            let rank = rank(index, &config.map_shape(&config.layers[index], name))?;
            Some(Factorisation { rank, input: Metric::Identity, output: Metric::Identity })
        };
        let layer = factorise_layer(index, dense_layer(model, index), factorisation).expect("converges");
        config.layers[index].ranks = layer.ranks;
        layers.push(layer.weights);
    }
    Replaced::new(model, config, layers)
}

/// The same function with one matrix for each map.
pub fn multiplied_out<'a>(factorised: &Replaced<'a>) -> Replaced<'a> {
    let dense = |layer: &LayerWeights<Weight>| {
        let product = layer.clone().try_map(|_, Linear { weight, bias }| {
            let weight = match weight {
                Weight::Dense(matrix) => matrix,
                Weight::Factorised(factors) => product(&factors),
            };
            Ok::<_, std::convert::Infallible>(Linear { weight: weight.into(), bias })
        });
        product.unwrap_or_else(|never| match never {})
    };
    let layers = factorised.layers.iter().map(dense).collect();
    Replaced::new(factorised.model, factorised.model.config().clone(), layers)
}

/// Some ranks below break-even: other ones in every layer and map, some maps dense, the first layer all dense.
pub fn uneven_rank(layer: usize, map: &MapShape) -> Option<usize> {
    let place = layer + map.name as usize;
    if layer == 0 || place.is_multiple_of(4) {
        return None;
    }
    Some((map.break_even_rank() * (6 + place % 5) / 10).max(1))
}

/// `A B`, summed in double precision.
fn product(Factors { a, b }: &Factors) -> Matrix {
    let element = |row: usize, col: usize| {
        let terms = a.row(row).iter().enumerate().map(|(k, &value)| f64::from(value) * f64::from(b.row(k)[col]));
        terms.sum::<f64>() as f32
    };
    let data = (0..a.rows).flat_map(|row| (0..b.cols).map(move |col| (row, col))).map(|(r, c)| element(r, c));
    Matrix::new(a.rows, b.cols, data.collect())
}
