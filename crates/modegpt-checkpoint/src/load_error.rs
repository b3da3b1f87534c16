//! Why a model cannot be loaded from a readable checkpoint.

use modegpt_architecture::ConfigError;

use crate::Error;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The files are broken or missing.
    #[error(transparent)]
    Stored(#[from] Error),
    /// `config.json` is not JSON.
    #[error("`{file}` is not valid JSON: {reason}")]
    Json {
        /// Which file.
        file: String,
        /// What the parser said.
        reason: String,
    },
    /// `config.json` does not describe a model that can be run.
    #[error("`config.json`: {0}")]
    Config(#[from] ConfigError),
    /// No tensor has the name that the family gives to its embedding.
    #[error("no embedding found: expected a tensor named {expected}, found {found}")]
    NoEmbedding {
        /// The names looked for.
        expected: String,
        /// Some names that are there.
        found: String,
    },
    /// A tensor is missing.
    #[error("tensor `{name}` is missing: expected shape {expected:?} by `config.json`")]
    Missing {
        /// Which tensor.
        name: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` of `{file}`: expected shape {expected:?} by `config.json`, found {found:?}")]
    Shape {
        /// Which tensor.
        name: String,
        /// Which file.
        file: String,
        /// The shape by the configuration.
        expected: Vec<usize>,
        /// The shape that is stored.
        found: Vec<usize>,
    },
    /// Tensors that the model has no place for.
    #[error(
        "{count} tensors have no place in the model, such as `{name}` of `{file}`: the checkpoint does not fit `config.json`"
    )]
    Extra {
        /// How many.
        count: usize,
        /// The first of them.
        name: String,
        /// Which file holds it.
        file: String,
    },
    /// A tensor that is not stored as f32, f16 or bf16.
    #[error("tensor `{name}` of `{file}`: expected F32, F16 or BF16, found {found}")]
    DType {
        /// Which tensor.
        name: String,
        /// Which file.
        file: String,
        /// What is stored.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error("tensor `{name}` of `{file}` holds {value} at element {element}: expected finite weights")]
    NotFinite {
        /// Which tensor.
        name: String,
        /// Which file.
        file: String,
        /// The value.
        value: f32,
        /// Where, counted row-major.
        element: usize,
    },
    /// A token id beyond the vocabulary.
    #[error(
        "token id {id} does not exist: the model's vocabulary has {vocab} entries; is this the tokenizer of this model?"
    )]
    Token {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A position beyond the context.
    #[error("position {position} does not exist: the model has {max_positions}")]
    Position {
        /// The position.
        position: usize,
        /// Size of the table.
        max_positions: usize,
    },
}
