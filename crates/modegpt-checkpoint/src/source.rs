//! Where the bytes of a checkpoint come from.

use std::collections::BTreeMap;

use crate::Error;

/// A bag of named files, readable at any offset.
///
/// The file system is one implementation, memory another; a browser brings a third. Names are plain: no folders.
pub trait Source: Send + Sync {
    /// What to call the source in messages, such as ``folder `models/x` ``.
    fn describe(&self) -> String;

    /// The names of all files, in ascending order.
    ///
    /// # Errors
    /// [`Error::Read`] if they cannot be listed.
    fn files(&self) -> Result<Vec<String>, Error>;

    /// The size of `file` in bytes, or `None` if there is no such file.
    ///
    /// # Errors
    /// [`Error::Read`] if that cannot be told, [`Error::FileName`] if the name is not plain.
    fn size(&self, file: &str) -> Result<Option<u64>, Error>;

    /// Fills the whole of `buf` from `file`, beginning `offset` bytes after its start.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::OutOfRange`] if the file ends before `buf` is full, [`Error::Read`] for the rest.
    fn read_at(&self, file: &str, offset: u64, buf: &mut [u8]) -> Result<(), Error>;
}

/// Files held in memory, by name.
#[derive(Clone, Debug, Default)]
pub struct MemorySource(pub BTreeMap<String, Vec<u8>>);

impl<N: Into<String>> FromIterator<(N, Vec<u8>)> for MemorySource {
    fn from_iter<I: IntoIterator<Item = (N, Vec<u8>)>>(files: I) -> Self {
        Self(files.into_iter().map(|(name, bytes)| (name.into(), bytes)).collect())
    }
}

impl Source for MemorySource {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn files(&self) -> Result<Vec<String>, Error> {
        Ok(self.0.keys().cloned().collect())
    }

    fn size(&self, file: &str) -> Result<Option<u64>, Error> {
        Ok(self.0.get(file).map(|bytes| bytes.len() as u64))
    }

    fn read_at(&self, file: &str, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let bytes =
            self.0.get(file).ok_or_else(|| Error::MissingFile { place: self.describe(), file: file.to_owned() })?;
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(buf.len())?))
            .and_then(|range| bytes.get(range))
            .ok_or_else(|| out_of_range(file, offset, buf.len() as u64, bytes.len() as u64))?;
        buf.copy_from_slice(found);
        Ok(())
    }
}

/// Reads a whole file of at most `limit_bytes`.
///
/// # Errors
/// [`Error::MissingFile`], [`Error::TooLarge`] if the file is larger than the limit, and what [`Source::read_at`] gives.
pub fn read_file(source: &dyn Source, file: &str, limit_bytes: u64) -> Result<Vec<u8>, Error> {
    let size = file_size(source, file)?;
    if size > limit_bytes {
        return Err(Error::TooLarge { file: file.to_owned(), what: "the content", limit: limit_bytes, found: size });
    }
    read_range(source, file, 0, size)
}

/// The size of a file that must exist.
pub(crate) fn file_size(source: &dyn Source, file: &str) -> Result<u64, Error> {
    source.size(file)?.ok_or_else(|| Error::MissingFile { place: source.describe(), file: file.to_owned() })
}

/// Reads `bytes` bytes at `offset`, after a look at the size of the file, so that a lie cannot cost memory.
pub(crate) fn read_range(source: &dyn Source, file: &str, offset: u64, bytes: u64) -> Result<Vec<u8>, Error> {
    let size = file_size(source, file)?;
    let fits = offset.checked_add(bytes).is_some_and(|end| end <= size);
    let n_bytes = usize::try_from(bytes).ok().filter(|_| fits);
    let mut buf = vec![0; n_bytes.ok_or_else(|| out_of_range(file, offset, bytes, size))?];
    source.read_at(file, offset, &mut buf)?;
    Ok(buf)
}

/// Refuses every name that could lead out of a folder.
pub(crate) fn check_file_name(file: &str) -> Result<(), Error> {
    let plain = !matches!(file, "" | "." | "..") && !file.contains(['/', '\\', ':', '\0']);
    if plain { Ok(()) } else { Err(Error::FileName { file: file.to_owned() }) }
}

pub(crate) fn out_of_range(file: &str, offset: u64, bytes: u64, size: u64) -> Error {
    Error::OutOfRange { file: file.to_owned(), offset, bytes, size }
}
