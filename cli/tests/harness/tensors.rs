//! Safetensors files taken apart and put together, honest or not.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Desk, read};

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// A tensor as stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    /// Such as `F16`.
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

/// All tensors of a folder.
#[track_caller]
pub(crate) fn of_folder(desk: &Desk, folder: &str) -> Tensors {
    let files = desk.files(folder).into_keys().filter(|name| name.ends_with(".safetensors"));
    files.flat_map(|name| read_file(&desk.path(folder).join(name))).collect()
}

#[track_caller]
pub(crate) fn read_file(path: &Path) -> Tensors {
    let bytes = read(path);
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
    let (header, data) = rest.split_at(length);
    let header: Map<String, Value> = serde_json::from_slice(header).expect("a header");
    let entries = header.into_iter().filter(|(name, _)| name != "__metadata__");
    entries.map(|(name, entry)| (name, tensor(&entry, data))).collect()
}

fn tensor(entry: &Value, data: &[u8]) -> Tensor {
    let get = |name: &str| entry[name].clone();
    let [from, to]: [usize; 2] = serde_json::from_value(get("data_offsets")).expect("offsets");
    Tensor {
        dtype: serde_json::from_value(get("dtype")).expect("a type"),
        shape: serde_json::from_value(get("shape")).expect("a shape"),
        data: data[from..to].to_vec(),
    }
}

pub(crate) fn write_file(path: &Path, tensors: &Tensors) {
    let (header, data) = encode(tensors);
    write_raw(path, &header, &data);
}

/// Header and data of a file of `tensors`.
pub(crate) fn encode(tensors: &Tensors) -> (Value, Vec<u8>) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, tensor) in tensors {
        let from = data.len();
        data.extend_from_slice(&tensor.data);
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [from, data.len()]});
        header.insert(name.clone(), entry);
    }
    (Value::Object(header), data)
}

/// A file with any header.
pub(crate) fn write_raw(path: &Path, header: &Value, data: &[u8]) {
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], header.as_bytes(), data].concat()).expect("a file");
}
