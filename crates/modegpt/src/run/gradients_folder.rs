//! Gradients of a whole model on the disk, a file for each layer.

use std::fs;
use std::path::{Path, PathBuf};

use modegpt_statistics::{GradientsHeader, LayerGradients};

use crate::run::RunError;

/// A folder with one file of gradients for each layer; statistics may lie in the same.
#[derive(Clone, Debug)]
pub struct GradientsFolder {
    folder: PathBuf,
}

impl GradientsFolder {
    /// The folder at `path`; nothing is read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { folder: path.into() }
    }

    /// Refuses gradients without the Fisher information of rows, which `calibrate` collects if it is asked to.
    ///
    /// # Errors
    /// [`RunError::NoGradients`], or as [`read`](Self::read) for the first layer.
    pub fn check_row_fisher(&self, fingerprint: &str) -> Result<(), RunError> {
        let (_, header) = self.read(0, fingerprint)?;
        if header.row_fisher.is_some() {
            return Ok(());
        }
        let folder = self.folder.display();
        let reason = format!("those in `{folder}` tell nothing of rows: make them with calibrate --mode fwsvd");
        Err(RunError::NoGradients { reason })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The name of a layer's file.
    pub fn file_name(layer: usize) -> String {
        format!("gradients-{layer:05}.safetensors")
    }

    /// The folder at `path`, which must hold a file for each layer.
    ///
    /// # Errors
    /// [`RunError::NoGradients`].
    pub fn of_all_layers(path: impl Into<PathBuf>, n_layers: usize) -> Result<Self, RunError> {
        let folder = path.into();
        match (0..n_layers).map(Self::file_name).find(|file| !folder.join(file).is_file()) {
            None => Ok(Self { folder }),
            Some(file) => {
                let reason =
                    format!("`{}` has no {file}: make the statistics with calibrate --fisher", folder.display());
                Err(RunError::NoGradients { reason })
            }
        }
    }

    /// Reads a layer's gradients.
    ///
    /// # Errors
    /// [`RunError::Statistics`] if the file is missing, broken, or of another layer or model.
    pub fn read(&self, layer: usize, fingerprint: &str) -> Result<(LayerGradients, GradientsHeader), RunError> {
        let file = self.folder.join(Self::file_name(layer));
        let fail = |reason: String| RunError::Statistics { file: file.clone(), reason };
        let bytes = fs::read(&file).map_err(|e| fail(e.to_string()))?;
        let (gradients, header) = LayerGradients::from_bytes(&bytes).map_err(|e| fail(e.to_string()))?;
        if header.layer != layer {
            return Err(fail(format!("expected gradients of layer {layer}, found layer {}", header.layer)));
        }
        if header.model_fingerprint != fingerprint {
            return Err(fail(format!(
                "expected gradients of the model with fingerprint {fingerprint}, found {}",
                header.model_fingerprint
            )));
        }
        Ok((gradients, header))
    }
}
