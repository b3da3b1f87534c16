//! What makes a folder of shards a model that others load.

use modegpt_architecture::{DType, ModelConfig, family};
use modegpt_checkpoint::{OutputFolder, index_json};
use modegpt_compress::{Plan, Report};
use serde_json::Value;

use super::{RunError, card};
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
const CONFIGURATION_PY: &str = include_str!("../../python/configuration_modegpt.py");
const MODELING_PY: &str = include_str!("../../python/modeling_modegpt.py");

/// A model whose shards are all written.
pub(super) struct Finished<'a> {
    pub(super) model: &'a Model,
    pub(super) config: &'a ModelConfig,
    pub(super) plan: &'a Plan,
    pub(super) report: &'a Report,
    pub(super) calibration: &'a Calibration,
    pub(super) dtype: DType,
    pub(super) params: (u64, u64),
    pub(super) bytes: (u64, u64),
}

impl Finished<'_> {
    /// Writes everything but the shards; the index last.
    pub(super) fn write(&self, folder: &OutputFolder) -> Result<(), RunError> {
        for name in COMPANIONS {
            if let Some(bytes) = self.model.checkpoint.companion(name, COMPANION_LIMIT_BYTES)? {
                folder.write(name, |out| Ok(out.write_all(&bytes)?))?;
            }
        }
        let text = |name: &str, text: &str| folder.write(name, |out| Ok(out.write_all(text.as_bytes())?)).map(drop);
        text("configuration_modegpt.py", CONFIGURATION_PY)?;
        text("modeling_modegpt.py", MODELING_PY)?;
        text("modegpt_plan.json", &self.plan.to_json())?;
        text("modegpt_report.json", &pretty(&serde_json::to_value(self.report).unwrap_or_default()))?;
        text("README.md", &card::write(self))?;
        let config = family::to_json(self.config, self.model.checkpoint.config_json(), self.dtype);
        text("config.json", &pretty(&config))?;
        text("model.safetensors.index.json", &pretty(&index_json(self.config, self.dtype)))?;
        Ok(())
    }
}

fn pretty(json: &Value) -> String {
    let mut text = serde_json::to_string_pretty(json).unwrap_or_default();
    text.push('\n');
    text
}
