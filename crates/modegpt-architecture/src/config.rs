//! The family-independent description of a decoder-only transformer.

use serde_json::Value;

use crate::{LayerShape, family};

/// The model families whose checkpoints can be read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Open Pre-trained Transformers.
    Opt,
    /// Llama 1, 2, 3 and everything published as `LlamaForCausalLM`.
    Llama,
    /// GPT-2.
    Gpt2,
}

/// The elementwise non-linearity of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(0, x)`
    Relu,
    /// `x Φ(x)` with the exact error function.
    Gelu,
    /// GELU in its tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `x σ(x)`
    Silu,
}

/// How hidden units of the MLP are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// `act(x W_up)`
    Plain,
    /// `act(x W_gate) * (x W_up)`
    Gated,
}

/// The normalisation of the residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// `(x - mean) / sqrt(var + eps) * weight + bias`
    Layer {
        /// Added to the variance.
        eps: f64,
    },
    /// `x / sqrt(mean(x²) + eps) * weight`
    Rms {
        /// Added to the mean square.
        eps: f64,
    },
}

/// Where a block normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// `x + f(norm(x))`
    Pre,
    /// `norm(x + f(x))`
    Post,
}

/// The frequency scaling of Llama 3 (`rope_type: "llama3"`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// Low frequencies are divided by this.
    pub factor: f64,
    /// Wavelengths above `original_max_positions / low_freq_factor` are scaled in full.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_positions / high_freq_factor` are left alone.
    pub high_freq_factor: f64,
    /// The context length of pre-training.
    pub original_max_positions: usize,
}

/// How a token's place in the text reaches the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// A learned row for each position, stored `offset` rows into the table.
    Learned {
        /// Rows of the table before position 0.
        offset: usize,
    },
    /// Rotation of query and key by pairs `(p, p + d_head / 2)`.
    Rotary {
        /// Base of the frequencies.
        theta: f64,
        /// Scaling of Llama 3, if any.
        scaling: Option<RopeScaling>,
        /// All frequencies are divided by this (`rope_type: "linear"`); 1 otherwise.
        linear_factor: f64,
    },
}

/// Ids of special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begin of sequence.
    pub bos: Option<u32>,
    /// Ends of sequence: any of them stops generation.
    pub eos: Vec<u32>,
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts about a model, each a field of its configuration")]
/// A decoder-only transformer, described independently of its family's names.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Whose key table applies.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the embedding rows where it is not `d_model` (OPT-350m): the model then projects in and out.
    pub d_embedding: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// *Original* head width. The softmax scale stays `1 / sqrt(d_head)` however narrow the heads become.
    pub d_head: usize,
    /// Longest context in tokens.
    pub max_positions: usize,
    /// How positions enter.
    pub positions: Positions,
    /// The normalisation.
    pub norm: Norm,
    /// Before or after the sublayers.
    pub norm_placement: NormPlacement,
    /// Whether a last normalisation precedes the head.
    pub final_norm: bool,
    /// Whether normalisations carry weights.
    pub norm_affine: bool,
    /// Plain or gated MLP.
    pub mlp: MlpKind,
    /// The non-linearity.
    pub activation: Activation,
    /// Whether query, key, value carry biases.
    pub qkv_bias: bool,
    /// Whether the output map of attention carries a bias.
    pub output_bias: bool,
    /// Whether the maps of the MLP carry biases.
    pub mlp_bias: bool,
    /// Whether the head is the embedding transposed.
    pub tied_head: bool,
    /// Special tokens.
    pub special_tokens: SpecialTokens,
    /// The widths of each layer, first to last.
    pub layers: Vec<LayerShape>,
}

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The architecture is not one of ours.
    #[error("model type `{found}` is not supported: expected one of opt, llama, gpt2, or a folder written by modegpt")]
    UnknownArchitecture {
        /// `model_type` as found.
        found: String,
    },
    /// A field is missing.
    #[error("field `{field}` is missing")]
    Missing {
        /// Its name.
        field: String,
    },
    /// A field holds something unusable.
    #[error("field `{field}`: expected {expected}, found {found}")]
    Invalid {
        /// Its name.
        field: String,
        /// What would be usable.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The model uses something that is not implemented, and would compute something else without it.
    #[error("field `{field}` asks for {feature}, which is not supported")]
    Unsupported {
        /// The field that asks for it.
        field: String,
        /// What it asks for.
        feature: String,
    },
}

impl ModelConfig {
    /// Reads a parsed `config.json`, as published or as written by this project.
    ///
    /// # Errors
    /// [`ConfigError`] if the architecture is unknown, a field is missing or inconsistent, or the model needs a feature
    /// that is not implemented.
    pub fn from_json(json: &Value) -> Result<Self, ConfigError> {
        family::parse(json)
    }

    /// Query heads that share one kv head.
    pub fn group_size(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Whether queries and keys are rotated.
    pub fn is_rotary(&self) -> bool {
        matches!(self.positions, Positions::Rotary { .. })
    }

    /// Angular frequency of each of the `d_head / 2` rotary pairs, in radians per position; empty without rotation.
    pub fn rotary_frequencies(&self) -> Vec<f64> {
        let Positions::Rotary { theta, scaling, linear_factor } = self.positions else {
            return Vec::new();
        };
        (0..self.d_head / 2)
            .map(|pair| {
                let frequency = theta.powf(-2.0 * pair as f64 / self.d_head as f64) / linear_factor;
                scaling.map_or(frequency, |scaling| scaling.apply(frequency))
            })
            .collect()
    }

    /// Matrices of the MLP: 3 where it is gated, else 2.
    pub fn n_mlp_matrices(&self) -> usize {
        match self.mlp {
            MlpKind::Plain => 2,
            MlpKind::Gated => 3,
        }
    }

    /// Linear weights of one block with the given widths and ranks, biases and norms not counted: what a sparsity is a
    /// share of.
    pub fn linear_params(&self, shape: &LayerShape) -> usize {
        self.map_shapes(shape).map(|map| map.params()).sum()
    }

    /// Weights of dense query and key maps at a head width of `d_qk`.
    pub fn query_key_params(&self, d_qk: usize) -> usize {
        self.d_model * d_qk * (self.n_heads + self.n_kv_heads)
    }

    /// Weights of dense value and output maps at a head width of `d_v`.
    pub fn value_output_params(&self, d_v: usize) -> usize {
        self.d_model * d_v * (self.n_heads + self.n_kv_heads)
    }

    /// Weights of a dense MLP with `d_ff` hidden units.
    pub fn mlp_params(&self, d_ff: usize) -> usize {
        self.d_model * d_ff * self.n_mlp_matrices()
    }

    /// Linear weights of all decoder blocks.
    pub fn block_params(&self) -> usize {
        self.layers.iter().map(|shape| self.linear_params(shape)).sum()
    }
}

impl RopeScaling {
    /// Low frequencies are divided by `factor`, high ones kept, those between blended smoothly.
    fn apply(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let original = self.original_max_positions as f64;
        if wavelength < original / self.high_freq_factor {
            frequency
        } else if wavelength > original / self.low_freq_factor {
            frequency / self.factor
        } else {
            let smooth =
                (original / wavelength - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}
