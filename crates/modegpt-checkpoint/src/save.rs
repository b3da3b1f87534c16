//! Writing a model, one shard a layer.

use std::io::{self, Write};

use modegpt_architecture::family::{self, LinearLayout};
use modegpt_architecture::{
    DType, LayerShape, LayerWeights, Linear, MapName, MapShape, Matrix, ModelConfig, NormWeights, Weight,
};
use serde_json::{Map, Value, json};

use crate::layout::{is_qkv, layer_tensors, outer_tensors};
use crate::{Checkpoint, LoadError, ShardWriter};

/// Rows of a large table that are in memory at once while it is copied.
const ROWS_AT_ONCE: usize = 4096;

/// The name of a shard: the first holds what is outside the layers, each further one a layer.
pub fn shard_name(shard: usize, n_layers: usize) -> String {
    format!("model-{:05}-of-{:05}.safetensors", shard + 1, n_layers + 1)
}

/// Why a shard could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The disk, or a value that does not fit the element type.
    #[error(transparent)]
    Write(#[from] io::Error),
    /// What is copied could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map does not have the sizes that the configuration would say it has.
    #[error("layer {layer}: the {name} map expected {expected}, found {found}")]
    Mismatch {
        /// Index of the layer.
        layer: usize,
        /// Which map.
        name: MapName,
        /// What the configuration says.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Factors that hold more than the dense map would.
    #[error(
        "layer {layer}: the {name} map would grow: expected a rank of at most {most} for {d_in} x {d_out}, found {rank}"
    )]
    Grows {
        /// Index of the layer.
        layer: usize,
        /// Which map.
        name: MapName,
        /// Its rank.
        rank: usize,
        /// The largest rank that does not grow it; 0 if none does.
        most: usize,
        /// Its inputs.
        d_in: usize,
        /// Its outputs.
        d_out: usize,
    },
}

/// Copies everything outside the layers of `checkpoint`, a part at a time.
///
/// # Errors
/// [`SaveError`] if reading or writing fails, or a value does not fit `dtype`.
pub fn write_outer(checkpoint: &Checkpoint, dtype: DType, out: &mut dyn Write) -> Result<(), SaveError> {
    let (keys, root) = checkpoint.keys();
    let config = modegpt_architecture::WeightProvider::config(checkpoint);
    let stored = outer_tensors(config, keys, root);
    let mut shard = ShardWriter::begin(out, outer_tensors(config, keys, keys.roots[0]), dtype)?;
    for spec in stored {
        match spec.shape[..] {
            [n_rows, _] => {
                for start in (0..n_rows).step_by(ROWS_AT_ONCE) {
                    let rows = start..(start + ROWS_AT_ONCE).min(n_rows);
                    shard.put(&checkpoint.rows(&spec.name, rows)?)?;
                }
            }
            _ => shard.put(&checkpoint.tensor(&spec.name)?)?,
        }
    }
    shard.finish()?;
    Ok(())
}

/// Writes one layer, whose widths and ranks are `shape`.
///
/// # Errors
/// [`SaveError::Mismatch`] if the weights have other sizes, [`SaveError::Grows`] if a factorised map holds more than a
/// dense one would, [`SaveError::Write`] if writing fails, or a value does not fit `dtype`.
pub fn write_layer(
    config: &ModelConfig,
    index: usize,
    shape: &LayerShape,
    weights: &LayerWeights<Weight>,
    dtype: DType,
    out: &mut dyn Write,
) -> Result<(), SaveError> {
    check_maps(config, index, shape, weights)?;
    let keys = family::keys(config);
    let mut shard = ShardWriter::begin(out, layer_tensors(config, &keys, keys.roots[0], index, shape), dtype)?;
    put_norm(&mut shard, &weights.attention_norm)?;
    let is_fused = keys.layer.fused_qkv(shape).is_some();
    let fused = if is_fused { fuse([&weights.query, &weights.key, &weights.value]) } else { None };
    if let Some(fused) = &fused {
        put_linear(&mut shard, fused, keys.layout)?;
    }
    for (_, linear) in weights.maps().filter(|(name, _)| fused.is_none() || !is_qkv(*name)) {
        put_linear(&mut shard, linear, keys.layout)?;
    }
    put_norm(&mut shard, &weights.mlp_norm)?;
    shard.finish()?;
    Ok(())
}

