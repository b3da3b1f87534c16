//! Sequential reading from a part of a file.

use crate::source::out_of_range;
use crate::{Error, Source};

/// How much is asked of the source at once.
const BUFFER_BYTES: u64 = 64 << 10;

/// A position in a part of a file, with a buffer in front of the source.
pub(crate) struct Input<'a> {
    source: &'a dyn Source,
    file: &'a str,
    /// Where the next byte comes from.
    position: u64,
    /// Where the part ends.
    end: u64,
    buffer: Vec<u8>,
    /// How much of `buffer` was handed out.
    used: usize,
}

impl<'a> Input<'a> {
    /// Reads `file` from `position` up to `end`, which is within the file.
    pub(crate) fn new(source: &'a dyn Source, file: &'a str, position: u64, end: u64) -> Self {
        Self { source, file, position, end, buffer: Vec::new(), used: 0 }
    }

    pub(crate) fn file(&self) -> &'a str {
        self.file
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        self.require(N as u64)?;
        self.fill(&mut array)?;
        Ok(array)
    }

    /// The next `n_bytes` bytes; that many must be left before anything is allocated.
    pub(crate) fn bytes(&mut self, n_bytes: u64) -> Result<Vec<u8>, Error> {
        self.require(n_bytes)?;
        let mut bytes = vec![0; n_bytes as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// The bytes up to the next line feed, which is left out; `None` if it does not come within `limit` bytes.
    pub(crate) fn line(&mut self, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        let mut line = Vec::new();
        while line.len() <= limit {
            match self.byte()? {
                b'\n' => return Ok(Some(line)),
                byte => line.push(byte),
            }
        }
        Ok(None)
    }

    /// Passes over `n_bytes` bytes.
    pub(crate) fn skip(&mut self, n_bytes: u64) -> Result<(), Error> {
        self.require(n_bytes)?;
        self.position += n_bytes;
        self.used = self.used.saturating_add(n_bytes as usize).min(self.buffer.len());
        Ok(())
    }

    fn require(&self, n_bytes: u64) -> Result<(), Error> {
        if n_bytes <= self.end - self.position && usize::try_from(n_bytes).is_ok() {
            return Ok(());
        }
        Err(out_of_range(self.file, self.position, n_bytes, self.end))
    }

    /// Fills `out` through the buffer; that many bytes are left.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < out.len() {
            if self.used == self.buffer.len() {
                self.buffer.resize(BUFFER_BYTES.min(self.end - self.position) as usize, 0);
                self.used = 0;
                self.source.read_at(self.file, self.position, &mut self.buffer)?;
            }
            let n_bytes = (out.len() - done).min(self.buffer.len() - self.used);
            out[done..done + n_bytes].copy_from_slice(&self.buffer[self.used..self.used + n_bytes]);
            self.used += n_bytes;
            self.position += n_bytes as u64;
            done += n_bytes;
        }
        Ok(())
    }
}
