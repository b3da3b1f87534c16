//! Models written by this project: the original configuration, and the widths of every layer beside it.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::{ConfigError, DType, FactorRanks, LayerShape, ModelConfig};

pub(super) const MODEL_TYPE: &str = "modegpt";

pub(super) fn parse(fields: &Fields) -> Result<ModelConfig, ConfigError> {
    let missing = |field: &str| ConfigError::Missing { field: field.to_owned() };
    let base = fields.get("base_config").ok_or_else(|| missing("base_config"))?;
    if Fields::new(base)?.optional_text("model_type")?.as_deref() == Some(MODEL_TYPE) {
        return Err(ConfigError::Invalid {
            field: "base_config".to_owned(),
            expected: "the configuration of the original model".to_owned(),
            found: MODEL_TYPE.to_owned(),
        });
    }
    let mut config = ModelConfig::from_json(base)?;
    let layers = fields.get("per_layer_config").ok_or_else(|| missing("per_layer_config"))?;
    let layers = layers.as_array().filter(|list| list.len() == config.layers.len()).ok_or_else(|| {
        let expected = format!("a list of {} layers", config.layers.len());
        ConfigError::Invalid { field: "per_layer_config".to_owned(), expected, found: kind_of(layers) }
    })?;
    config.layers = layers.iter().map(parse_layer).collect::<Result<_, _>>()?;
    Ok(config)
}

fn parse_layer(json: &Value) -> Result<LayerShape, ConfigError> {
    let fields = Fields::new(json)?;
    let rotary_pairs = match fields.get("rotary_pairs") {
        None => None,
        Some(pairs) => Some(serde_json::from_value(pairs.clone()).map_err(|error| ConfigError::Invalid {
            field: "rotary_pairs".to_owned(),
            expected: "a list of indices for each kv head".to_owned(),
            found: error.to_string(),
        })?),
    };
    Ok(LayerShape {
        d_ff: fields.size("intermediate_size")?,
        d_qk: fields.size("query_key_dim")?,
        d_v: fields.size("value_dim")?,
        rotary_pairs,
        ranks: parse_ranks(&fields)?,
    })
}

fn parse_ranks(fields: &Fields) -> Result<FactorRanks, ConfigError> {
    let Some(json) = fields.get("ranks") else { return Ok(FactorRanks::default()) };
    let invalid = |found: String| ConfigError::Invalid {
        field: "ranks".to_owned(),
        expected: "a rank or null by the name of a map".to_owned(),
        found,
    };
    if !json.is_object() {
        return Err(invalid(json.to_string().chars().take(60).collect()));
    }
    serde_json::from_value(json.clone()).map_err(|error| invalid(error.to_string()))
}

fn kind_of(json: &Value) -> String {
    json.as_array().map_or_else(|| "no list".to_owned(), |list| format!("a list of {}", list.len()))
}

/// The `config.json` of a compressed model.
///
/// `base` is the `config.json` that the model was read from; if that is a compressed model's, the original inside it is
/// kept. The names are those that loaders know (`hidden_size`, …), with `per_layer_config` for what differs by layer.
pub fn to_json(config: &ModelConfig, base: &Value, dtype: DType) -> Value {
    let base = base.get("base_config").unwrap_or(base);
    let mut json = Map::new();
    let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
    put("model_type", json!(MODEL_TYPE));
    put("architectures", json!(["ModeGPTForCausalLM"]));
    put(
        "auto_map",
        json!({
            "AutoConfig": "configuration_modegpt.ModeGPTConfig",
            "AutoModelForCausalLM": "modeling_modegpt.ModeGPTForCausalLM",
        }),
    );
    put("vocab_size", json!(config.vocab));
    put("hidden_size", json!(config.d_model));
    put("num_hidden_layers", json!(config.layers.len()));
    put("num_attention_heads", json!(config.n_heads));
    put("num_key_value_heads", json!(config.n_kv_heads));
    put("head_dim", json!(config.d_head));
    put("max_position_embeddings", json!(config.max_positions));
    put("tie_word_embeddings", json!(config.tied_head));
    for name in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        put(name, base.get(name).cloned().unwrap_or(Value::Null));
    }
    put("torch_dtype", json!(dtype.torch_name()));
    put("per_layer_config", config.layers.iter().map(layer_to_json).collect());
    put("base_config", base.clone());
    Value::Object(json)
}

