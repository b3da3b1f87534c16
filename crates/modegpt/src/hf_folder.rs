//! What makes a set of shards a model that others load.

mod card;

use modegpt_architecture::{DType, ModelConfig, family};
use modegpt_checkpoint::{LoadError, index_json};
use modegpt_compress::{Plan, Report};
use serde_json::Value;

use crate::{Calibration, Model};

/// Files beside the weights that belong to the model and do not change.
const COMPANIONS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "LICENSE",
];
const COMPANION_LIMIT_BYTES: u64 = 256 << 20;
const CONFIGURATION_PY: &str = include_str!("../python/configuration_modegpt.py");
const MODELING_PY: &str = include_str!("../python/modeling_modegpt.py");

/// A model whose shards are all written.
pub(crate) struct Finished<'a> {
    pub(crate) model: &'a Model,
    pub(crate) config: &'a ModelConfig,
    pub(crate) plan: &'a Plan,
    pub(crate) report: &'a Report,
    pub(crate) calibration: &'a Calibration,
    pub(crate) dtype: DType,
    pub(crate) params: (u64, u64),
    pub(crate) bytes: (u64, u64),
}

impl Finished<'_> {
    /// Every file but the shards, by name; the index last.
    pub(crate) fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>, LoadError> {
        let mut files = Vec::new();
        for name in COMPANIONS {
            if let Some(bytes) = self.model.checkpoint.companion(name, COMPANION_LIMIT_BYTES)? {
                files.push((name, bytes));
            }
        }
        let config = family::to_json(self.config, self.model.checkpoint.config_json(), self.dtype);
        let texts = [
            ("configuration_modegpt.py", CONFIGURATION_PY.to_owned()),
            ("modeling_modegpt.py", MODELING_PY.to_owned()),
            ("modegpt_plan.json", self.plan.to_json()),
            ("modegpt_report.json", pretty(&serde_json::to_value(self.report).unwrap_or_default())),
            ("README.md", card::write(self)),
            ("config.json", pretty(&config)),
            ("model.safetensors.index.json", pretty(&index_json(self.config, self.dtype))),
        ];
        files.extend(texts.map(|(name, text)| (name, text.into_bytes())));
        Ok(files)
    }
}

fn pretty(json: &Value) -> String {
    let mut text = serde_json::to_string_pretty(json).unwrap_or_default();
    text.push('\n');
    text
}
