//! GPT-2: LayerNorm, learned positions, linear maps stored as `[d_in, d_out]`, query, key and value fused.

use super::{KeyTable, LayerKeys, LinearLayout, QkvKeys, fields::Fields, opt::whole_heads};
use crate::{ConfigError, Family, LayerShape, MlpKind, ModelConfig, Norm, NormPlacement, Positions};

pub(super) fn parse(fields: &Fields) -> Result<ModelConfig, ConfigError> {
    fields.refuse_unless("scale_attn_weights", true, "unscaled attention")?;
    fields.refuse_unless("scale_attn_by_inverse_layer_idx", false, "attention scaled by the layer's number")?;
    fields.refuse_unless("add_cross_attention", false, "cross-attention")?;
    let d_model = fields.size("n_embd")?;
    let n_heads = fields.count("n_head")?;
    let d_ff = fields.optional_size("n_inner")?.unwrap_or(4 * d_model);
    Ok(ModelConfig {
        family: Family::Gpt2,
        vocab: fields.size("vocab_size")?,
        d_model,
        d_embedding: d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head: whole_heads(d_model, n_heads)?,
        max_positions: fields.size("n_positions")?,
        positions: Positions::Learned { offset: 0 },
        norm: Norm::Layer { eps: fields.number("layer_norm_epsilon", 1e-5)? },
        norm_placement: NormPlacement::Pre,
        final_norm: true,
        norm_affine: true,
        mlp: MlpKind::Plain,
        activation: fields.activation("activation_function", "gelu_new")?,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        tied_head: fields.flag("tie_word_embeddings", true)?,
        special_tokens: fields.special_tokens()?,
        layers: vec![LayerShape::dense(d_ff, d_model / n_heads); fields.count("n_layer")?],
    })
}

pub(super) fn keys() -> KeyTable {
    KeyTable {
        roots: &["transformer.", ""],
        embedding: "wte",
        positions: Some("wpe"),
        project_in: None,
        project_out: None,
        final_norm: "ln_f",
        head: "lm_head",
        layers: "h",
        layer: LayerKeys {
            attention_norm: "ln_1",
            qkv: QkvKeys::Fused("attn.c_attn"),
            output: "attn.c_proj",
            mlp_norm: "ln_2",
            gate: None,
            up: "mlp.c_fc",
            down: "mlp.c_proj",
        },
        layout: LinearLayout::InOut,
        ignored: &[".attn.bias", ".attn.masked_bias"],
    }
}
