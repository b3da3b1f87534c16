//! Every tensor of a checkpoint, by name, whatever the format of its files.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::source::{file_size, read_range};
use crate::{Error, Source, TensorEntry, pytorch, safetensors, shards};

/// How much of either end of a tensor goes into [`TensorIndex::fingerprint`], in bytes.
const FINGERPRINT_BYTES: u64 = 4096;

/// Which of the known layouts a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `model.safetensors.index.json` and its shards.
    ShardedSafetensors,
    /// One safetensors file.
    Safetensors,
    /// `pytorch_model.bin.index.json` and its shards.
    ShardedPytorch,
    /// `pytorch_model.bin`.
    Pytorch,
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ShardedSafetensors => "safetensors shards",
            Self::Safetensors => "safetensors",
            Self::ShardedPytorch => "PyTorch shards",
            Self::Pytorch => "PyTorch",
        })
    }
}

/// The layouts with a fixed file name, best first. A lone `*.safetensors` of another name comes after the second.
const KNOWN_FILES: [(&str, Format); 4] = [
    ("model.safetensors.index.json", Format::ShardedSafetensors),
    ("model.safetensors", Format::Safetensors),
    ("pytorch_model.bin.index.json", Format::ShardedPytorch),
    ("pytorch_model.bin", Format::Pytorch),
];

/// Every tensor of a checkpoint, by name: what it is and where it lies.
///
/// Opening reads headers only and checks all of them; tensors are read one at a time, when asked for.
///
/// # Examples
/// ```
/// # fn main() -> Result<(), modegpt_checkpoint::Error> {
/// use modegpt_checkpoint::{MemorySource, TensorIndex};
///
/// let header = br#"{"scale":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}} "#;
/// let mut file = (header.len() as u64).to_le_bytes().to_vec();
/// file.extend_from_slice(header);
/// file.extend_from_slice(&[0x00, 0x3c, 0x00, 0xc0]);
/// let source: MemorySource = [("model.safetensors", file)].into_iter().collect();
///
/// let index = TensorIndex::open(&source)?;
/// assert_eq!(index.read_f32(&source, "scale")?, [1.0, -2.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TensorIndex {
    format: Format,
    file: String,
    entries: BTreeMap<String, TensorEntry>,
    file_bytes: BTreeMap<String, u64>,
    /// By tensor, the shard that is not there.
    lost: BTreeMap<String, String>,
}

impl TensorIndex {
    /// Finds the weights of a checkpoint and reads their headers.
    ///
    /// Preferred in this order: `model.safetensors.index.json` with its shards, `model.safetensors`, the only
    /// `*.safetensors`, `pytorch_model.bin.index.json` with its shards, `pytorch_model.bin`.
    ///
    /// # Errors
    /// [`Error::NoWeights`] if there is none of these, and whatever is wrong with the chosen files.
    pub fn open(source: &dyn Source) -> Result<Self, Error> {
        let (file, format) = choose(source)?;
        let entries = match format {
            Format::ShardedSafetensors => shards::entries(source, &file, safetensors::entries)?,
            Format::Safetensors => safetensors::entries(source, &file)?,
            Format::ShardedPytorch => shards::entries(source, &file, pytorch::entries)?,
            Format::Pytorch => pytorch::entries(source, &file)?,
        };
        Self::new(source, (file, format), entries, BTreeMap::new())
    }

    /// As [`Self::open`], but shards may be missing: their tensors are [`Self::lost`], and an error where they are read.
    ///
    /// # Errors
    /// As [`Self::open`], but for shards that are not there.
    pub fn open_incomplete(source: &dyn Source) -> Result<Self, Error> {
        let (file, format) = choose(source)?;
        let (entries, lost) = match format {
            Format::ShardedSafetensors => shards::entries_present(source, &file, safetensors::entries)?,
            Format::ShardedPytorch => shards::entries_present(source, &file, pytorch::entries)?,
            Format::Safetensors | Format::Pytorch => return Self::open(source),
        };
        Self::new(source, (file, format), entries, lost)
    }

    fn new(
        source: &dyn Source,
        (file, format): (String, Format),
        entries: BTreeMap<String, TensorEntry>,
        lost: BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let mut file_bytes = BTreeMap::new();
        for entry in entries.values() {
            if !file_bytes.contains_key(&entry.file) {
                file_bytes.insert(entry.file.clone(), file_size(source, &entry.file)?);
            }
        }
        Ok(Self { format, file, entries, file_bytes, lost })
    }

    /// The tensors that the index places in files which are not there, each with the name of its file.
    pub fn lost(&self) -> &BTreeMap<String, String> {
        &self.lost
    }

