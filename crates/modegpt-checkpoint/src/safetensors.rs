//! The safetensors format: eight bytes of header length, a JSON header, then the data without gaps.

use std::collections::BTreeMap;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use crate::shards::UniqueMap;
use crate::source::{file_size, read_range};
use crate::{Error, Source, StoredType, TensorEntry};

/// The most bytes of a header that are read, as in the `safetensors` crate.
const HEADER_LIMIT_BYTES: u64 = 100_000_000;
/// The little-endian length that comes before the header.
const LENGTH_BYTES: u64 = 8;

/// `{"__metadata__": {text: text}, tensor: {"dtype": …, "shape": […], "data_offsets": [begin, end]}, …}`.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    _metadata: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    tensors: UniqueMap<TensorInfo>,
}

/// Reads the header of one file and checks it against the size of the file.
pub(crate) fn entries(source: &dyn Source, file: &str) -> Result<BTreeMap<String, TensorEntry>, Error> {
    let size = file_size(source, file)?;
    let header = read_header(source, file, size)?;
    let data_start = LENGTH_BYTES + header.len() as u64;
    let header: Header = serde_json::from_slice(&header).map_err(|error| malformed(file, error.to_string()))?;
    let mut tensors: Vec<_> = header.tensors.0.into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let data_bytes = check_tensors(file, &tensors)?;
    let expected = data_start.checked_add(data_bytes).ok_or_else(|| malformed(file, "offsets overflow".to_owned()))?;
    if expected != size {
        return Err(Error::FileSize { file: file.to_owned(), expected, found: size });
    }
    // The format's own crate has the last word on what is valid.
    let metadata = Metadata::new(None, tensors).map_err(|error| malformed(file, error.to_string()))?;
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, entry(file, data_start, info))).collect())
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
fn check_tensors(file: &str, tensors: &[(String, TensorInfo)]) -> Result<u64, Error> {
    let mut end = 0;
    for (name, info) in tensors {
        let invalid = |reason| Error::InvalidTensor { file: file.to_owned(), name: name.clone(), reason };
        let (begin, next) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        if begin != end || next < begin {
            let problem = if begin < end { "overlap" } else { "hole" };
            return Err(invalid(format!("{problem}: expected data from offset {end}, found {begin}..{next}")));
        }
        let expected =
            size_of_shape(info).ok_or_else(|| invalid(format!("no whole bytes in shape {:?}", info.shape)))?;
        if next - begin != expected {
            let found = next - begin;
            return Err(invalid(format!(
                "expected {expected} bytes for {} {:?}, found {found}",
                info.dtype, info.shape
            )));
        }
        end = next;
    }
    Ok(end)
}

/// The bytes that a dense tensor of this type and shape takes, or `None` if they overflow or are not whole.
fn size_of_shape(info: &TensorInfo) -> Option<u64> {
    let n_elements = info.shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size as u64))?;
    let bits = n_elements.checked_mul(info.dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn entry(file: &str, data_start: u64, info: &TensorInfo) -> TensorEntry {
    let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
    TensorEntry {
        file: file.to_owned(),
        dtype: StoredType::from_name(&info.dtype.to_string()),
        shape: info.shape.clone(),
        strides: None,
        offset: data_start + begin,
        bytes: end - begin,
    }
}

fn malformed(file: &str, reason: String) -> Error {
    Error::Malformed { file: file.to_owned(), format: "safetensors", reason }
}
