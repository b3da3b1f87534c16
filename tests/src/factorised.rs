//! Models whose maps are held as products, made from dense ones.

use std::io;
use std::ops::Range;
use std::path::Path;

use modegpt::Model;
use modegpt::architecture::{
    Factors, LayerWeights, Linear, MapShape, Matrix, ModelConfig, OuterWeights, Weight, WeightError, WeightProvider,
    family,
};
use modegpt::checkpoint::{index_json, shard_name, write_layer, write_outer};
use modegpt::compress::{Factorisation, factorise_layer};
use modegpt::linalg::Metric;

/// A model with other layers than it is stored with.
pub struct Replaced<'a> {
    model: &'a Model,
    config: ModelConfig,
    layers: Vec<LayerWeights<Weight>>,
}

/// `model` with every map factorised by a plain singular value decomposition, at the rank that `rank` gives to the map of
/// a layer, or left dense.
///
/// # Panics
/// If the model cannot be read, or has maps that are factorised already.
pub fn factorised(model: &Model, rank: impl Fn(usize, &MapShape) -> Option<usize>) -> Replaced<'_> {
    let mut config = model.config().clone();
    let mut layers = Vec::new();
    for index in 0..config.layers.len() {
        let dense = model.checkpoint.layer(index).expect("readable weights").into_dense().expect("dense");
        let factorisation = |name| {
            let rank = rank(index, &config.map_shape(&config.layers[index], name))?;
            Some(Factorisation { rank, input: Metric::Identity, output: Metric::Identity })
        };
        let layer = factorise_layer(index, dense, factorisation).expect("converges");
        config.layers[index].ranks = layer.ranks;
        layers.push(layer.weights);
    }
    Replaced { model, config, layers }
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
    Replaced { model: factorised.model, config: factorised.model.config().clone(), layers }
}

/// Some ranks below break-even: other ones in every layer and map, some maps dense, the first layer all dense.
pub fn uneven_rank(layer: usize, map: &MapShape) -> Option<usize> {
    let place = layer + map.name as usize;
    if layer == 0 || place.is_multiple_of(4) {
        return None;
    }
    Some((map.break_even_rank() * (6 + place % 5) / 10).max(1))
}

/// Writes a model as a folder that this program and transformers load.
///
/// # Errors
/// If the folder cannot be written, or a map would grow.
pub fn write_replaced(replaced: &Replaced<'_>, folder: &Path) -> io::Result<()> {
    let Replaced { model, config, layers } = replaced;
    let (checkpoint, dtype, n_layers) = (&model.checkpoint, model.checkpoint.dtype(), layers.len());
    std::fs::create_dir_all(folder)?;
    let file = |shard: usize| std::fs::File::create(folder.join(shard_name(shard, n_layers))).map(io::BufWriter::new);
    write_outer(checkpoint, dtype, &mut file(0)?).map_err(io::Error::other)?;
    for (index, (layer, shape)) in layers.iter().zip(&config.layers).enumerate() {
        write_layer(config, index, shape, layer, dtype, &mut file(index + 1)?).map_err(io::Error::other)?;
    }
    let text = |name: &str, text: &str| std::fs::write(folder.join(name), text);
    text("config.json", &family::to_json(config, checkpoint.config_json(), dtype).to_string())?;
    text("model.safetensors.index.json", &index_json(config, dtype).to_string())?;
    text("configuration_modegpt.py", include_str!("../../crates/modegpt/python/configuration_modegpt.py"))?;
    text("modeling_modegpt.py", include_str!("../../crates/modegpt/python/modeling_modegpt.py"))?;
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        if let Some(bytes) = checkpoint.companion(name, 1 << 26).map_err(io::Error::other)? {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
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

impl WeightProvider for Replaced<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layer(&self, index: usize) -> Result<LayerWeights<Weight>, WeightError> {
        Ok(self.layers[index].clone())
    }

    fn outer(&self) -> Result<OuterWeights, WeightError> {
        self.model.checkpoint.outer()
    }

    fn embedding_rows(&self, ids: &[u32]) -> Result<Matrix, WeightError> {
        self.model.checkpoint.embedding_rows(ids)
    }

    fn position_rows(&self, range: Range<usize>) -> Result<Option<Matrix>, WeightError> {
        self.model.checkpoint.position_rows(range)
    }

    fn head_rows(&self, range: Range<usize>) -> Result<Matrix, WeightError> {
        self.model.checkpoint.head_rows(range)
    }
}
