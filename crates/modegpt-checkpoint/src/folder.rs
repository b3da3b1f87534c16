//! The file system as a source.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::source::{check_file_name, out_of_range};
use crate::{Error, Source};

/// The files of one folder; sub-folders are not looked into, links are followed.
///
/// Every file is opened once, on first use, and stays open, so that a checkpoint cannot be swapped between two reads.
#[derive(Debug)]
pub struct FolderSource {
    folder: PathBuf,
    open: Mutex<BTreeMap<String, Arc<File>>>,
}

impl FolderSource {
    /// A source of the files in `folder`; nothing is read yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), open: Mutex::default() }
    }

    /// The folder, as given.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The open handle of `file`, or `None` if there is no such regular file.
    fn handle(&self, file: &str) -> Result<Option<Arc<File>>, Error> {
        check_file_name(file)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = open.get(file) {
            return Ok(Some(Arc::clone(handle)));
        }
        let path = self.folder.join(file);
        // Opening a pipe would wait for a writer, so the kind is asked for first.
        let is_file = match path.metadata() {
            Ok(metadata) => metadata.is_file(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(self.failure(file, &error)),
        };
        if !is_file {
            return Ok(None);
        }
        let handle = Arc::new(File::open(path).map_err(|error| self.failure(file, &error))?);
        open.insert(file.to_owned(), Arc::clone(&handle));
        Ok(Some(handle))
    }

    fn failure(&self, file: &str, error: &io::Error) -> Error {
        Error::Read { place: self.describe(), file: file.to_owned(), reason: error.to_string() }
    }
}

impl Source for FolderSource {
    fn describe(&self) -> String {
        format!("folder `{}`", self.folder.display())
    }

    fn files(&self) -> Result<Vec<String>, Error> {
        let mut files = Vec::new();
        for entry in self.folder.read_dir().map_err(|error| self.failure(".", &error))? {
            let entry = entry.map_err(|error| self.failure(".", &error))?;
            // A name that is not Unicode cannot be a part of a checkpoint.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if entry.path().is_file() {
                files.push(name);
            }
        }
        files.sort();
        Ok(files)
    }

    fn size(&self, file: &str) -> Result<Option<u64>, Error> {
        let Some(handle) = self.handle(file)? else { return Ok(None) };
        let metadata = handle.metadata().map_err(|error| self.failure(file, &error))?;
        Ok(Some(metadata.len()))
    }

    fn read_at(&self, file: &str, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let missing = || Error::MissingFile { place: self.describe(), file: file.to_owned() };
        let handle = self.handle(file)?.ok_or_else(missing)?;
        match read_exact_at(&handle, offset, buf) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(out_of_range(file, offset, buf.len() as u64, self.size(file)?.unwrap_or(0)))
            }
            result => result.map_err(|error| self.failure(file, &error)),
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n_bytes) => {
                buf = &mut buf[n_bytes..];
                offset += n_bytes as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
