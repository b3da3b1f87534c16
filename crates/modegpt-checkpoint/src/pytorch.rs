//! `PyTorch` files: a pickle that describes tensors, and the numbers themselves beside it.
//!
//! Since `PyTorch` 1.6 a zip archive (`<root>/data.pkl`, `<root>/data/<key>`), before that five pickles in a row with the
//! storages behind them.

use std::collections::BTreeMap;

use crate::input::Input;
use crate::pickle::{Id, Node, Storage, Tensor, Unpickled, unpickle};
use crate::source::file_size;
use crate::strided::is_row_major;
use crate::zip::Archive;
use crate::{Error, Source, StoredType, TensorEntry};

/// What the first two pickles of the older format hold.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_PROTOCOL: i128 = 1001;
/// The most dimensions of a tensor, as in `PyTorch`.
const LIMIT_RANK: usize = 64;
/// The most tensors of one file.
const LIMIT_TENSORS: usize = 1 << 18;
/// Where training scripts put the weights when they save more than these.
const NESTED_KEYS: [&str; 2] = ["state_dict", "model"];

/// Reads the pickle of one file and checks what it says against the storages.
pub(crate) fn entries(source: &dyn Source, file: &str) -> Result<BTreeMap<String, TensorEntry>, Error> {
    let size = file_size(source, file)?;
    let mut start = [0; 4];
    if size >= 4 {
        source.read_at(file, 0, &mut start)?;
    }
    match start {
        [b'P', b'K', 3, 4] => zip_entries(source, file),
        [0x80, ..] => legacy_entries(source, file, size),
        _ => Err(malformed(file, format!("expected a zip archive or a pickle, found {start:02x?}"))),
    }
}

fn zip_entries(source: &dyn Source, file: &str) -> Result<BTreeMap<String, TensorEntry>, Error> {
    let archive = Archive::open(source, file)?;
    let mut roots = archive.names().filter_map(|name| name.strip_suffix("/data.pkl"));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err(malformed(file, "expected one entry `<root>/data.pkl`".to_owned()));
    };
    let byte_order = format!("{root}/byteorder");
    if archive.names().any(|name| name == byte_order) {
        let place = archive.data(&byte_order)?;
        check_byte_order(&mut Input::new(source, file, place.start, place.end))?;
    }
    let place = archive.data(&format!("{root}/data.pkl"))?;
    let pickle = unpickle(&mut Input::new(source, file, place.start, place.end))?;
    state_dict(file, &pickle, |key, storage| {
        let place = archive.data(&format!("{root}/data/{key}"))?;
        let found = place.end - place.start;
        match storage.n_elements.checked_mul(storage.element.bytes) {
            Some(expected) if expected == found => Ok(place.start),
            _ => Err(storage_size(file, key, storage, found)),
        }
    })
}

fn check_byte_order(input: &mut Input<'_>) -> Result<(), Error> {
    const LITTLE: &[u8] = b"little";
    if input.end() - input.position() == LITTLE.len() as u64 && input.bytes(LITTLE.len() as u64)? == LITTLE {
        return Ok(());
    }
    Err(malformed(input.file(), "expected byte order `little`".to_owned()))
}

fn legacy_entries(source: &dyn Source, file: &str, size: u64) -> Result<BTreeMap<String, TensorEntry>, Error> {
    let mut input = Input::new(source, file, 0, size);
    for expected in [LEGACY_MAGIC, LEGACY_PROTOCOL] {
        let pickle = unpickle(&mut input)?;
        if !matches!(pickle.root(), Node::Int(found) if *found == expected) {
            return Err(malformed(file, format!("expected the number {expected:#x} before the tensors")));
        }
    }
    // The third pickle describes the machine that wrote the file; the numbers are little-endian whatever it was.
    unpickle(&mut input)?;
    let pickle = unpickle(&mut input)?;
    let keys = unpickle(&mut input)?;
    let places = legacy_storages(&mut input, &pickle, &keys)?;
    state_dict(file, &pickle, |key, _| {
        places.get(key).copied().ok_or_else(|| malformed(file, format!("expected a storage `{key}`, found none")))
    })
}

/// Passes over the storages in the order of `keys`, each a count and as many elements; returns where each begins.
fn legacy_storages<'p>(
    input: &mut Input<'_>,
    pickle: &Unpickled,
    keys: &'p Unpickled,
) -> Result<BTreeMap<&'p str, u64>, Error> {
    let file = input.file();
    let known = known_storages(file, pickle)?;
    let Node::List(list) = keys.root() else {
        return Err(malformed(file, "expected the list of storages".to_owned()));
    };
    let mut places = BTreeMap::new();
    for &key in list {
        let key = keys.text(key).ok_or_else(|| malformed(file, "expected texts in the list of storages".to_owned()))?;
        let storage = known.get(key);
        let storage = storage.ok_or_else(|| malformed(file, format!("storage `{key}` belongs to no tensor")))?;
        let count = u64::from_le_bytes(input.array()?);
        let bytes = count.checked_mul(storage.element.bytes).filter(|_| count == storage.n_elements);
        let bytes =
            bytes.ok_or_else(|| storage_size(file, key, storage, count.saturating_mul(storage.element.bytes)))?;
        if places.insert(key, input.position()).is_some() {
            return Err(malformed(file, format!("storage `{key}` is listed twice")));
        }
        input.skip(bytes)?;
    }
    if input.position() == input.end() {
        return Ok(places);
    }
    Err(Error::FileSize { file: file.to_owned(), expected: input.position(), found: input.end() })
}

