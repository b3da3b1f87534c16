//! OPT: LayerNorm, biases everywhere, learned positions that start two rows into their table.

use super::{KeyTable, LayerKeys, LinearLayout, QkvKeys, fields::Fields};
use crate::{ConfigError, Family, LayerShape, MlpKind, ModelConfig, Norm, NormPlacement, Positions};

/// OPT was trained with positions counted from 2, a leftover of a padding token.
const POSITION_OFFSET: usize = 2;
/// PyTorch's default, which the configuration does not state.
const NORM_EPS: f64 = 1e-5;

pub(super) fn parse(fields: &Fields) -> Result<ModelConfig, ConfigError> {
    let d_model = fields.size("hidden_size")?;
    let n_heads = fields.count("num_attention_heads")?;
    let bias = fields.flag("enable_bias", true)?;
    let pre_norm = fields.flag("do_layer_norm_before", true)?;
    let d_ff = fields.size("ffn_dim")?;
    Ok(ModelConfig {
        family: Family::Opt,
        vocab: fields.size("vocab_size")?,
        d_model,
        d_embedding: fields.optional_size("word_embed_proj_dim")?.unwrap_or(d_model),
        n_heads,
        n_kv_heads: n_heads,
        d_head: whole_heads(d_model, n_heads)?,
        max_positions: fields.size("max_position_embeddings")?,
        positions: Positions::Learned { offset: POSITION_OFFSET },
        norm: Norm::Layer { eps: NORM_EPS },
        norm_placement: if pre_norm { NormPlacement::Pre } else { NormPlacement::Post },
        final_norm: pre_norm && !fields.flag("_remove_final_layer_norm", false)?,
        norm_affine: fields.flag("layer_norm_elementwise_affine", true)?,
        mlp: MlpKind::Plain,
        activation: fields.activation("activation_function", "relu")?,
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        tied_head: fields.flag("tie_word_embeddings", true)?,
        special_tokens: fields.special_tokens()?,
        layers: vec![LayerShape::dense(d_ff, d_model / n_heads); fields.count("num_hidden_layers")?],
    })
}

pub(super) fn keys() -> KeyTable {
    KeyTable {
        roots: &["model.decoder.", "decoder.", ""],
        embedding: "embed_tokens",
        positions: Some("embed_positions"),
        project_in: Some("project_in"),
        project_out: Some("project_out"),
        final_norm: "final_layer_norm",
        head: "lm_head",
        layers: "layers",
        layer: LayerKeys {
            attention_norm: "self_attn_layer_norm",
            qkv: QkvKeys::Separate { query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj" },
            output: "self_attn.out_proj",
            mlp_norm: "final_layer_norm",
            gate: None,
            up: "fc1",
            down: "fc2",
        },
        layout: LinearLayout::OutIn,
        ignored: &["decoder.version"],
    }
}

/// The head width of a model that divides its residual width among its heads.
pub(super) fn whole_heads(d_model: usize, n_heads: usize) -> Result<usize, ConfigError> {
    if d_model.is_multiple_of(n_heads) {
        return Ok(d_model / n_heads);
    }
    Err(ConfigError::Invalid {
        field: "hidden size".to_owned(),
        expected: format!("a multiple of the {n_heads} attention heads"),
        found: d_model.to_string(),
    })
}
