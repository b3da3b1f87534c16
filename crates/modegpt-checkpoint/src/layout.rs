//! Which tensors a model is made of: the one list that loading checks against and saving writes.

use modegpt_architecture::family::{KeyTable, QkvKeys};
use modegpt_architecture::{LayerShape, MlpKind, ModelConfig, Norm};

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

/// Every tensor of one layer with the given widths.
pub fn layer_tensors(
    config: &ModelConfig,
    keys: &KeyTable,
    root: &str,
    index: usize,
    shape: &LayerShape,
) -> Vec<TensorSpec> {
    let prefix = keys.layer_prefix(root, index);
    let d = config.d_model;
    let (query, key, value) = qkv_widths(config, shape);
    let mut specs = Vec::new();
    let mut put = |name: String, shape: &[usize]| specs.push(TensorSpec::new(name, shape));
    if config.norm_affine {
        norm(&mut put, config, &format!("{prefix}{}", keys.layer.attention_norm));
    }
    let mut linear = |name: &str, d_in: usize, d_out: usize, bias: bool| {
        put(format!("{prefix}{name}.weight"), &stored_shape(keys, d_in, d_out));
        if bias {
            put(format!("{prefix}{name}.bias"), &[d_out]);
        }
    };
    match keys.layer.qkv {
        QkvKeys::Fused(name) => linear(name, d, query + key + value, config.qkv_bias),
        QkvKeys::Separate { query: q, key: k, value: v } => {
            linear(q, d, query, config.qkv_bias);
            linear(k, d, key, config.qkv_bias);
            linear(v, d, value, config.qkv_bias);
        }
    }
    linear(keys.layer.output, config.n_heads * shape.d_v, d, config.output_bias);
    if let (MlpKind::Gated, Some(gate)) = (config.mlp, keys.layer.gate) {
        linear(gate, d, shape.d_ff, config.mlp_bias);
    }
    linear(keys.layer.up, d, shape.d_ff, config.mlp_bias);
    linear(keys.layer.down, shape.d_ff, d, config.mlp_bias);
    if config.norm_affine {
        norm(&mut put, config, &format!("{prefix}{}", keys.layer.mlp_norm));
    }
    specs
}

/// Total widths of query, key and value over their heads.
pub(crate) fn qkv_widths(config: &ModelConfig, shape: &LayerShape) -> (usize, usize, usize) {
    (config.n_heads * shape.d_qk, config.n_kv_heads * shape.d_qk, config.n_kv_heads * shape.d_v)
}

fn stored_shape(keys: &KeyTable, d_in: usize, d_out: usize) -> [usize; 2] {
    match keys.layout {
        modegpt_architecture::family::LinearLayout::OutIn => [d_out, d_in],
        modegpt_architecture::family::LinearLayout::InOut => [d_in, d_out],
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