/// The storages that the pickle mentions, by key.
fn known_storages<'p>(file: &str, pickle: &'p Unpickled) -> Result<BTreeMap<&'p str, &'p Storage>, Error> {
    let mut known: BTreeMap<&str, &Storage> = BTreeMap::new();
    for node in pickle.nodes() {
        let Node::Storage(storage) = node else { continue };
        let Some(key) = pickle.text(storage.key) else { continue };
        let first = known.entry(key).or_insert(storage);
        if (first.element, first.n_elements) != (storage.element, storage.n_elements) {
            return Err(malformed(file, format!("storage `{key}` is described in two ways")));
        }
    }
    Ok(known)
}

/// The tensors of a state dict; `locate` gives the place of a storage in the file.
///
/// Other values beside them, such as a step count, are passed over.
fn state_dict(
    file: &str,
    pickle: &Unpickled,
    locate: impl Fn(&str, &Storage) -> Result<u64, Error>,
) -> Result<BTreeMap<String, TensorEntry>, Error> {
    let mut starts = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for &(name, value) in weights(file, pickle)? {
        let Node::Tensor(tensor) = pickle.node(value) else { continue };
        let name = pickle.text(name).ok_or_else(|| malformed(file, "expected texts as names of tensors".to_owned()))?;
        let key = pickle.text(tensor.storage.key).unwrap_or_default();
        let (element, n_elements) = (tensor.storage.element, tensor.storage.n_elements);
        let start = match starts.get(&(key, element.name, n_elements)) {
            Some(&start) => start,
            None => locate(key, &tensor.storage)?,
        };
        starts.insert((key, element.name, n_elements), start);
        let invalid = |reason| Error::InvalidTensor { file: file.to_owned(), name: name.to_owned(), reason };
        let entry = entry(file, pickle, tensor, start).map_err(invalid)?;
        if entries.insert(name.to_owned(), entry).is_some() {
            return Err(invalid("appears twice".to_owned()));
        }
        if entries.len() > LIMIT_TENSORS {
            return Err(malformed(file, format!("expected at most {LIMIT_TENSORS} tensors")));
        }
    }
    if entries.is_empty() {
        return Err(malformed(file, "expected a dictionary of tensors, found no tensor".to_owned()));
    }
    Ok(entries)
}

/// The items of the dictionary that holds the weights.
fn weights<'p>(file: &str, pickle: &'p Unpickled) -> Result<&'p [(Id, Id)], Error> {
    let Node::Dict(items) = pickle.root() else {
        return Err(malformed(file, "expected a dictionary of tensors".to_owned()));
    };
    let nested = |wanted: &str| {
        let (_, value) = items.iter().find(|&&(key, _)| pickle.text(key) == Some(wanted))?;
        if let Node::Dict(items) = pickle.node(*value) { Some(&items[..]) } else { None }
    };
    Ok(NESTED_KEYS.into_iter().find_map(nested).unwrap_or(items))
}

/// Where a tensor lies whose storage begins at `start`, or what is wrong with it.
fn entry(file: &str, pickle: &Unpickled, tensor: &Tensor, start: u64) -> Result<TensorEntry, String> {
    let (shape, strides) = (numbers(pickle, tensor.shape)?, numbers(pickle, tensor.strides)?);
    if shape.len() != strides.len() {
        return Err(format!("expected a stride for each of {} dimensions, found {}", shape.len(), strides.len()));
    }
    let (view_start, available) = tensor.storage.view;
    let end = end_of_view(tensor.offset, &shape, &strides).filter(|&end| end <= available);
    let n_elements = shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size as u64));
    let (Some(_), Some(n_elements)) = (end, n_elements) else {
        return Err(format!("shape {shape:?} with strides {strides:?} exceeds its storage of {available} elements"));
    };
    // Otherwise a few bytes could claim to be a tensor of any size.
    if n_elements > available {
        return Err(format!("shape {shape:?} repeats the elements of a storage of {available}"));
    }
    let element = tensor.storage.element;
    let strides = Some(strides).filter(|strides| n_elements > 0 && !is_row_major(&shape, strides));
    let offset = start + (view_start + tensor.offset) * element.bytes;
    let (file, dtype) = (file.to_owned(), StoredType::from_name(element.name));
    Ok(TensorEntry { file, dtype, shape, strides, offset, bytes: n_elements * element.bytes })
}

/// The numbers of a tuple.
fn numbers(pickle: &Unpickled, tuple: Id) -> Result<Vec<usize>, String> {
    let Node::Tuple(ids) = pickle.node(tuple) else { return Err("expected a shape".to_owned()) };
    if ids.len() > LIMIT_RANK {
        return Err(format!("expected at most {LIMIT_RANK} dimensions, found {}", ids.len()));
    }
    let number = |&id: &Id| pickle.count(id).and_then(|number| usize::try_from(number).ok());
    ids.iter().map(number).collect::<Option<_>>().ok_or_else(|| "expected sizes and strides from zero up".to_owned())
}

/// One past the last element that a view looks at, or `None` if that overflows.
fn end_of_view(offset: u64, shape: &[usize], strides: &[usize]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(offset);
    }
    let reach =
        |end: u64, (&size, &stride): (&usize, &usize)| end.checked_add((size as u64 - 1).checked_mul(stride as u64)?);
    let end = shape.iter().zip(strides).try_fold(offset, reach)?.checked_add(1)?;
    usize::try_from(end).ok().map(|_| end)
}

fn storage_size(file: &str, key: &str, storage: &Storage, found: u64) -> Error {
    let (n_elements, name) = (storage.n_elements, storage.element.name);
    malformed(file, format!("expected {n_elements} elements of {name} in storage `{key}`, found {found} bytes"))
}

fn malformed(file: &str, reason: String) -> Error {
    Error::Malformed { file: file.to_owned(), format: "PyTorch", reason }
}
