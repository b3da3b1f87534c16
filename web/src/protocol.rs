//! The JSON that travels between page and core, where it is not a type of the core itself.

use std::collections::BTreeSet;

use modegpt::architecture::{Activation, Family, MlpKind, Norm, NormPlacement, WeightProvider};
use modegpt::checkpoint::{Checkpoint, total_params};
use modegpt::compress::{Mode, Rounding};
use modegpt::in_memory::Observed;
use modegpt::statistics::LayerStatistics;
use modegpt::text_tools::Strategy;
use modegpt::{Calibration, CalibrationOptions, EvaluationOptions};
use serde::{Deserialize, Serialize};

/// What a model is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// `OPT`, `Llama` or `GPT-2`.
    pub family: &'static str,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Original head width.
    pub d_head: usize,
    /// Longest context in tokens.
    pub context: usize,
    /// Whether queries and keys are rotated.
    pub rotary: bool,
    /// Whether the MLP has a gate.
    pub gated: bool,
    /// The non-linearity.
    pub activation: &'static str,
    /// The normalisation and its place.
    pub norm: &'static str,
    /// All parameters.
    pub params: u64,
    /// Linear weights of the decoder blocks: what a sparsity is a share of.
    pub block_params: u64,
    /// Bytes of all weights, as stored.
    pub bytes: u64,
    /// Element type, as `config.json` names it.
    pub dtype: &'static str,
    /// Multiples that widths are rounded to unless asked otherwise.
    pub rounding: Rounding,
    /// The widths, layer by layer.
    pub layers: Vec<LayerSummary>,
    /// Files with weights that the index names and that are not there.
    pub missing: Vec<String>,
}

/// The widths of a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerSummary {
    /// Hidden units.
    pub d_ff: usize,
    /// Width of queries and keys, per head.
    pub d_qk: usize,
    /// Width of values, per head.
    pub d_v: usize,
    /// Linear weights of the three modules: MLP, query and key, value and output.
    pub params: [u64; 3],
    /// Whether a tensor of the layer lies in a file that is not there.
    pub incomplete: bool,
}

impl Summary {
    /// The summary of the model in `checkpoint`.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let config = checkpoint.config();
        let lost = checkpoint.index().lost();
        let (keys, root) = checkpoint.keys();
        let is_incomplete = |layer| {
            let prefix = keys.layer_prefix(root, layer);
            lost.range(prefix.clone()..).next().is_some_and(|(name, _)| name.starts_with(&prefix))
        };
        let layers = config.layers.iter().enumerate().map(|(layer, shape)| LayerSummary {
            d_ff: shape.d_ff,
            d_qk: shape.d_qk,
            d_v: shape.d_v,
            params: [
                config.mlp_params(shape.d_ff),
                config.query_key_params(shape.d_qk),
                config.value_output_params(shape.d_v),
            ]
            .map(|n| n as u64),
            incomplete: is_incomplete(layer),
        });
        let missing: BTreeSet<_> = lost.values().cloned().collect();
        Self {
            family: match config.family {
                Family::Opt => "OPT",
                Family::Llama => "Llama",
                Family::Gpt2 => "GPT-2",
            },
            vocab: config.vocab,
            d_model: config.d_model,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            d_head: config.d_head,
            context: config.max_positions,
            rotary: config.is_rotary(),
            gated: config.mlp == MlpKind::Gated,
            activation: match config.activation {
                Activation::Relu => "ReLU",
                Activation::Gelu | Activation::GeluTanh => "GELU",
                Activation::Silu => "SiLU",
            },
            norm: match (config.norm, config.norm_placement) {
                (Norm::Layer { .. }, NormPlacement::Pre) => "LayerNorm, before",
                (Norm::Layer { .. }, NormPlacement::Post) => "LayerNorm, after",
                (Norm::Rms { .. }, NormPlacement::Pre) => "RMSNorm, before",
                (Norm::Rms { .. }, NormPlacement::Post) => "RMSNorm, after",
            },
            params: total_params(config),
            // A browser counts to 2³² in a `usize`.
            block_params: config.layers.iter().map(|shape| config.linear_params(shape) as u64).sum(),
            bytes: checkpoint.bytes(),
            dtype: checkpoint.dtype().torch_name(),
            rounding: Rounding::default_for(config),
            layers: layers.collect(),
            missing: missing.into_iter().collect(),
        }
    }
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// The file's name.
    pub file: String,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Span {
    /// Where the tensors of a layer lie, or those that belong to no layer; in the order of the files.
    pub fn of(checkpoint: &Checkpoint, layer: Option<usize>) -> Vec<Self> {
        let (keys, root) = checkpoint.keys();
        let layers: Vec<_> = match layer {
            Some(layer) => vec![keys.layer_prefix(root, layer)],
            None => (0..checkpoint.config().layers.len()).map(|layer| keys.layer_prefix(root, layer)).collect(),
        };
        let in_layers = |name: &str| layers.iter().any(|prefix| name.starts_with(prefix));
        let entries = checkpoint.index().entries().iter();
        let chosen = entries.filter(|(name, _)| in_layers(name) == layer.is_some());
        let mut spans: Vec<_> = chosen
            .map(|(_, entry)| Self { file: entry.file.clone(), offset: entry.offset, bytes: entry.bytes })
            .collect();
        spans.sort_by(|a, b| (&a.file, a.offset).cmp(&(&b.file, b.offset)));
        spans
    }
}

