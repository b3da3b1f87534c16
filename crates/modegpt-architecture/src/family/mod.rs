//! The model families: how each writes its configuration and names its tensors.
//!
//! A family is one file with two functions: `parse` (its `config.json` → [`ModelConfig`]) and `keys` (its tensor names).
//! Everything else follows from the configuration.

mod compressed;
mod fields;
mod gpt2;
mod llama;
mod opt;

pub use compressed::to_json;

use serde_json::Value;

use crate::{ConfigError, Family, LayerShape, MapName, MlpKind, ModelConfig};
use fields::Fields;

/// Reads any supported `config.json`.
pub(crate) fn parse(json: &Value) -> Result<ModelConfig, ConfigError> {
    let fields = Fields::new(json)?;
    let config = match fields.text("model_type")?.as_str() {
        "opt" => opt::parse(&fields)?,
        "llama" => llama::parse(&fields)?,
        "gpt2" => gpt2::parse(&fields)?,
        compressed::MODEL_TYPE => compressed::parse(&fields)?,
        other => return Err(ConfigError::UnknownArchitecture { found: other.to_owned() }),
    };
    check(&config)?;
    Ok(config)
}

/// The key table of a model.
pub fn keys(config: &ModelConfig) -> KeyTable {
    match config.family {
        Family::Opt => opt::keys(),
        Family::Llama => llama::keys(),
        Family::Gpt2 => gpt2::keys(),
    }
}

/// How a linear map is laid out in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearLayout {
    /// `[d_out, d_in]`, as `torch.nn.Linear` stores it.
    OutIn,
    /// `[d_in, d_out]`, as GPT-2's `Conv1D` stores it.
    InOut,
}

/// Where the three maps into attention are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvKeys {
    /// Three tensors.
    Separate {
        /// Query.
        query: &'static str,
        /// Key.
        key: &'static str,
        /// Value.
        value: &'static str,
    },
    /// One tensor, the outputs side by side. A layer in which one of the three is factorised has them apart, under this
    /// name followed by `.query`, `.key` and `.value`.
    Fused(&'static str),
}

/// The names of a family's tensors, each without `.weight` or `.bias`.
///
/// Names outside the layers follow [`KeyTable::roots`]; names inside follow `<root><layers>.<index>.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTable {
    /// Prefixes under which checkpoints are published, the usual one first.
    pub roots: &'static [&'static str],
    /// The embedding, `[vocab, d_embedding]`.
    pub embedding: &'static str,
    /// Learned positions, `[offset + max_positions, d_model]`.
    pub positions: Option<&'static str>,
    /// `d_embedding → d_model`, where these differ.
    pub project_in: Option<&'static str>,
    /// `d_model → d_embedding`, where these differ.
    pub project_out: Option<&'static str>,
    /// The last normalisation.
    pub final_norm: &'static str,
    /// The head where it is not tied; an absolute name, without root.
    pub head: &'static str,
    /// The list of layers.
    pub layers: &'static str,
    /// Names inside a layer.
    pub layer: LayerKeys,
    /// Layout of every dense map. Factors are stored as `torch.nn.Linear` stores them in every family.
    pub layout: LinearLayout,
    /// Endings of tensors that carry no weights (masks, tables) and are passed over.
    pub ignored: &'static [&'static str],
}

/// Names inside a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerKeys {
    /// Normalisation of the attention sublayer.
    pub attention_norm: &'static str,
    /// Query, key, value.
    pub qkv: QkvKeys,
    /// Output map of attention.
    pub output: &'static str,
    /// Normalisation of the MLP sublayer.
    pub mlp_norm: &'static str,
    /// Gate of a gated MLP.
    pub gate: Option<&'static str>,
    /// Into the hidden units.
    pub up: &'static str,
    /// Out of them.
    pub down: &'static str,
}

impl LayerKeys {
    /// The name of one map, where it is stored by itself; `None` for a gate that the family does not have.
    pub fn map(&self, name: MapName) -> Option<String> {
        let qkv = |place: usize| match self.qkv {
            QkvKeys::Separate { query, key, value } => [query, key, value][place].to_owned(),
            QkvKeys::Fused(fused) => format!("{fused}.{name}"),
        };
        match name {
            MapName::Query => Some(qkv(0)),
            MapName::Key => Some(qkv(1)),
            MapName::Value => Some(qkv(2)),
            MapName::Output => Some(self.output.to_owned()),
            MapName::Gate => self.gate.map(str::to_owned),
            MapName::Up => Some(self.up.to_owned()),
            MapName::Down => Some(self.down.to_owned()),
        }
    }

