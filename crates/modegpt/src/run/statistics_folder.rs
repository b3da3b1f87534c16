//! Statistics of a whole model on the disk, a file for each layer.

use std::fs;
use std::path::{Path, PathBuf};

use modegpt_statistics::{LayerStatistics, StatisticsHeader};
use modegpt_text::Windows;

use crate::Calibration;
use crate::run::RunError;

/// A folder with one file of statistics for each layer.
#[derive(Clone, Debug)]
pub struct StatisticsFolder {
    folder: PathBuf,
}

impl StatisticsFolder {
    /// The folder at `path`; nothing is read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { folder: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The name of a layer's file.
    pub fn file_name(layer: usize) -> String {
        format!("layer-{layer:05}.safetensors")
    }

    /// Reads a layer's statistics.
    ///
    /// # Errors
    /// [`RunError::Statistics`] if the file is missing, broken, or of another layer or model.
    pub fn read(&self, layer: usize, fingerprint: &str) -> Result<(LayerStatistics, StatisticsHeader), RunError> {
        let file = self.folder.join(Self::file_name(layer));
        let fail = |reason: String| RunError::Statistics { file: file.clone(), reason };
        let bytes = fs::read(&file).map_err(|e| fail(e.to_string()))?;
        let (statistics, header) = LayerStatistics::from_bytes(&bytes).map_err(|e| fail(e.to_string()))?;
        if header.layer != layer {
            return Err(fail(format!("expected statistics of layer {layer}, found layer {}", header.layer)));
        }
        if header.model_fingerprint != fingerprint {
            return Err(fail(format!(
                "expected statistics of the model with fingerprint {fingerprint}, found {}",
                header.model_fingerprint
            )));
        }
        Ok((statistics, header))
    }

    /// What names the samples behind the statistics; their ids are not known any more.
    ///
    /// # Errors
    /// As [`StatisticsFolder::read`].
    pub fn calibration(&self, fingerprint: &str) -> Result<Calibration, RunError> {
        let (_, header) = self.read(0, fingerprint)?;
        let windows = Windows { ids: Vec::new(), n: header.n_samples, seq_len: header.seq_len };
        Ok(Calibration { windows, token_hash: header.token_hash })
    }

    /// Reads every layer once, for its block influence; checks that all come from the same samples.
    ///
    /// # Errors
    /// As [`StatisticsFolder::read`].
    pub fn influences(&self, n_layers: usize, fingerprint: &str) -> Result<(Vec<f64>, StatisticsHeader), RunError> {
        let mut influences = Vec::with_capacity(n_layers);
        let mut first: Option<StatisticsHeader> = None;
        for layer in 0..n_layers {
            let (statistics, header) = self.read(layer, fingerprint)?;
            influences.push(statistics.block_influence());
            let first = first.get_or_insert_with(|| header.clone());
            if (StatisticsHeader { layer: 0, ..header.clone() }) != (StatisticsHeader { layer: 0, ..first.clone() }) {
                let file = self.folder.join(Self::file_name(layer));
                let reason = "comes from other samples than the layers before".to_owned();
                return Err(RunError::Statistics { file, reason });
            }
        }
        first.map(|header| (influences, header)).ok_or_else(|| RunError::Statistics {
            file: self.folder.clone(),
            reason: "a model without layers has no statistics".to_owned(),
        })
    }
}
