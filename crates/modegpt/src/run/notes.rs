//! What a run notes in its unfinished folder, so that it need not be found again.

use modegpt_checkpoint::{OutputError, OutputFolder};
use serde::{Serialize, de::DeserializeOwned};

/// The note of this name; `None` if it was not written, or not by this version.
pub(super) fn read_note<T: DeserializeOwned>(folder: &OutputFolder, name: &str) -> Option<T> {
    let text = std::fs::read_to_string(folder.path().join(name)).ok()?;
    serde_json::from_str(&text).ok()
}

/// Writes a note.
///
/// # Errors
/// [`OutputError`] if the disk fails.
pub(super) fn write_note<T: Serialize>(folder: &OutputFolder, name: &str, note: &T) -> Result<(), OutputError> {
    let text = serde_json::to_string(note).expect("notes have only string keys");
    folder.write(name, |out| Ok(out.write_all(text.as_bytes())?)).map(|_| ())
}