    /// The tensor that holds query, key and value of a layer side by side; `None` where they are stored apart.
    pub fn fused_qkv(&self, shape: &LayerShape) -> Option<&'static str> {
        let ranks = [shape.ranks.query, shape.ranks.key, shape.ranks.value];
        match self.qkv {
            QkvKeys::Fused(name) if ranks == [None; 3] => Some(name),
            _ => None,
        }
    }
}

impl KeyTable {
    /// The full prefix of a layer's tensors.
    pub fn layer_prefix(&self, root: &str, layer: usize) -> String {
        format!("{root}{}.{layer}.", self.layers)
    }
}

/// Relations that hold for every family.
fn check(config: &ModelConfig) -> Result<(), ConfigError> {
    let invalid = |field: &str, expected: String, found: String| {
        Err(ConfigError::Invalid { field: field.to_owned(), expected, found })
    };
    let sizes = [
        ("vocabulary size", config.vocab),
        ("hidden size", config.d_model),
        ("embedding width", config.d_embedding),
        ("number of attention heads", config.n_heads),
        ("number of key-value heads", config.n_kv_heads),
        ("head width", config.d_head),
        ("maximum positions", config.max_positions),
        ("number of layers", config.layers.len()),
    ];
    for (field, size) in sizes {
        // Far above any model, far below what makes a product of two sizes overflow.
        if !(1..=1 << 28).contains(&size) {
            return invalid(field, "between 1 and 2^28".to_owned(), size.to_string());
        }
    }
    if !config.n_heads.is_multiple_of(config.n_kv_heads) {
        return invalid(
            "number of key-value heads",
            format!("a divisor of the {} attention heads", config.n_heads),
            config.n_kv_heads.to_string(),
        );
    }
    if config.is_rotary() && !config.d_head.is_multiple_of(2) {
        return invalid("head width", "even, for rotary positions".to_owned(), config.d_head.to_string());
    }
    for (index, shape) in config.layers.iter().enumerate() {
        let widths =
            [("d_ff", shape.d_ff, 1 << 28), ("d_qk", shape.d_qk, config.d_head), ("d_v", shape.d_v, config.d_head)];
        for (name, width, most) in widths {
            if !(1..=most).contains(&width) {
                return invalid(
                    &format!("{name} of layer {index}"),
                    format!("between 1 and {most}"),
                    width.to_string(),
                );
            }
        }
        check_pairs(config, index)?;
        check_ranks(config, index)?;
    }
    Ok(())
}

/// Every rank is one that a matrix of the map's sizes can have.
fn check_ranks(config: &ModelConfig, index: usize) -> Result<(), ConfigError> {
    let shape = &config.layers[index];
    let invalid = |name: MapName, expected: String, found: String| {
        Err(ConfigError::Invalid { field: format!("rank of {name} in layer {index}"), expected, found })
    };
    if let (Some(rank), MlpKind::Plain) = (shape.ranks.gate, config.mlp) {
        return invalid(MapName::Gate, "none, as the MLP has no gate".to_owned(), rank.to_string());
    }
    for map in config.map_shapes(shape) {
        let Some(rank) = map.rank else { continue };
        if !(1..=map.full_rank()).contains(&rank) {
            return invalid(map.name, format!("between 1 and {}", map.full_rank()), rank.to_string());
        }
    }
    Ok(())
}

fn check_pairs(config: &ModelConfig, index: usize) -> Result<(), ConfigError> {
    let shape = &config.layers[index];
    let field = format!("rotary_pairs of layer {index}");
    let invalid = |expected: String, found: String| Err(ConfigError::Invalid { field: field.clone(), expected, found });
    match &shape.rotary_pairs {
        None if config.is_rotary() && shape.d_qk != config.d_head => {
            invalid(format!("the pairs that make up a width of {}", shape.d_qk), "none".to_owned())
        }
        None => Ok(()),
        Some(_) if !config.is_rotary() => invalid("none, as the model does not rotate".to_owned(), "some".to_owned()),
        Some(heads) if heads.len() != config.n_kv_heads => {
            invalid(format!("one list for each of {} kv heads", config.n_kv_heads), format!("{} lists", heads.len()))
        }
        Some(heads) => {
            let usable = |pairs: &Vec<usize>| {
                2 * pairs.len() == shape.d_qk
                    && pairs.windows(2).all(|w| w[0] < w[1])
                    && pairs.iter().all(|p| *p < config.d_head / 2)
            };
            match heads.iter().find(|pairs| !usable(pairs)) {
                None => Ok(()),
                Some(pairs) => invalid(
                    format!("{} ascending indices below {}", shape.d_qk / 2, config.d_head / 2),
                    format!("{pairs:?}"),
                ),
            }
        }
    }
}
