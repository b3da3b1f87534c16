//! The folder of a comparison: a note for each finished cell, scratch space, and in the end the report.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use modegpt_checkpoint::{Existing, Journal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::CompareError;

const NOTES: &str = "cells";
const WORK: &str = "work";
const LOCK: &str = "lock";
/// Far above the note of a model with thousands of layers.
const NOTE_LIMIT_BYTES: u64 = 256 << 20;

/// The folder, held by this process.
pub(super) struct CompareFolder {
    path: PathBuf,
    /// Held open, since its lock ends with it.
    _lock: File,
}

/// A note: how something was computed, and what came out.
#[derive(Serialize, Deserialize)]
struct Note<T> {
    computed: Journal,
    found: T,
}

impl CompareFolder {
    /// Makes or enters the folder.
    ///
    /// # Errors
    /// [`CompareError`] if it holds something that `existing` does not allow to be touched, or cannot be written.
    pub(super) fn open(path: &Path, existing: Existing) -> Result<Self, CompareError> {
        let is_empty = match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(io_error(path, error)),
        };
        let notes = path.join(NOTES);
        if !is_empty {
            if !notes.is_dir() {
                return Err(CompareError::Foreign(path.to_owned()));
            }
            if existing == Existing::Refuse {
                return Err(CompareError::Exists(path.to_owned()));
            }
        }
        fs::create_dir_all(&notes).map_err(|e| io_error(&notes, e))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(|e| io_error(&lock_path, e))?;
        lock.try_lock().map_err(|_| CompareError::InUse(path.to_owned()))?;
        let folder = Self { path: path.to_owned(), _lock: lock };
        if existing == Existing::Replace {
            fs::remove_dir_all(&notes).and_then(|()| fs::create_dir(&notes)).map_err(|e| io_error(&notes, e))?;
            folder.clear_work()?;
        }
        Ok(folder)
    }

    /// Where things are kept that are gone in the end.
    pub(super) fn work(&self) -> PathBuf {
        self.path.join(WORK)
    }

    /// Where a model goes that is to be kept.
    pub(super) fn model(&self, name: &str) -> PathBuf {
        self.path.join("models").join(name)
    }

    /// Removes what is in the scratch space.
    pub(super) fn clear_work(&self) -> Result<(), CompareError> {
        remove(&self.work())
    }

    /// What was found before, if it was computed as `computed` says.
    ///
    /// # Errors
    /// [`CompareError::Different`] or [`CompareError::Note`].
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str, computed: &Journal) -> Result<Option<T>, CompareError> {
        let file = self.note(name);
        let bad = |reason: String| CompareError::Note { file: file.clone(), reason };
        match file.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(bad(error.to_string())),
            Ok(found) if found.len() > NOTE_LIMIT_BYTES => {
                return Err(bad(format!("it has {} bytes, more than {NOTE_LIMIT_BYTES}", found.len())));
            }
            Ok(_) => {}
        }
        let bytes = fs::read(&file).map_err(|error| bad(error.to_string()))?;
        let note: Note<T> = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        let differences = differences(&note.computed, computed);
        if differences.is_empty() {
            return Ok(Some(note.found));
        }
        Err(CompareError::Different { file, differences: differences.join("; ") })
    }

    /// Keeps what was found.
    pub(super) fn keep<T: Serialize>(&self, name: &str, computed: &Journal, found: &T) -> Result<(), CompareError> {
        let note = Note { computed: computed.clone(), found };
        let text = serde_json::to_string(&note).expect("notes have only string keys");
        write_whole(&self.note(name), &text)
    }

    /// Writes a file of the report.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), CompareError> {
        write_whole(&self.path.join(name), text)
    }

    /// Ends the work: scratch space and lock are gone.
    pub(super) fn finish(self) -> Result<(), CompareError> {
        self.clear_work()?;
        let lock = self.path.join(LOCK);
        fs::remove_file(&lock).map_err(|e| io_error(&lock, e))
    }

    fn note(&self, name: &str) -> PathBuf {
        self.path.join(NOTES).join(format!("{name}.json"))
    }
}

/// Removes a folder, if it is there.
pub(super) fn remove(folder: &Path) -> Result<(), CompareError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(folder, error)),
        _ => Ok(()),
    }
}

fn differences(was: &Journal, now: &Journal) -> Vec<String> {
    let names = was.keys().chain(now.keys().filter(|name| !was.contains_key(*name)));
    let absent = "absent".to_owned();
    names
        .map(|name| (name, was.get(name).unwrap_or(&absent), now.get(name).unwrap_or(&absent)))
        .filter(|(_, was, now)| was != now)
        .map(|(name, was, now)| format!("{name} was {was}, now {now}"))
        .collect()
}

/// Writes a file that appears whole or not at all.
fn write_whole(path: &Path, text: &str) -> Result<(), CompareError> {
    let temporary = path.with_extension("tmp");
    let written = fs::write(&temporary, text)
        .and_then(|()| File::open(&temporary)?.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| io_error(path, error))
}

fn io_error(path: &Path, reason: io::Error) -> CompareError {
    CompareError::Io { path: path.to_owned(), reason }
}
