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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The name of a layer's file.
    pub fn file_name(layer: usize) -> String {
        format!("gradients-{layer:05}.safetensors")
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
