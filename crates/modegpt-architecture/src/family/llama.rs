//! Llama 1, 2 and 3: RMSNorm, gated MLP, rotary positions, grouped-query attention.

use super::{KeyTable, LayerKeys, LinearLayout, QkvKeys, fields::Fields, opt::whole_heads};
use crate::{ConfigError, Family, LayerShape, MlpKind, ModelConfig, Norm, NormPlacement, Positions, RopeScaling};

pub(super) fn parse(fields: &Fields) -> Result<ModelConfig, ConfigError> {
    let d_model = fields.size("hidden_size")?;
    let n_heads = fields.count("num_attention_heads")?;
    let d_head = match fields.optional_size("head_dim")? {
        Some(d_head) => d_head,
        None => whole_heads(d_model, n_heads)?,
    };
    let attention_bias = fields.flag("attention_bias", false)?;
    let d_ff = fields.size("intermediate_size")?;
    Ok(ModelConfig {
        family: Family::Llama,
        vocab: fields.size("vocab_size")?,
        d_model,
        d_embedding: d_model,
        n_heads,
        n_kv_heads: fields.optional_count("num_key_value_heads")?.unwrap_or(n_heads),
        d_head,
        max_positions: fields.optional_size("max_position_embeddings")?.unwrap_or(2048),
        positions: rotary(fields)?,
        norm: Norm::Rms { eps: fields.number("rms_norm_eps", 1e-6)? },
        norm_placement: NormPlacement::Pre,
        final_norm: true,
        norm_affine: true,
        mlp: MlpKind::Gated,
        activation: fields.activation("hidden_act", "silu")?,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: fields.flag("mlp_bias", false)?,
        tied_head: fields.flag("tie_word_embeddings", false)?,
        special_tokens: fields.special_tokens()?,
        layers: vec![LayerShape::dense(d_ff, d_head); fields.count("num_hidden_layers")?],
    })
}

/// `rope_theta` and `rope_scaling`, which transformers 5 writes together as `rope_parameters`.
fn rotary(fields: &Fields) -> Result<Positions, ConfigError> {
    let parameters = fields.object("rope_parameters")?;
    let theta = match &parameters {
        Some(parameters) => parameters.number("rope_theta", 10_000.0)?,
        None => fields.number("rope_theta", 10_000.0)?,
    };
    let Some(scaling) = parameters.map_or_else(|| fields.object("rope_scaling"), |p| Ok(Some(p)))? else {
        return Ok(Positions::Rotary { theta, scaling: None, linear_factor: 1.0 });
    };
    let kind = match scaling.optional_text("rope_type")? {
        Some(kind) => Some(kind),
        None => scaling.optional_text("type")?,
    };
    match kind.as_deref() {
        None | Some("default") => Ok(Positions::Rotary { theta, scaling: None, linear_factor: 1.0 }),
        Some("linear") => Ok(Positions::Rotary { theta, scaling: None, linear_factor: scaling.number("factor", 1.0)? }),
        Some("llama3") => {
            let scaling = RopeScaling {
                factor: scaling.number("factor", 8.0)?,
                low_freq_factor: scaling.number("low_freq_factor", 1.0)?,
                high_freq_factor: scaling.number("high_freq_factor", 4.0)?,
                original_max_positions: scaling.size("original_max_position_embeddings")?,
            };
            Ok(Positions::Rotary { theta, scaling: Some(scaling), linear_factor: 1.0 })
        }
        Some(other) => Err(ConfigError::Unsupported {
            field: "rope_scaling".to_owned(),
            feature: format!("the scaling `{other}` of rotary positions"),
        }),
    }
}

pub(super) fn keys() -> KeyTable {
    KeyTable {
        roots: &["model.", ""],
        embedding: "embed_tokens",
        positions: None,
        project_in: None,
        project_out: None,
        final_norm: "norm",
        head: "lm_head",
        layers: "layers",
        layer: LayerKeys {
            attention_norm: "input_layernorm",
            qkv: QkvKeys::Separate { query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj" },
            output: "self_attn.o_proj",
            mlp_norm: "post_attention_layernorm",
            gate: Some("mlp.gate_proj"),
            up: "mlp.up_proj",
            down: "mlp.down_proj",
        },
        layout: LinearLayout::OutIn,
        ignored: &["rotary_emb.inv_freq"],
    }
}