/// Every map has the sizes and the rank that `shape` gives it, and none grows by being factorised.
fn check_maps(
    config: &ModelConfig,
    layer: usize,
    shape: &LayerShape,
    weights: &LayerWeights<Weight>,
) -> Result<(), SaveError> {
    for (name, Linear { weight, .. }) in weights.maps() {
        let expected @ MapShape { d_in, d_out, .. } = config.map_shape(shape, name);
        let found = MapShape { d_in: weight.d_in(), d_out: weight.d_out(), rank: weight.rank(), ..expected };
        if found != expected {
            return Err(SaveError::Mismatch { layer, name, expected: describe(&expected), found: describe(&found) });
        }
        let most = expected.break_even_rank();
        if let Some(rank) = expected.rank.filter(|rank| *rank > most) {
            return Err(SaveError::Grows { layer, name, rank, most, d_in, d_out });
        }
    }
    Ok(())
}

fn describe(map: &MapShape) -> String {
    let MapShape { d_in, d_out, .. } = map;
    match map.rank {
        None => format!("{d_in} x {d_out}"),
        Some(rank) => format!("{d_in} x {d_out} at rank {rank}"),
    }
}

fn put_norm<W: Write>(shard: &mut ShardWriter<W>, norm: &NormWeights) -> io::Result<()> {
    [&norm.weight, &norm.bias].into_iter().flatten().try_for_each(|values| shard.put(values))
}

fn put_linear<W: Write>(shard: &mut ShardWriter<W>, linear: &Linear<Weight>, layout: LinearLayout) -> io::Result<()> {
    match (&linear.weight, layout) {
        (Weight::Dense(weight), LinearLayout::OutIn) => shard.put(&weight.transposed().data)?,
        (Weight::Dense(weight), LinearLayout::InOut) => shard.put(&weight.data)?,
        (Weight::Factorised(factors), _) => {
            shard.put(&factors.a.transposed().data)?;
            shard.put(&factors.b.transposed().data)?;
        }
    }
    linear.bias.iter().try_for_each(|bias| shard.put(bias))
}

/// Three dense maps side by side; `None` if one of them is factorised.
fn fuse(parts: [&Linear<Weight>; 3]) -> Option<Linear<Weight>> {
    let mut matrices = Vec::with_capacity(parts.len());
    for part in parts {
        let Weight::Dense(matrix) = &part.weight else { return None };
        matrices.push(matrix);
    }
    let rows = matrices[0].rows;
    let cols = matrices.iter().map(|matrix| matrix.cols).sum();
    let data = (0..rows).flat_map(|row| matrices.iter().flat_map(move |matrix| matrix.row(row))).copied().collect();
    let biases: Vec<&Vec<f32>> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
    let bias = (biases.len() == parts.len()).then(|| biases.into_iter().flatten().copied().collect());
    Some(Linear { weight: Matrix::new(rows, cols, data).into(), bias })
}

/// `model.safetensors.index.json` of a model written with [`shard_name`].
pub fn index_json(config: &ModelConfig, dtype: DType) -> Value {
    let keys = family::keys(config);
    let n_layers = config.layers.len();
    let mut map = Map::new();
    let mut total_bytes = 0;
    let mut put = |shard: usize, specs: Vec<crate::TensorSpec>| {
        for spec in specs {
            total_bytes += spec.n_elements() * dtype.size();
            map.insert(spec.name, json!(shard_name(shard, n_layers)));
        }
    };
    put(0, outer_tensors(config, &keys, keys.roots[0]));
    for (index, shape) in config.layers.iter().enumerate() {
        put(index + 1, layer_tensors(config, &keys, keys.roots[0], index, shape));
    }
    json!({"metadata": {"total_size": total_bytes}, "weight_map": map})
}
