//! What a model *is*, before any of it is computed: its configuration, the widths of every layer, its weights on the
//! host and the names under which a checkpoint stores them.
//!
//! This crate holds values only. It knows no device, no file and no method of compression, so both the readers of
//! checkpoints and the mathematics that shrinks layers can speak of the same things.
//!
//! - [`ModelConfig`] is the family-independent description; [`family`] translates a `config.json` into it.
//! - [`LayerShape`] gives each layer its own widths. A dense layer is the special case in which all are full.
//! - [`LayerWeights`] are one decoder block on the host, every matrix as `[d_in, d_out]` and activations as rows:
//!   `y = x W + b`. As stored (`LayerWeights<Weight>`) any map may be [`Factors`] instead, `y = (x A) B + b`.
//! - [`family::KeyTable`] says how each of these tensors is named and laid out in a checkpoint.
//!
//! ```
//! use modegpt_architecture::ModelConfig;
//!
//! let json = serde_json::json!({
//!     "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172,
//!     "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4,
//!     "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
//! });
//! let config = ModelConfig::from_json(&json)?;
//! assert_eq!(config.layers[0].d_ff, 172);
//! assert_eq!(config.d_head, 8);
//! # Ok::<(), modegpt_architecture::ConfigError>(())
//! ```

mod config;
pub mod family;
mod layer_shape;
mod map;
mod provider;
mod tensor;
mod weights;

pub use config::{
    Activation, ConfigError, Family, MlpKind, ModelConfig, Norm, NormPlacement, Positions, RopeScaling, SpecialTokens,
};
pub use layer_shape::LayerShape;
pub use map::{FactorRanks, MapName, MapShape};
pub use provider::{OuterWeights, WeightError, WeightProvider};
pub use tensor::{DType, Matrix};
pub use weights::{FactorisedMap, Factors, LayerWeights, Linear, NormWeights, Weight};
