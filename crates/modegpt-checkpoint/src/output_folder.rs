//! A folder that appears whole or not at all.
//!
//! Work goes to `<target>.partial/output`, each file under a temporary name until it is complete and on the disk. Beside
//! it, in `<target>.partial`, a journal records what the run was asked to do, and a lock says that it is alive. When all
//! is done `output` is renamed to `<target>`, and `<target>.partial` is removed. A run that is killed at any moment
//! therefore leaves either no `<target>`, and can be continued from the files that are complete, or a whole one; what it
//! leaves beside a whole one holds no work, and the next run clears it away.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::SaveError;

const JOURNAL: &str = "journal.json";
const LOCK: &str = "lock";
const OUTPUT: &str = "output";
/// An earlier target, between the moment it makes room and the moment it is removed.
const REPLACED: &str = "replaced";

/// What a run was asked to do, by name: whoever continues it must have been asked the same.
pub type Journal = BTreeMap<String, String>;

/// What to do if the target or an unfinished run is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    Refuse,
    /// Continue an unfinished run, if it was asked the same.
    Resume,
    /// Replace both.
    Replace,
}

/// Why the output cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The target holds something.
    #[error("`{0}` exists and is not empty: choose another name, or pass --force to replace it")]
    Exists(PathBuf),
    /// The target is no folder.
    #[error("`{0}` exists and is not a folder")]
    NotAFolder(PathBuf),
    /// An earlier run was not finished.
    #[error("`{0}` holds an unfinished run: pass --resume to continue it, or --force to begin anew")]
    Unfinished(PathBuf),
    /// The unfinished run was asked something else.
    #[error("cannot resume `{folder}`, which was begun differently: {differences}")]
    Different {
        /// The unfinished folder.
        folder: PathBuf,
        /// What differs.
        differences: String,
    },
    /// Another process works there.
    #[error("`{0}` is in use by another run")]
    InUse(PathBuf),
    /// The file system failed, for instance because the disk is full.
    #[error("cannot write `{path}`: {reason}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The content could not be made.
    #[error("cannot write `{path}`: {reason}")]
    Content {
        /// Where.
        path: PathBuf,
        /// Why.
        reason: SaveError,
    },
}

/// The folder being written.
#[derive(Debug)]
pub struct OutputFolder {
    target: PathBuf,
    partial: PathBuf,
    output: PathBuf,
    replace: bool,
    /// Held open, since its lock ends with it.
    lock: File,
}

impl OutputFolder {
    /// Begins, or continues, writing `target`.
    ///
    /// # Errors
    /// [`OutputError`] if there is something that `existing` does not allow to be touched, or the disk fails.
    pub fn begin(target: &Path, existing: Existing, journal: &Journal) -> Result<Self, OutputError> {
        check_target(target, existing)?;
        let partial = with_ending(target, ".partial");
        let is_leftover = is_leftover(&partial);
        if existing == Existing::Refuse && partial.exists() && !is_leftover {
            return Err(OutputError::Unfinished(partial));
        }
        let lock_path = partial.join(LOCK);
        // A run that is still at work there keeps its folder, whatever is asked.
        if let Ok(lock) = File::open(&lock_path) {
            lock.try_lock().map_err(|_| OutputError::InUse(partial.clone()))?;
        }
        let resume = existing == Existing::Resume && !is_leftover && partial.join(JOURNAL).exists();
        if partial.exists() && !resume {
            // Without a journal nothing tells what the files there were made from.
            fs::remove_dir_all(&partial).map_err(|e| io_error(&partial, e))?;
        }
        fs::create_dir_all(&partial).map_err(|e| io_error(&partial, e))?;
        let lock = File::create(&lock_path).map_err(|e| io_error(&lock_path, e))?;
        lock.try_lock().map_err(|_| OutputError::InUse(partial.clone()))?;
        if resume {
            compare(&partial, journal)?;
        } else {
            let text = serde_json::to_string_pretty(journal).unwrap_or_default();
            write_file(&partial.join(JOURNAL), |out| Ok(out.write_all(text.as_bytes())?))?;
        }
        let output = partial.join(OUTPUT);
        fs::create_dir_all(&output).map_err(|e| io_error(&output, e))?;
        Ok(Self { target: target.to_owned(), partial, output, replace: existing == Existing::Replace, lock })
    }

    /// The folder in which the work is done.
    pub fn path(&self) -> &Path {
        &self.output
    }

    /// Whether `file` is complete.
    pub fn has(&self, file: &str) -> bool {
        self.output.join(file).exists()
    }

    /// Writes a file, which appears only when it is complete and on the disk; gives its size in bytes.
    ///
    /// # Errors
    /// [`OutputError::Io`] or [`OutputError::Content`].
    pub fn write(
        &self,
        file: &str,
        content: impl FnOnce(&mut dyn Write) -> Result<(), SaveError>,
    ) -> Result<u64, OutputError> {
        write_file(&self.output.join(file), content)
    }

