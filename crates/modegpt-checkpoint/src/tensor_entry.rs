//! Where one tensor lies and what its elements are.

use std::fmt;
use std::ops::Range;

use modegpt_architecture::DType;

use crate::source::read_range;
use crate::strided::gather;
use crate::{Error, Source};

/// The element type of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StoredType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single-precision number.
    Bf16,
    /// IEEE 754 double precision.
    F64,
    /// Anything else, such as `I64` or `BOOL`, by the name that safetensors gives it. Listed, but never decoded.
    Other(String),
}

impl StoredType {
    /// The type of `name`, as safetensors spells it.
    pub(crate) fn from_name(name: &str) -> Self {
        match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F64" => Self::F64,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Widens little-endian elements to `f32`, or narrows them from `f64`, rounding to nearest; `None` for other types.
    fn decode(&self, bytes: &[u8]) -> Option<Vec<f32>> {
        let narrow = |b: &[u8]| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32;
        match self {
            Self::F32 => Some(DType::F32.decode(bytes)),
            Self::F16 => Some(DType::F16.decode(bytes)),
            Self::Bf16 => Some(DType::Bf16.decode(bytes)),
            Self::F64 => Some(bytes.chunks_exact(8).map(narrow).collect()),
            Self::Other(_) => None,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F64 => "F64",
            Self::Other(name) => name,
        })
    }
}

/// Where one tensor lies and what its elements are; checked against its file when the index was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// The file that holds it.
    pub file: String,
    /// The element type.
    pub dtype: StoredType,
    /// The size of each dimension; empty for a single number.
    pub shape: Vec<usize>,
    /// The distance in elements between neighbours along each dimension, or `None` if row-major without gaps.
    pub strides: Option<Vec<usize>>,
    /// Where the first element lies, in bytes from the start of the file.
    pub offset: u64,
    /// The size in bytes of all elements in row-major order. A strided tensor may be spread over more than that.
    pub bytes: u64,
}

impl TensorEntry {
    /// How many numbers it holds.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// From the first to the last byte, gaps included.
    pub(crate) fn span_bytes(&self) -> u64 {
        let Some(strides) = &self.strides else { return self.bytes };
        let last: u64 = self.shape.iter().zip(strides).map(|(&size, &stride)| (size as u64 - 1) * stride as u64).sum();
        (last + 1) * self.element_bytes()
    }

    /// All elements in row-major order, as stored.
    pub(crate) fn read_bytes(&self, source: &dyn Source) -> Result<Vec<u8>, Error> {
        match &self.strides {
            None => read_range(source, &self.file, self.offset, self.bytes),
            Some(strides) => self.gather(source, 0, &self.shape, strides),
        }
    }

    /// Rows of a matrix, as stored; `rows` is within the matrix.
    pub(crate) fn read_row_bytes(&self, source: &dyn Source, rows: Range<usize>) -> Result<Vec<u8>, Error> {
        let n_cols = self.shape[1];
        if rows.is_empty() || n_cols == 0 {
            return Ok(Vec::new());
        }
        if let Some(strides) = &self.strides {
            return self.gather(source, rows.start as u64 * strides[0] as u64, &[rows.len(), n_cols], strides);
        }
        let row_bytes = self.bytes / self.shape[0] as u64;
        let offset = self.offset + rows.start as u64 * row_bytes;
        read_range(source, &self.file, offset, rows.len() as u64 * row_bytes)
    }

    /// Refuses elements that cannot be decoded, before any is read.
    pub(crate) fn check_floats(&self, name: &str) -> Result<(), Error> {
        self.decode(name, &[]).map(|_| ())
    }

    /// Decodes what [`Self::read_bytes`] or [`Self::read_row_bytes`] gave.
    pub(crate) fn decode(&self, name: &str, bytes: &[u8]) -> Result<Vec<f32>, Error> {
        let other = || Error::ElementType { name: name.to_owned(), found: self.dtype.to_string() };
        self.dtype.decode(bytes).ok_or_else(other)
    }

    /// Reads a part of a strided tensor that begins `first` elements after its start.
    fn gather(&self, source: &dyn Source, first: u64, shape: &[usize], strides: &[usize]) -> Result<Vec<u8>, Error> {
        let element_bytes = self.element_bytes();
        let read =
            |from: u64, buf: &mut [u8]| source.read_at(&self.file, self.offset + (first + from) * element_bytes, buf);
        gather(read, element_bytes as usize, shape, strides)
    }

    /// The size of one element. Only strided tensors ask, and these have at least one element of whole bytes.
    fn element_bytes(&self) -> u64 {
        self.bytes / self.n_elements() as u64
    }
}
