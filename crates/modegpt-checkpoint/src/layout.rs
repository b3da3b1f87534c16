//! Which tensors a model is made of: the one list that loading checks against and saving writes.

use modegpt_architecture::family::{KeyTable, LinearLayout};
use modegpt_architecture::{LayerShape, MapName, MapShape, ModelConfig, Norm};

/// The name and stored shape of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The full name.
    pub name: String,
    /// The shape as stored.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    fn new(name: String, shape: &[usize]) -> Self {
        Self { name, shape: shape.to_vec() }
    }

    /// How many numbers it holds.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every tensor outside the layers.
pub fn outer_tensors(config: &ModelConfig, keys: &KeyTable, root: &str) -> Vec<TensorSpec> {
    let mut specs = Vec::new();
    let mut put = |name: String, shape: &[usize]| specs.push(TensorSpec::new(name, shape));
    put(format!("{root}{}.weight", keys.embedding), &[config.vocab, config.d_embedding]);
    if let (Some(positions), modegpt_architecture::Positions::Learned { offset }) = (keys.positions, config.positions) {
        put(format!("{root}{positions}.weight"), &[config.max_positions + offset, config.d_model]);
    }
    if config.d_embedding != config.d_model {
        for (name, from, to) in [
            (keys.project_in, config.d_embedding, config.d_model),
            (keys.project_out, config.d_model, config.d_embedding),
        ] {
            put(format!("{root}{}.weight", name.unwrap_or("projection")), &[to, from]);
        }
    }
    if config.final_norm && config.norm_affine {
        norm(&mut put, config, &format!("{root}{}", keys.final_norm));
    }
    if !config.tied_head {
        put(format!("{}.weight", keys.head), &[config.vocab, config.d_embedding]);
    }
    specs
}

/// Every tensor of one layer with the given widths and ranks.
pub fn layer_tensors(
    config: &ModelConfig,
    keys: &KeyTable,
    root: &str,
    index: usize,
    shape: &LayerShape,
) -> Vec<TensorSpec> {
    let prefix = keys.layer_prefix(root, index);
    let mut specs = Vec::new();
    let mut put = |name: String, shape: &[usize]| specs.push(TensorSpec::new(name, shape));
    if config.norm_affine {
        norm(&mut put, config, &format!("{prefix}{}", keys.layer.attention_norm));
    }
    let fused = keys.layer.fused_qkv(shape);
    if let Some(name) = fused {
        linear(&mut put, keys, &format!("{prefix}{name}"), fused_shape(config, shape));
    }
    for map in config.map_shapes(shape).filter(|map| fused.is_none() || !is_qkv(map.name)) {
        if let Some(name) = keys.layer.map(map.name) {
            linear(&mut put, keys, &format!("{prefix}{name}"), map);
        }
    }
    if config.norm_affine {
        norm(&mut put, config, &format!("{prefix}{}", keys.layer.mlp_norm));
    }
    specs
}

/// Whether a map is one of those that some families store side by side.
pub(crate) fn is_qkv(name: MapName) -> bool {
    matches!(name, MapName::Query | MapName::Key | MapName::Value)
}

/// The query map of a layer, widened by key and value beside it.
pub(crate) fn fused_shape(config: &ModelConfig, shape: &LayerShape) -> MapShape {
    let [query, key, value] = [MapName::Query, MapName::Key, MapName::Value].map(|name| config.map_shape(shape, name));
    MapShape { d_out: query.d_out + key.d_out + value.d_out, ..query }
}

/// One dense tensor, or `a` and `b`, which are two maps one after the other.
fn linear(put: &mut impl FnMut(String, &[usize]), keys: &KeyTable, name: &str, map: MapShape) {
    let MapShape { d_in, d_out, .. } = map;
    let last = match map.rank {
        None => {
            let shape = match keys.layout {
                LinearLayout::OutIn => [d_out, d_in],
                LinearLayout::InOut => [d_in, d_out],
            };
            put(format!("{name}.weight"), &shape);
            name.to_owned()
        }
        Some(rank) => {
            put(format!("{name}.a.weight"), &[rank, d_in]);
            put(format!("{name}.b.weight"), &[d_out, rank]);
            format!("{name}.b")
        }
    };
    if map.bias {
        put(format!("{last}.bias"), &[d_out]);
    }
}

fn norm(put: &mut impl FnMut(String, &[usize]), config: &ModelConfig, name: &str) {
    put(format!("{name}.weight"), &[config.d_model]);
    if matches!(config.norm, Norm::Layer { .. }) {
        put(format!("{name}.bias"), &[config.d_model]);
    }
}

/// All parameters of a model: every number that its checkpoint stores.
pub fn total_params(config: &ModelConfig) -> u64 {
    let keys = modegpt_architecture::family::keys(config);
    let layers = config.layers.iter().enumerate().flat_map(|(i, shape)| layer_tensors(config, &keys, "", i, shape));
    outer_tensors(config, &keys, "").into_iter().chain(layers).map(|spec| spec.n_elements() as u64).sum()
}
