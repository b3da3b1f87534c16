//! Zip archives whose entries are stored as they are, which is what `PyTorch` writes.
//!
//! The directory at the end of the archive is the authority on sizes. From an entry's own header only the place of its
//! data is taken, and that must lie before the next entry.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::source::{file_size, read_range};
use crate::{Error, Source};

/// The most bytes of the directory that are read.
const DIRECTORY_LIMIT_BYTES: u64 = 64 << 20;
/// The sizes of the fixed parts.
const END_BYTES: u64 = 22;
const LOCATOR_BYTES: u64 = 20;
const END64_BYTES: u64 = 56;
const ENTRY_BYTES: usize = 46;
const LOCAL_BYTES: u64 = 30;
/// The longest comment behind the end record.
const COMMENT_LIMIT_BYTES: u64 = 65_535;

/// The directory of an archive.
pub(crate) struct Archive<'a> {
    source: &'a dyn Source,
    file: &'a str,
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Whether its data are neither compressed nor encrypted.
    plain: bool,
    bytes: u64,
    stored_bytes: u64,
    /// Where its own header begins, and where the next entry or the directory does.
    offset: u64,
    limit: u64,
}

impl<'a> Archive<'a> {
    /// Reads the directory.
    ///
    /// # Errors
    /// [`Error::Malformed`] or [`Error::OutOfRange`] if it is not a single valid archive.
    pub(crate) fn open(source: &'a dyn Source, file: &'a str) -> Result<Self, Error> {
        let (n_entries, place) = find_directory(source, file)?;
        let directory = read_range(source, file, place.start, place.end - place.start)?;
        let mut entries = parse_directory(file, &directory, n_entries)?;
        let mut offsets: Vec<u64> = entries.values().map(|entry| entry.offset).chain([place.start]).collect();
        offsets.sort_unstable();
        for (name, entry) in &mut entries {
            let next = offsets.partition_point(|&offset| offset <= entry.offset);
            let found = offsets.get(next);
            entry.limit = *found.ok_or_else(|| malformed(file, format!("`{name}` lies behind the directory")))?;
        }
        Ok(Self { source, file, entries })
    }

    /// The names of all entries, in ascending order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Where the data of an entry lie in the file.
    ///
    /// # Errors
    /// [`Error::Malformed`] if there is no such entry, if it is compressed, or if it does not lie where it should.
    pub(crate) fn data(&self, name: &str) -> Result<Range<u64>, Error> {
        let entry = self.entries.get(name).ok_or_else(|| self.malformed(format!("expected an entry `{name}`")))?;
        if !entry.plain || entry.bytes != entry.stored_bytes {
            return Err(self.malformed(format!("expected `{name}` stored as it is, found it compressed or encrypted")));
        }
        let header = read_range(self.source, self.file, entry.offset, LOCAL_BYTES)?;
        let (name_bytes, extra_bytes) = (u64::from(u16_at(&header, 26)), u64::from(u16_at(&header, 28)));
        let mut found = header.starts_with(b"PK\x03\x04") && name_bytes == name.len() as u64;
        found = found && read_range(self.source, self.file, entry.offset + LOCAL_BYTES, name_bytes)? == name.as_bytes();
        if !found {
            return Err(self.malformed(format!("expected the header of `{name}` at offset {}", entry.offset)));
        }
        let start = entry.offset + LOCAL_BYTES + name_bytes + extra_bytes;
        let end = start.checked_add(entry.bytes).filter(|&end| end <= entry.limit);
        let end = end.ok_or_else(|| self.malformed(format!("`{name}` runs into what follows it")))?;
        Ok(start..end)
    }

    fn malformed(&self, reason: String) -> Error {
        malformed(self.file, reason)
    }
}

