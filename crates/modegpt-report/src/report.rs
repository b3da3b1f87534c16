//! The report as a value.

use serde::{Deserialize, Serialize};

/// Everything that a comparison found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareReport {
    /// Version of the format, [`CompareReport::VERSION`].
    pub version: u32,
    /// How it was measured.
    pub protocol: Protocol,
    /// The methods, in the order asked for.
    pub methods: Vec<MethodFacts>,
    /// The shares of the block weights that were asked to be removed, ascending.
    pub sparsities: Vec<f64>,
    /// The model as it was.
    pub dense: Measured,
    /// One entry for each method, sparsity and seed.
    pub cells: Vec<Cell>,
    /// What layers offered to the methods that looked, for the first seed.
    pub curves: Vec<MethodCurves>,
    /// What each decision is worth, if that was asked.
    pub ablation: Option<Ablation>,
}

impl CompareReport {
    /// The version that this crate writes.
    pub const VERSION: u32 = 1;
}

/// How everything was measured: enough to measure it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Name and version of the program.
    pub program: String,
    /// The command line.
    pub command: String,
    /// What computed.
    pub device: String,
    /// The model.
    pub model: ModelFacts,
    /// What it was calibrated on.
    pub calibration: CalibrationFacts,
    /// What it was scored on.
    pub texts: Vec<TextFacts>,
    /// The questions it was asked.
    pub tasks: Vec<TaskFacts>,
    /// How the speed of reading was measured, if it was.
    pub reading: Option<String>,
    /// What it was to continue.
    pub prompt: String,
    /// By so many tokens at most, always the likeliest.
    pub sample_tokens: usize,
}

/// The model that was compressed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFacts {
    /// What the user called it.
    pub name: String,
    /// Hash of its weights.
    pub fingerprint: String,
    /// All parameters.
    pub params: u64,
    /// Linear weights of the decoder blocks: what sparsities are shares of.
    pub block_params: u64,
    /// Bytes of all weights.
    pub bytes: u64,
    /// Decoder blocks.
    pub n_layers: usize,
}

/// The samples that statistics were collected on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationFacts {
    /// Names of the texts.
    pub texts: Vec<String>,
    /// Samples.
    pub n_samples: usize,
    /// Tokens of a sample.
    pub seq_len: usize,
    /// Tokens of the backward pass, if a method needed one.
    pub gradient_tokens: Option<usize>,
    /// One draw for each seed.
    pub draws: Vec<Draw>,
}

/// The samples of one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draw {
    /// The seed.
    pub seed: u64,
    /// SHA-256 of the tokens.
    pub token_hash: String,
    /// Seconds of the forward pass, which all cells of the seed share.
    pub forward_secs: f64,
    /// Seconds of the backward pass, if there was one.
    pub backward_secs: Option<f64>,
}

/// A text that models were scored on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextFacts {
    /// Its name.
    pub name: String,
    /// SHA-256 of the windows' tokens.
    pub token_hash: String,
    /// Windows.
    pub n_windows: usize,
    /// Tokens of a window.
    pub seq_len: usize,
    /// Distance between windows.
    pub stride: usize,
    /// Tokens scored.
    pub n_tokens: u64,
}

/// Questions that models were asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFacts {
    /// The task.
    pub name: String,
    /// Questions.
    pub n: usize,
    /// SHA-256 of the file.
    pub file_hash: String,
    /// SHA-256 of the tokens.
    pub token_hash: String,
}

/// A method by its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodFacts {
    /// What it was asked for as.
    pub name: String,
    /// What it does, in a line.
    pub description: String,
}

/// What one model does, whatever became of it before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// One entry for each text of the protocol.
    pub texts: Vec<TextScore>,
    /// One entry for each task of the protocol.
    pub tasks: Vec<TaskAccuracy>,
    /// How fast many prompts are read at once, in tokens per second.
    pub tokens_per_sec: Option<f64>,
    /// How fast one prompt alone is read.
    #[serde(default)]
    pub tokens_per_sec_alone: Option<f64>,
    /// All parameters.
    pub params: u64,
    /// Bytes of all weights.
    pub bytes: u64,
    /// How it continues the prompt.
    pub sample: String,
}