/// How a model is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CalibrationRequest {
    /// Samples drawn from the text.
    pub samples: usize,
    /// Tokens of each.
    pub seq_len: usize,
    /// Seed of the draw.
    pub seed: u64,
    /// Tokens computed at once.
    pub batch_tokens: usize,
    /// Learn what this mode needs; modes paper and best can be planned afterwards in any case.
    pub mode: Mode,
}

impl From<CalibrationRequest> for CalibrationOptions {
    fn from(request: CalibrationRequest) -> Self {
        let CalibrationRequest { samples, seq_len, seed, .. } = request;
        Self { n_samples: samples, seq_len, seed, strategy: Strategy::Random }
    }
}

/// How a text is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvaluationRequest {
    /// Tokens of a window, which follow each other without overlap.
    pub seq_len: usize,
    /// Score only so many windows; all if left out.
    #[serde(default)]
    pub max_windows: Option<usize>,
    /// Tokens computed at once.
    pub batch_tokens: usize,
}

impl From<EvaluationRequest> for EvaluationOptions {
    fn from(request: EvaluationRequest) -> Self {
        let EvaluationRequest { seq_len, max_windows, batch_tokens } = request;
        Self { seq_len, stride: seq_len, max_windows, batch_tokens }
    }
}

/// How a text is continued.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WriteRequest {
    /// At most so many new tokens.
    pub max_new_tokens: usize,
    /// 0 always takes the likeliest token.
    pub temperature: f64,
    /// Seed of the draws.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WriteResult {
    /// The new text.
    pub text: String,
    /// New tokens.
    pub n_tokens: usize,
}

/// What calibration saw.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatisticsSummary {
    /// Samples.
    pub samples: usize,
    /// Tokens of each.
    pub seq_len: usize,
    /// SHA-256 of their ids.
    pub token_hash: String,
    /// The modes that can be planned by it.
    pub modes: Vec<Mode>,
    /// `1 - mean cos` between input and output of every block.
    pub block_influence: Vec<f64>,
}

