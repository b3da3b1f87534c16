//! Writing a model, one shard a layer.

use std::io::{self, Write};

use modegpt_architecture::family::{self, LinearLayout, QkvKeys};
use modegpt_architecture::{DType, LayerShape, LayerWeights, Linear, Matrix, ModelConfig, NormWeights};
use serde_json::{Map, Value, json};

use crate::layout::{layer_tensors, outer_tensors};
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

/// Writes one layer, whose widths are `shape`.
///
/// # Errors
/// [`SaveError::Write`] if writing fails, or a value does not fit `dtype`.
pub fn write_layer(
    config: &ModelConfig,
    index: usize,
    shape: &LayerShape,
    weights: &LayerWeights,
    dtype: DType,
    out: &mut dyn Write,
) -> Result<(), SaveError> {
    let keys = family::keys(config);
    let mut shard = ShardWriter::begin(out, layer_tensors(config, &keys, keys.roots[0], index, shape), dtype)?;
    put_norm(&mut shard, &weights.attention_norm)?;
    match keys.layer.qkv {
        QkvKeys::Separate { .. } => {
            for linear in [&weights.query, &weights.key, &weights.value] {
                put_linear(&mut shard, linear, keys.layout)?;
            }
        }
        QkvKeys::Fused(_) => put_linear(&mut shard, &fuse(&weights.query, &weights.key, &weights.value), keys.layout)?,
    }
    put_linear(&mut shard, &weights.output, keys.layout)?;
    if let Some(gate) = &weights.gate {
        put_linear(&mut shard, gate, keys.layout)?;
    }
    put_linear(&mut shard, &weights.up, keys.layout)?;
    put_linear(&mut shard, &weights.down, keys.layout)?;
    put_norm(&mut shard, &weights.mlp_norm)?;
    shard.finish()?;
    Ok(())
}

fn put_norm<W: Write>(shard: &mut ShardWriter<W>, norm: &NormWeights) -> io::Result<()> {
    [&norm.weight, &norm.bias].into_iter().flatten().try_for_each(|values| shard.put(values))
}

fn put_linear<W: Write>(shard: &mut ShardWriter<W>, linear: &Linear, layout: LinearLayout) -> io::Result<()> {
    match layout {
        LinearLayout::OutIn => shard.put(&linear.weight.transposed().data)?,
        LinearLayout::InOut => shard.put(&linear.weight.data)?,
    }
    linear.bias.iter().try_for_each(|bias| shard.put(bias))
}

/// Three maps side by side.
fn fuse(query: &Linear, key: &Linear, value: &Linear) -> Linear {
    let parts = [query, key, value];
    let cols = parts.iter().map(|part| part.weight.cols).sum();
    let rows = query.weight.rows;
    let data = (0..rows).flat_map(|row| parts.iter().flat_map(move |part| part.weight.row(row))).copied().collect();
    let biases: Vec<&Vec<f32>> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
    let bias = (biases.len() == parts.len()).then(|| biases.into_iter().flatten().copied().collect());
    Linear { weight: Matrix::new(rows, cols, data), bias }
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