/// A model's score on a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextScore {
    /// `exp` of the mean loss of a token.
    pub perplexity: f64,
    /// Mean `KL(dense ‖ model)`, in nats a token; `None` for the dense model, or if it was not asked.
    pub kl_divergence: Option<f64>,
    /// Share of tokens at which the dense model's first choice is the same.
    pub top1_agreement: Option<f64>,
}

/// A model's answers to a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskAccuracy {
    /// Share of right answers.
    pub acc: f64,
    /// Standard error of it.
    pub acc_stderr: Option<f64>,
    /// Share of right answers by likelihood per character.
    pub acc_norm: Option<f64>,
    /// Standard error of that.
    #[serde(default)]
    pub acc_norm_stderr: Option<f64>,
}

/// One compressed model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Name of the method.
    pub method: String,
    /// Share of the block weights that was asked to be removed.
    pub sparsity: f64,
    /// Seed of the calibration samples.
    pub seed: u64,
    /// Share of the block weights that was removed.
    pub removed: f64,
    /// What the model does.
    pub measured: Measured,
    /// Seconds of planning and decomposition; calibration and gradients are not counted.
    pub secs: f64,
    /// What the error curves promised.
    pub predicted: Option<Prediction>,
    /// Repeated factorisations.
    pub fallbacks: u32,
    /// What became of each layer.
    pub layers: Vec<LayerFacts>,
}

/// What error curves promised for the whole model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// Sum over all modules.
    pub error: f64,
    /// Its unit: `nats` are comparable with the rise of the logarithm of the perplexity.
    pub unit: String,
}

impl Prediction {
    /// The unit that can be compared with what was measured.
    pub const NATS: &str = "nats";
}

/// One value for each module of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerModule<T> {
    /// Up, gate and down maps.
    pub mlp: T,
    /// Query and key maps.
    pub query_key: T,
    /// Value and output maps.
    pub value_output: T,
}

impl<T> PerModule<T> {
    /// The three with short names.
    pub fn named(&self) -> [(&'static str, &T); 3] {
        [("MLP", &self.mlp), ("QK", &self.query_key), ("VO", &self.value_output)]
    }
}

/// What became of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerFacts {
    /// Inner widths before.
    pub before: PerModule<usize>,
    /// Inner widths after.
    pub after: PerModule<usize>,
    /// Share of each module's weights that was removed.
    pub removed: PerModule<f64>,
    /// Squared error on the calibration samples as a share of the energy of the exact result, as each method predicts it
    /// for its module alone.
    pub predicted: PerModule<f64>,
    /// Squared error of the residual stream behind the layer as a share of its energy, measured on the first text with all
    /// layers compressed; `None` if that was not asked.
    pub incurred: Option<f64>,
}

/// What the layers offered to a method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodCurves {
    /// Name of the method.
    pub method: String,
    /// Unit of the errors.
    pub unit: String,
    /// One entry for each layer.
    pub layers: Vec<LayerCurves>,
}

/// The curves of a layer.
pub type LayerCurves = PerModule<Curve>;

/// Error of a module at each width that it could take.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Ascending; the last is the width before.
    pub widths: Vec<usize>,
    /// One for each width.
    pub errors: Vec<f64>,
}

/// What each decision is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ablation {
    /// The sparsity of all of its cells.
    pub sparsity: f64,
    /// From the paper's recipe to everything, one decision after another.
    pub added: Vec<AblationStep>,
    /// Everything, and everything but one decision.
    pub left_out: Vec<AblationStep>,
}

/// One set of decisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AblationStep {
    /// What was added or left out, in a few words.
    pub label: String,
    /// One cell for each seed.
    pub cells: Vec<Cell>,
}