impl StatisticsSummary {
    /// The summary of what was observed on the samples of `calibration`.
    pub fn of(calibration: &Calibration, seen: &Observed) -> Self {
        let windows = &calibration.windows;
        Self {
            samples: windows.n,
            seq_len: windows.seq_len,
            token_hash: calibration.token_hash.clone(),
            modes: Mode::ALL.into_iter().filter(|mode| seen.serves(*mode)).collect(),
            block_influence: seen.statistics.iter().map(LayerStatistics::block_influence).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use modegpt::architecture::WeightProvider;
    use modegpt::calibration::{Collect, GramPath};
    use modegpt::checkpoint::MemorySource;
    use modegpt::in_memory::{self, Observation, SparsityRequest};
    use modegpt::model_runtime::Compute;
    use modegpt::text_tools::Corpus;
    use modegpt::{Model, Silent, activation_spectra, evaluate, weight_spectra};
    use serde_json::{Value, json};

    use super::*;

    macro_rules! file {
        ($name:literal) => {
            ($name, include_bytes!(concat!("../../cli/demo/stories260k/", $name)).to_vec())
        };
    }

    fn model() -> Model {
        let files = [file!("config.json"), file!("tokenizer.json"), file!("model.safetensors")];
        Model::open(Arc::new(MemorySource::from_iter(files))).expect("the bundled model")
    }

    /// One of everything that the page is sent.
    fn everything() -> Value {
        let (model, compute) = (model(), Compute::host());
        let corpus = [Corpus::from_plain("text", &"Lily had a cat. ".repeat(40)).expect("text")];
        let request = CalibrationRequest { samples: 2, seq_len: 32, seed: 0, batch_tokens: 64, mode: Mode::Best };
        let calibration = Calibration::draw(&model, &corpus, request.into()).expect("enough text");
        let observation = Observation {
            model: &model,
            calibration: &calibration,
            compute: &compute,
            gram_path: GramPath::Host,
            collect: Collect { logits: true, inputs: true, magnitudes: false },
            gradient_tokens: None,
            batch_tokens: request.batch_tokens,
            reporter: &Silent,
        };
        let seen = pollster::block_on(observation.run()).expect("observes");
        let compress = |request: &str| {
            let request = serde_json::from_str::<SparsityRequest>(request).expect("a request").into();
            let curves = in_memory::curves(&model, &seen, &request, &Silent).expect("curves");
            let plan = in_memory::plan(&model, &seen, curves, &request).expect("a plan");
            let dtype = model.checkpoint.dtype();
            let mut files = BTreeMap::new();
            let report = in_memory::compress(&model, &calibration, &seen, &plan, dtype, &mut files, |_| {});
            (plan, report.expect("compresses"))
        };
        let (plan, report) = compress(r#"{"sparsity": 0.2, "mode": "best"}"#);
        let of_maps = compress(r#"{"sparsity": 0.4, "mode": "svd-llm"}"#);
        let options = EvaluationRequest { seq_len: 32, max_windows: Some(2), batch_tokens: 64 };
        let score = pollster::block_on(evaluate(&model, &corpus, options.into(), &compute, &Silent)).expect("scores");
        let config = model.config();
        let weights = model.checkpoint.layer(0).expect("a layer");
        let dense = weights.clone().into_dense().expect("dense maps");
        let activations =
            activation_spectra(config, &config.layers[0], &dense, &seen.statistics[0], 1e-3).expect("spectra");
        json!({
            "summary": Summary::of(&model.checkpoint),
            "spans": Span::of(&model.checkpoint, Some(0)),
            "spectra": weight_spectra(config, &weights).expect("finite"),
            "statistics": StatisticsSummary::of(&calibration, &seen),
            "activations": activations,
            "plan": plan,
            "report": report,
            "planOfMaps": of_maps.0,
            "reportOfMaps": of_maps.1,
            "evaluation": score,
            "written": WriteResult { text: String::new(), n_tokens: 0 },
        })
    }

    /// Names and kinds of all fields; of lists the first element, of numbers nothing, since platforms round differently.
    fn shape(value: &Value) -> Value {
        match value {
            Value::Object(fields) => fields.iter().map(|(name, field)| (name.clone(), shape(field))).collect(),
            Value::Array(items) => items.iter().take(1).map(shape).collect(),
            Value::Number(_) => json!(0),
            Value::String(_) => json!(""),
            _ => value.clone(),
        }
    }

    /// The TypeScript types are checked against this file; `UPDATE=1` writes it anew.
    #[test]
    fn the_page_is_sent_what_its_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/unit/protocol.json");
        let found = shape(&everything());
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, format!("{found:#}\n")).expect("the file can be written");
        }
        let expected: Value = serde_json::from_str(include_str!("../tests/unit/protocol.json")).expect("JSON");
        assert_eq!(found, expected);
    }

    #[test]
    fn a_summary_counts_what_the_command_line_does() {
        let summary = Summary::of(&model().checkpoint);
        let blocks: u64 = summary.layers.iter().flat_map(|layer| layer.params).sum();
        assert_eq!((summary.params, summary.block_params), (260_032, blocks));
        assert_eq!((summary.family, summary.dtype, summary.context), ("Llama", "float32", 512));
    }

    #[test]
    fn a_summary_says_which_layers_are_not_whole() {
        let shards = modegpt::checkpoint::MemorySource::from_iter(two_shards());
        let checkpoint = Checkpoint::open_incomplete(Arc::new(shards)).expect("a part");
        let summary = Summary::of(&checkpoint);
        assert_eq!(summary.missing, ["two.safetensors"]);
        let incomplete: Vec<_> = summary.layers.iter().map(|layer| layer.incomplete).collect();
        assert_eq!(incomplete, [false, true, true, true, true]);
        checkpoint.layer(0).expect("the first layer");
        let message = checkpoint.layer(1).map(|_| ()).expect_err("the second").to_string();
        assert!(message.contains("lies in `two.safetensors`, which is missing"), "{message}");
    }

    /// The bundled model's configuration, and an index by which all layers but the first lie in a file that is not there.
    fn two_shards() -> Vec<(&'static str, Vec<u8>)> {
        let whole = model();
        let index = whole.checkpoint.index();
        let in_first = |name: &str| !name.contains("layers.") || name.contains("layers.0.");
        let map: BTreeMap<_, _> = index
            .names()
            .map(|name| (name, if in_first(name) { "one.safetensors" } else { "two.safetensors" }))
            .collect();
        let mut header = serde_json::Map::new();
        let mut data = Vec::new();
        for (name, entry) in index.entries().iter().filter(|(name, _)| in_first(name)) {
            let begin = data.len();
            data.extend(index.read_bytes(whole.checkpoint.source(), name).expect("its bytes"));
            let about =
                json!({"dtype": entry.dtype.to_string(), "shape": entry.shape, "data_offsets": [begin, data.len()]});
            header.insert(name.clone(), about);
        }
        let header = Value::Object(header).to_string().into_bytes();
        let shard = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        let index = json!({"weight_map": map}).to_string().into_bytes();
        vec![file!("config.json"), ("model.safetensors.index.json", index), ("one.safetensors", shard)]
    }

    #[test]
    fn every_tensor_lies_in_one_layer_or_in_none() {
        let Model { checkpoint, .. } = model();
        let parts = (0..5).map(Some).chain([None]).map(|layer| Span::of(&checkpoint, layer));
        let mut all: Vec<_> = parts.flatten().map(|span| (span.offset, span.bytes)).collect();
        all.sort_unstable();
        assert_eq!(all.len(), checkpoint.index().entries().len());
        assert!(all.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "{all:?}");
    }

    #[test]
    fn unknown_fields_of_a_request_are_refused() {
        let text = r#"{"samples": 1, "seqLen": 2, "seed": 0, "batchTokens": 3, "mode": "best", "speed": 4}"#;
        let error = serde_json::from_str::<CalibrationRequest>(text).expect_err("unknown");
        assert!(error.to_string().contains("speed"));
    }
}