fn layer_to_json(shape: &LayerShape) -> Value {
    let mut json = json!({
        "intermediate_size": shape.d_ff,
        "query_key_dim": shape.d_qk,
        "value_dim": shape.d_v,
        "rotary_pairs": shape.rotary_pairs,
    });
    if !shape.ranks.is_dense() {
        json["ranks"] = json!(shape.ranks);
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172,
            "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "bos_token_id": 1,
            "eos_token_id": [2, 3], "max_position_embeddings": 512, "rope_scaling": null,
        })
    }

    #[test]
    fn a_compressed_configuration_reads_back_as_written() {
        let mut config = ModelConfig::from_json(&llama()).expect("a valid configuration");
        let ranks = FactorRanks { query: Some(1), gate: Some(64), down: Some(7), ..FactorRanks::default() };
        let rotary_pairs = Some(vec![vec![0, 2], vec![1, 3]]);
        config.layers[1] = LayerShape { d_ff: 96, d_qk: 4, d_v: 5, rotary_pairs, ranks };
        let json = to_json(&config, &llama(), DType::F16);
        assert_eq!(ModelConfig::from_json(&json), Ok(config.clone()));
        // Compressing again keeps the original configuration inside.
        assert_eq!(to_json(&config, &json, DType::F16), json);
    }

    fn error_of(change: impl Fn(&mut Value)) -> String {
        let config = ModelConfig::from_json(&llama()).expect("a valid configuration");
        let mut json = to_json(&config, &llama(), DType::F32);
        change(&mut json);
        ModelConfig::from_json(&json).expect_err("the change makes it invalid").to_string()
    }

    #[test]
    fn inconsistent_layers_are_refused_by_name() {
        let narrow = |json: &mut Value| json["per_layer_config"][1]["query_key_dim"] = json!(4);
        assert_eq!(
            error_of(narrow),
            "field `rotary_pairs of layer 1`: expected the pairs that make up a width of 4, found none"
        );
        let short = |json: &mut Value| drop(json["per_layer_config"].as_array_mut().expect("a list").pop());
        assert_eq!(error_of(short), "field `per_layer_config`: expected a list of 2 layers, found a list of 1");
        let wide = |json: &mut Value| json["per_layer_config"][0]["value_dim"] = json!(9);
        assert_eq!(error_of(wide), "field `d_v of layer 0`: expected between 1 and 8, found 9");
        let pairs = |json: &mut Value| {
            json["per_layer_config"][0]["query_key_dim"] = json!(2);
            json["per_layer_config"][0]["rotary_pairs"] = json!([[0], [4]]);
        };
        assert_eq!(error_of(pairs), "field `rotary_pairs of layer 0`: expected 1 ascending indices below 4, found [4]");
        let nested = |json: &mut Value| json["base_config"] = json.clone();
        assert!(error_of(nested).starts_with("field `base_config`"));
    }

    #[test]
    fn ranks_that_no_map_can_have_are_refused() {
        let refused = |ranks: Value| error_of(|json| json["per_layer_config"][1]["ranks"] = ranks.clone());
        let zero = "field `rank of value in layer 1`: expected between 1 and 16, found 0";
        assert_eq!(refused(json!({"value": 0})), zero);
        assert_eq!(
            refused(json!({"query": null, "down": 65})),
            "field `rank of down in layer 1`: expected between 1 and 64, found 65"
        );
        for wrong in [json!([1, 2, 3]), json!(7), json!({"up": -1}), json!({"up": 1.5}), json!({"w1": 3})] {
            let error = refused(wrong.clone());
            assert!(error.starts_with("field `ranks`: expected a rank or null by the name of a map, found"), "{error}");
        }
        let huge = refused(json!({"up": u64::MAX}));
        assert!(huge.starts_with("field `rank of up in layer 1`: expected between 1 and 64"), "{huge}");
    }

    #[test]
    fn a_gate_that_is_not_there_has_no_rank() {
        let base = json!({
            "model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16,
        });
        let config = ModelConfig::from_json(&base).expect("a valid configuration");
        let mut json = to_json(&config, &base, DType::F32);
        json["per_layer_config"][0]["ranks"] = json!({"gate": 3});
        let error = ModelConfig::from_json(&json).expect_err("a plain MLP").to_string();
        assert_eq!(error, "field `rank of gate in layer 0`: expected none, as the MLP has no gate, found 3");
    }

    #[test]
    fn unknown_architectures_and_features_are_refused() {
        let error = |change: fn(&mut Value)| {
            let mut json = llama();
            change(&mut json);
            ModelConfig::from_json(&json).expect_err("not supported").to_string()
        };
        assert!(error(|json| json["model_type"] = json!("mamba")).contains("`mamba` is not supported"));
        assert!(error(|json| json["rope_scaling"] = json!({"type": "yarn"})).contains("`yarn`"));
        assert!(error(|json| json["hidden_act"] = json!("mish")).contains("`mish`"));
        assert!(error(|json| json["num_key_value_heads"] = json!(3)).contains("a divisor of the 8"));
        assert!(error(|json| json["hidden_size"] = json!("big")).contains("expected a whole number"));
        assert!(error(|json| json["num_attention_heads"] = json!(0)).contains("head"));
    }
}
