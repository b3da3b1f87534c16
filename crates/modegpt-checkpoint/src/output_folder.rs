//! A folder that appears whole or not at all.
//!
//! Work goes to `<target>.partial`, each file under a temporary name until it is complete and on the disk. A journal
//! there records what the run was asked to do. When all is done the folder is renamed to `<target>`. A run that is killed
//! at any moment therefore leaves no `<target>`, and can be continued from the files that are complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::SaveError;

const JOURNAL: &str = "journal.json";
const LOCK: &str = "lock";

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
    replace: bool,
    /// Held open, since its lock ends with it.
    _lock: File,
}

impl OutputFolder {
    /// Begins, or continues, writing `target`.
    ///
    /// # Errors
    /// [`OutputError`] if there is something that `existing` does not allow to be touched, or the disk fails.
    pub fn begin(target: &Path, existing: Existing, journal: &Journal) -> Result<Self, OutputError> {
        check_target(target, existing)?;
        let partial = with_ending(target, ".partial");
        let resume = partial.join(JOURNAL).exists() && existing == Existing::Resume;
        // A run that is still at work there keeps its folder, whatever is asked.
        if existing != Existing::Refuse
            && let Ok(lock) = File::open(partial.join(LOCK))
        {
            lock.try_lock().map_err(|_| OutputError::InUse(partial.clone()))?;
        }
        if partial.exists() && !resume {
            // Without a journal nothing tells what the files there were made from.
            match existing {
                Existing::Refuse => return Err(OutputError::Unfinished(partial)),
                _ => fs::remove_dir_all(&partial).map_err(|e| io_error(&partial, e))?,
            }
        }
        fs::create_dir_all(&partial).map_err(|e| io_error(&partial, e))?;
        let lock_path = partial.join(LOCK);
        let lock = File::create(&lock_path).map_err(|e| io_error(&lock_path, e))?;
        lock.try_lock().map_err(|_| OutputError::InUse(partial.clone()))?;
        let folder = Self { target: target.to_owned(), partial, replace: existing == Existing::Replace, _lock: lock };
        if resume {
            folder.compare(journal)?;
        } else {
            let text = serde_json::to_string_pretty(journal).unwrap_or_default();
            folder.write(JOURNAL, |out| Ok(out.write_all(text.as_bytes())?))?;
        }
        Ok(folder)
    }

    /// The folder in which the work is done.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Whether `file` is complete.
    pub fn has(&self, file: &str) -> bool {
        self.partial.join(file).exists()
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
        let path = self.partial.join(file);
        let temporary = with_ending(&path, ".tmp");
        let write = || -> Result<u64, OutputError> {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|e| io_error(parent, e))?;
            }
            let mut out = BufWriter::new(File::create(&temporary).map_err(|e| io_error(&path, e))?);
            content(&mut out).map_err(|reason| OutputError::Content { path: path.clone(), reason })?;
            let out = out.into_inner().map_err(|e| io_error(&path, e.into_error()))?;
            out.sync_all().map_err(|e| io_error(&path, e))?;
            let bytes = out.metadata().map_err(|e| io_error(&path, e))?.len();
            fs::rename(&temporary, &path).map_err(|e| io_error(&path, e))?;
            Ok(bytes)
        };
        write().inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// Removes a file or folder that only the work needed.
    ///
    /// # Errors
    /// [`OutputError::Io`].
    pub fn remove(&self, name: &str) -> Result<(), OutputError> {
        let path = self.partial.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error(&path, e)),
            _ => Ok(()),
        }
    }

    /// Gives up after an error: a folder in which no work was completed goes, one that can be resumed stays. Says whether
    /// it stays.
    pub fn abandon(self) -> bool {
        let holds_work = fs::read_dir(&self.partial).is_ok_and(|entries| {
            entries
                .flatten()
                .any(|entry| entry.file_name() != JOURNAL && entry.file_name() != LOCK && !is_empty(&entry.path()))
        });
        if !holds_work {
            // What cannot be removed can still be replaced with --force.
            drop(fs::remove_dir_all(&self.partial));
        }
        holds_work
    }

    /// Makes the work appear under its name.
    ///
    /// # Errors
    /// [`OutputError::Io`]; the work is then still in the unfinished folder.
    pub fn commit(self) -> Result<PathBuf, OutputError> {
        sync_folder(&self.partial)?;
        let old = with_ending(&self.target, ".old");
        if self.target.exists() {
            if self.replace {
                fs::rename(&self.target, &old).map_err(|e| io_error(&old, e))?;
            } else {
                // An empty folder, or the rename fails.
                fs::remove_dir(&self.target).map_err(|e| io_error(&self.target, e))?;
            }
        }
        fs::rename(&self.partial, &self.target).map_err(|e| io_error(&self.target, e))?;
        // Only now, so that a run killed before the rename still knows what it was asked.
        for file in [JOURNAL, LOCK] {
            let path = self.target.join(file);
            fs::remove_file(&path).map_err(|e| io_error(&path, e))?;
        }
        if old.exists() {
            fs::remove_dir_all(&old).map_err(|e| io_error(&old, e))?;
        }
        let parent = self.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_folder(parent)?;
        Ok(self.target)
    }

    fn compare(&self, journal: &Journal) -> Result<(), OutputError> {
        let path = self.partial.join(JOURNAL);
        let text = fs::read_to_string(&path).map_err(|e| io_error(&path, e))?;
        let before: Journal = serde_json::from_str(&text).map_err(|e| io_error(&path, e.into()))?;
        let names: std::collections::BTreeSet<&String> = before.keys().chain(journal.keys()).collect();
        let show = |value: Option<&String>| value.map_or("nothing", String::as_str).to_owned();
        let differences: Vec<String> = names
            .into_iter()
            .filter(|name| before.get(*name) != journal.get(*name))
            .map(|name| format!("{name} was {}, now {}", show(before.get(name)), show(journal.get(name))))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(OutputError::Different { folder: self.partial.clone(), differences: differences.join("; ") })
    }
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