    /// Which layout was chosen.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The file that was opened first: the index of the shards, or the only file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The names of all tensors, in ascending order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// All tensors by name.
    pub fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// What the tensor is and where it lies.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] if there is none of this name, [`Error::MissingShard`] if its file is not there.
    pub fn get(&self, name: &str) -> Result<&TensorEntry, Error> {
        self.entries.get(name).ok_or_else(|| match self.lost.get(name) {
            Some(shard) => Error::MissingShard { name: name.to_owned(), shard: shard.clone() },
            None => Error::MissingTensor { name: name.to_owned() },
        })
    }

    /// The elements as stored, of any type, little-endian, in row-major order.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or that `source` cannot be read.
    pub fn read_bytes(&self, source: &dyn Source, name: &str) -> Result<Vec<u8>, Error> {
        self.get(name)?.read_bytes(source)
    }

    /// All elements in row-major order as `f32`: exact, but for `F64`, which is rounded to nearest.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::ElementType`] if they are not floating-point numbers, or that `source`
    /// cannot be read.
    pub fn read_f32(&self, source: &dyn Source, name: &str) -> Result<Vec<f32>, Error> {
        let entry = self.get(name)?;
        entry.check_floats(name)?;
        entry.decode(name, &entry.read_bytes(source)?)
    }

    /// Some rows of a matrix, as [`Self::read_f32`] gives them; no other rows are read.
    ///
    /// # Errors
    /// As [`Self::read_f32`]; [`Error::Rank`] if the tensor is no matrix, [`Error::Rows`] if it has no such rows.
    pub fn read_rows(&self, source: &dyn Source, name: &str, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let entry = self.get(name)?;
        entry.check_floats(name)?;
        if entry.shape.len() != 2 {
            return Err(Error::Rank { name: name.to_owned(), expected: 2, found: entry.shape.clone() });
        }
        if rows.start > rows.end || rows.end > entry.shape[0] {
            return Err(Error::Rows { name: name.to_owned(), rows, n_rows: entry.shape[0] });
        }
        entry.decode(name, &entry.read_row_bytes(source, rows)?)
    }

    /// The sum of [`TensorEntry::bytes`]: what the tensors take when each is written out by itself.
    pub fn total_bytes(&self) -> u64 {
        self.entries.values().fold(0, |sum, entry| sum.saturating_add(entry.bytes))
    }

    /// A name for the content: the SHA-256, in hexadecimal, of every tensor's name, type, shape and outermost bytes,
    /// and of the file sizes.
    ///
    /// Of each tensor the first and the last 4 KiB of its place in the file are read, so a change in the middle of a
    /// large tensor alone goes unseen: this tells checkpoints apart, it does not prove them whole.
    ///
    /// # Errors
    /// If `source` cannot be read.
    pub fn fingerprint(&self, source: &dyn Source) -> Result<String, Error> {
        let mut hash = Sha256::new();
        for (name, entry) in &self.entries {
            // Lengths come before what varies in length, so that no two checkpoints share one stream of bytes.
            for text in [name, &entry.dtype.to_string(), &format!("{:?}{:?}", entry.shape, entry.strides)] {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text);
            }
            let span = entry.span_bytes();
            let n_bytes = span.min(FINGERPRINT_BYTES);
            hash.update(read_range(source, &entry.file, entry.offset, n_bytes)?);
            hash.update(read_range(source, &entry.file, entry.offset + span - n_bytes, n_bytes)?);
        }
        for bytes in self.file_bytes.values() {
            hash.update(bytes.to_le_bytes());
        }
        Ok(hash.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }
}

/// The file to open first.
fn choose(source: &dyn Source) -> Result<(String, Format), Error> {
    let files = source.files()?;
    let known = |range: Range<usize>| {
        let mut known = KNOWN_FILES[range].iter();
        known.find(|(name, _)| files.iter().any(|file| file == name)).map(|&(name, format)| (name.to_owned(), format))
    };
    let mut loose: Vec<_> = files.iter().filter(|file| file.ends_with(".safetensors")).cloned().collect();
    let lone = if loose.len() == 1 { loose.pop() } else { None };
    known(0..2).or(lone.map(|file| (file, Format::Safetensors))).or_else(|| known(2..4)).ok_or_else(|| {
        Error::NoWeights {
            place: source.describe(),
            expected: format!("one of {}, or a single *.safetensors", KNOWN_FILES.map(|(name, _)| name).join(", ")),
            found: if loose.is_empty() { "none".to_owned() } else { loose.join(", ") },
        }
    })
}
