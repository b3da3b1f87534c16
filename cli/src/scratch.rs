//! A folder for work that is not kept.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A folder that is gone when the command ends.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new folder, with the name of the command in its name.
    pub(crate) fn new(command: &str) -> Result<Self, Failure> {
        let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos());
        let path = std::env::temp_dir().join(format!("modegpt-{command}-{}-{nanos}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| Failure::request(format!("cannot make `{}`: {e}", path.display())))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
