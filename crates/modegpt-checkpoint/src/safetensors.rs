//! The safetensors format: eight bytes of header length, a JSON header, then the data without gaps.

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use crate::shards::UniqueMap;
use crate::source::{file_size, read_range};
use crate::{Error, Source, StoredType, TensorEntry};

/// The most bytes of a header that are read, as in the `safetensors` crate.
const HEADER_LIMIT_BYTES: u64 = 100_000_000;
/// The little-endian length that comes before the header.
const LENGTH_BYTES: u64 = 8;

/// A tensor as the header has it. The format's own crate has offsets of the machine's width, which in a browser, where a machine
/// has 32 bits, ends at 4 GiB of a file.
#[derive(Deserialize)]
struct Described {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// `{"__metadata__": {text: text}, tensor: {"dtype": …, "shape": […], "data_offsets": [begin, end]}, …}`.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    _metadata: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    tensors: UniqueMap<Described>,
}

/// Reads the header of one file and checks it against the size of the file.
pub(crate) fn entries(source: &dyn Source, file: &str) -> Result<BTreeMap<String, TensorEntry>, Error> {
    let size = file_size(source, file)?;
    let header = read_header(source, file, size)?;
    let data_start = LENGTH_BYTES + header.len() as u64;
    let header: Header = serde_json::from_slice(&header).map_err(|error| malformed(file, error.to_string()))?;
    let mut tensors: Vec<_> = header.tensors.0.into_iter().collect();
    tensors.sort_by_key(|(_, described)| described.data_offsets);
    let data_bytes = check_tensors(file, &tensors)?;
    let expected = data_start.checked_add(data_bytes).ok_or_else(|| malformed(file, "offsets overflow".to_owned()))?;
    if expected != size {
        return Err(Error::FileSize { file: file.to_owned(), expected, found: size });
    }
    if let Some(infos) = infos(&tensors) {
        // The format's own crate has the last word on what is valid.
        Metadata::new(None, infos).map_err(|error| malformed(file, error.to_string()))?;
    }
    Ok(tensors.into_iter().map(|(name, described)| (name, entry(file, data_start, described))).collect())
}

/// The tensors as the format's own crate has them; `None` if that cannot count their bits.
fn infos(tensors: &[(String, Described)]) -> Option<Vec<(String, TensorInfo)>> {
    let info = |Described { dtype, shape, data_offsets: (begin, end) }: &Described| {
        let data_offsets = (usize::try_from(*begin).ok()?, usize::try_from(*end).ok()?);
        data_offsets.1.checked_mul(8)?;
        Some(TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets })
    };
    tensors.iter().map(|(name, described)| Some((name.clone(), info(described)?))).collect()
}

/// The bytes of the JSON header.
fn read_header(source: &dyn Source, file: &str, size: u64) -> Result<Vec<u8>, Error> {
    let mut length = [0; LENGTH_BYTES as usize];
    if size < LENGTH_BYTES {
        return Err(malformed(file, format!("expected {LENGTH_BYTES} bytes of header length, found {size}")));
    }
    source.read_at(file, 0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_LIMIT_BYTES {
        let (file, what) = (file.to_owned(), "the safetensors header");
        return Err(Error::TooLarge { file, what, limit: HEADER_LIMIT_BYTES, found: length });
    }
    let header = read_range(source, file, LENGTH_BYTES, length)?;
    if header.first() != Some(&b'{') {
        return Err(malformed(file, "expected a header that begins with `{`".to_owned()));
    }
    Ok(header)
}

/// Checks that the tensors, sorted by offset, follow each other without gap or overlap and have the size of their
/// shapes; returns where the last one ends.
fn check_tensors(file: &str, tensors: &[(String, Described)]) -> Result<u64, Error> {
    let mut end = 0;
    for (name, described) in tensors {
        let invalid = |reason| Error::InvalidTensor { file: file.to_owned(), name: name.clone(), reason };
        let (begin, next) = described.data_offsets;
        if begin != end || next < begin {
            let problem = if begin < end { "overlap" } else { "hole" };
            return Err(invalid(format!("{problem}: expected data from offset {end}, found {begin}..{next}")));
        }
        let expected = size_of_shape(described)
            .ok_or_else(|| invalid(format!("no whole bytes in shape {:?}", described.shape)))?;
        if next - begin != expected {
            let found = next - begin;
            return Err(invalid(format!(
                "expected {expected} bytes for {} {:?}, found {found}",
                described.dtype, described.shape
            )));
        }
        end = next;
    }
    Ok(end)
}

/// The bytes that a dense tensor of this type and shape takes, or `None` if they overflow or are not whole.
fn size_of_shape(described: &Described) -> Option<u64> {
    let n_elements = described.shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size as u64))?;
    let bits = n_elements.checked_mul(described.dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn entry(file: &str, data_start: u64, described: Described) -> TensorEntry {
    let (begin, end) = described.data_offsets;
    TensorEntry {
        file: file.to_owned(),
        dtype: StoredType::from_name(&described.dtype.to_string()),
        shape: described.shape,
        strides: None,
        offset: data_start + begin,
        bytes: end - begin,
    }
}

fn malformed(file: &str, reason: String) -> Error {
    Error::Malformed { file: file.to_owned(), format: "safetensors", reason }
}