    /// Removes a file or folder that only the work needed.
    ///
    /// # Errors
    /// [`OutputError::Io`].
    pub fn remove(&self, name: &str) -> Result<(), OutputError> {
        let path = self.output.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error(&path, e)),
            _ => Ok(()),
        }
    }

    /// Gives up after an error: a folder in which no work was completed goes, one that can be resumed stays and is given
    /// back.
    pub fn abandon(self) -> Option<PathBuf> {
        let holds_work =
            fs::read_dir(&self.output).is_ok_and(|entries| entries.flatten().any(|entry| !is_empty(&entry.path())));
        if holds_work {
            return Some(self.partial);
        }
        // What cannot be removed can still be replaced with --force.
        drop(fs::remove_dir_all(&self.partial));
        None
    }

    /// Makes the work appear under its name.
    ///
    /// # Errors
    /// [`OutputError::Io`]; the work is then still in the unfinished folder, or already under its name.
    pub fn commit(self) -> Result<PathBuf, OutputError> {
        self.publish()?;
        self.clear()
    }

    /// The one step after which the work is there.
    fn publish(&self) -> Result<(), OutputError> {
        sync_folder(&self.output)?;
        if self.target.exists() {
            if self.replace {
                let old = self.partial.join(REPLACED);
                fs::rename(&self.target, &old).map_err(|e| io_error(&old, e))?;
            } else {
                // An empty folder, or the rename fails.
                fs::remove_dir(&self.target).map_err(|e| io_error(&self.target, e))?;
            }
        }
        fs::rename(&self.output, &self.target).map_err(|e| io_error(&self.target, e))?;
        let parent = self.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_folder(parent)
    }

    /// Removes what only the work needed. The lock goes last, and then nothing but an empty folder: another run may
    /// already be at work there.
    fn clear(self) -> Result<PathBuf, OutputError> {
        let Self { target, partial, lock, .. } = self;
        let old = partial.join(REPLACED);
        if old.exists() {
            fs::remove_dir_all(&old).map_err(|e| io_error(&old, e))?;
        }
        for file in [JOURNAL, LOCK] {
            let path = partial.join(file);
            fs::remove_file(&path).map_err(|e| io_error(&path, e))?;
        }
        drop(lock);
        drop(fs::remove_dir(&partial));
        Ok(target)
    }
}

/// Writes a file, which appears only when it is complete and on the disk; gives its size in bytes.
fn write_file(path: &Path, content: impl FnOnce(&mut dyn Write) -> Result<(), SaveError>) -> Result<u64, OutputError> {
    let temporary = with_ending(path, ".tmp");
    let write = || -> Result<u64, OutputError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| io_error(parent, e))?;
        }
        let mut out = BufWriter::new(File::create(&temporary).map_err(|e| io_error(path, e))?);
        content(&mut out).map_err(|reason| OutputError::Content { path: path.to_owned(), reason })?;
        let out = out.into_inner().map_err(|e| io_error(path, e.into_error()))?;
        out.sync_all().map_err(|e| io_error(path, e))?;
        let bytes = out.metadata().map_err(|e| io_error(path, e))?.len();
        fs::rename(&temporary, path).map_err(|e| io_error(path, e))?;
        Ok(bytes)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Refuses to continue what was asked to do something else.
fn compare(partial: &Path, journal: &Journal) -> Result<(), OutputError> {
    let path = partial.join(JOURNAL);
    let text = fs::read_to_string(&path).map_err(|e| io_error(&path, e))?;
    let before: Journal = serde_json::from_str(&text).map_err(|e| io_error(&path, e.into()))?;
    let names: std::collections::BTreeSet<&String> = before.keys().chain(journal.keys()).collect();
    let show = |value: Option<&String>| value.map_or("not given", String::as_str).to_owned();
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| before.get(*name) != journal.get(*name))
        .map(|name| format!("{name} was {}, now {}", show(before.get(name)), show(journal.get(name))))
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(OutputError::Different { folder: partial.to_owned(), differences: differences.join("; ") })
}

/// Whether `partial` is a folder that a run had just begun with, or had not yet removed when its work was already under
/// its name. Folders with anything else in them may be work.
fn is_leftover(partial: &Path) -> bool {
    let is_ours = |name: &std::ffi::OsStr| {
        let journal_being_written = with_ending(Path::new(JOURNAL), ".tmp");
        name == JOURNAL || name == LOCK || name == REPLACED || name == journal_being_written
    };
    fs::read_dir(partial).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|e| is_ours(&e.file_name()))))
}

/// Whether `path` is a folder without files.
fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn check_target(target: &Path, existing: Existing) -> Result<(), OutputError> {
    if !target.exists() {
        return Ok(());
    }
    if !target.is_dir() {
        return Err(OutputError::NotAFolder(target.to_owned()));
    }
    let is_empty = fs::read_dir(target).map_err(|e| io_error(target, e))?.next().is_none();
    if is_empty || existing == Existing::Replace { Ok(()) } else { Err(OutputError::Exists(target.to_owned())) }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.components().as_path().as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn sync_folder(path: &Path) -> Result<(), OutputError> {
    // Windows cannot open folders; its renames are durable by themselves.
    if cfg!(unix) {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(|e| io_error(path, e))?;
    }
    Ok(())
}

fn io_error(path: &Path, reason: io::Error) -> OutputError {
    OutputError::Io { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests;