/// The number of entries and the place of the directory, from the record at the end of the file.
fn find_directory(source: &dyn Source, file: &str) -> Result<(u64, Range<u64>), Error> {
    let size = file_size(source, file)?;
    let tail_bytes = size.min(END_BYTES + COMMENT_LIMIT_BYTES);
    let tail = read_range(source, file, size - tail_bytes, tail_bytes)?;
    let is_end = |at: &usize| {
        let record = &tail[*at..];
        record.starts_with(b"PK\x05\x06") && record.len() as u64 == END_BYTES + u64::from(u16_at(record, 20))
    };
    let last = (tail.len() + 1).saturating_sub(END_BYTES as usize);
    let at = (0..last).rev().find(is_end).ok_or_else(|| {
        malformed(
            file,
            format!("expected a directory within the last {tail_bytes} of {size} bytes: is the file whole?"),
        )
    })?;
    let end = size - tail_bytes + at as u64;
    let record = &tail[at..];
    let (n_entries, bytes, start, end) = match find_directory64(source, file, end)? {
        Some(found) => found,
        None => (u16_at(record, 10).into(), u32_at(record, 12).into(), u32_at(record, 16).into(), end),
    };
    if start.checked_add(bytes) != Some(end) {
        return Err(malformed(
            file,
            format!("expected the directory to end at {end}, found {bytes} bytes from {start}"),
        ));
    }
    if bytes > DIRECTORY_LIMIT_BYTES {
        let (file, what) = (file.to_owned(), "the zip directory");
        return Err(Error::TooLarge { file, what, limit: DIRECTORY_LIMIT_BYTES, found: bytes });
    }
    Ok((n_entries, start..end))
}

/// The same from the 64-bit records before the one at `end`, if there are any: entries, bytes, start, end.
fn find_directory64(source: &dyn Source, file: &str, end: u64) -> Result<Option<(u64, u64, u64, u64)>, Error> {
    let Some(at) = end.checked_sub(LOCATOR_BYTES) else { return Ok(None) };
    let locator = read_range(source, file, at, LOCATOR_BYTES)?;
    if !locator.starts_with(b"PK\x06\x07") {
        return Ok(None);
    }
    let record_at = u64_at(&locator, 8);
    let record = read_range(source, file, record_at, END64_BYTES)?;
    if !record.starts_with(b"PK\x06\x06") {
        return Err(malformed(file, format!("expected a 64-bit end record at offset {record_at}")));
    }
    Ok(Some((u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48), record_at)))
}

fn parse_directory(file: &str, mut rest: &[u8], n_entries: u64) -> Result<BTreeMap<String, Entry>, Error> {
    let mut entries = BTreeMap::new();
    while !rest.is_empty() {
        let (name, entry, bytes) =
            parse_entry(rest).ok_or_else(|| malformed(file, format!("entry {} is broken", entries.len())))?;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(malformed(file, format!("entry `{name}` appears twice")));
        }
        rest = &rest[bytes..];
    }
    if entries.len() as u64 != n_entries {
        return Err(malformed(file, format!("expected {n_entries} entries, found {}", entries.len())));
    }
    Ok(entries)
}

/// The name and content of the first entry, and the bytes it takes in the directory.
fn parse_entry(rest: &[u8]) -> Option<(String, Entry, usize)> {
    let fixed = rest.get(..ENTRY_BYTES).filter(|fixed| fixed.starts_with(b"PK\x01\x02"))?;
    let extra_at = ENTRY_BYTES + usize::from(u16_at(fixed, 28));
    let comment_at = extra_at + usize::from(u16_at(fixed, 30));
    let end = comment_at + usize::from(u16_at(fixed, 32));
    let name = std::str::from_utf8(rest.get(ENTRY_BYTES..extra_at)?).ok()?;
    let mut wide = wide_fields(rest.get(extra_at..comment_at)?)?;
    let mut field = |at| match u32_at(fixed, at) {
        u32::MAX => {
            let (number, rest) = wide.split_first_chunk()?;
            wide = rest;
            Some(u64::from_le_bytes(*number))
        }
        narrow => Some(narrow.into()),
    };
    let (bytes, stored_bytes, offset) = (field(24)?, field(20)?, field(42)?);
    let plain = u16_at(fixed, 10) == 0 && u16_at(fixed, 8) & 1 == 0;
    rest.get(..end)?;
    Some((name.to_owned(), Entry { plain, bytes, stored_bytes, offset, limit: 0 }, end))
}

/// The content of extra field 1, which holds those of size, stored size and offset that need 64 bits.
fn wide_fields(mut extra: &[u8]) -> Option<&[u8]> {
    while let Some((header, rest)) = extra.split_first_chunk::<4>() {
        let (content, next) = rest.split_at_checked(u16_at(header, 2).into())?;
        if u16_at(header, 0) == 1 {
            return Some(content);
        }
        extra = next;
    }
    Some(&[])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn malformed(file: &str, reason: String) -> Error {
    Error::Malformed { file: file.to_owned(), format: "zip", reason }
}
