//! A writer of the files that `torch.save` makes, in both of its formats, for dictionaries of whole tensors.

use crate::harness::tensors::{Tensor, Tensors};

/// A zip archive with a pickle and one entry for each storage, as since torch 1.6.
pub(crate) fn zip(tensors: &Tensors) -> Vec<u8> {
    let mut entries = vec![("archive/data.pkl".to_owned(), pickle(tensors)), ("archive/version".into(), b"3\n".into())];
    let storages = tensors.values().enumerate();
    entries.extend(storages.map(|(key, tensor)| (format!("archive/data/{key}"), tensor.data.clone())));
    stored(&entries)
}

/// Pickles one after another, then the storages, as before torch 1.6.
pub(crate) fn legacy(tensors: &Tensors) -> Vec<u8> {
    // The magic number, the protocol, and a dictionary of the system's properties.
    let mut out = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    out.extend(pickle(tensors));
    out.extend(b"\x80\x02](");
    out.extend((0..tensors.len()).flat_map(|key| text(&key.to_string())));
    out.extend(b"e.");
    for tensor in tensors.values() {
        out.extend((n_elements(tensor) as u64).to_le_bytes());
        out.extend(&tensor.data);
    }
    out
}

fn pickle(tensors: &Tensors) -> Vec<u8> {
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (key, (name, tensor)) in tensors.iter().enumerate() {
        out.extend(text(name));
        out.extend(rebuilt(key, tensor));
    }
    out.extend(b"u.");
    out
}

/// `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`
fn rebuilt(key: usize, tensor: &Tensor) -> Vec<u8> {
    let storage = match tensor.dtype.as_str() {
        "F32" => "FloatStorage",
        "F16" => "HalfStorage",
        "BF16" => "BFloat16Storage",
        other => panic!("no storage for {other}"),
    };
    let mut out = b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    out.extend(text("storage"));
    out.extend(format!("ctorch\n{storage}\n").bytes());
    out.extend(text(&key.to_string()));
    out.extend(text("cpu"));
    out.extend(int(n_elements(tensor)));
    out.extend(b"tQ");
    out.extend(int(0));
    out.extend(tuple(&tensor.shape));
    let strides: Vec<usize> = (1..=tensor.shape.len()).map(|from| tensor.shape[from..].iter().product()).collect();
    out.extend(tuple(&strides));
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    out
}

fn n_elements(tensor: &Tensor) -> usize {
    tensor.shape.iter().product()
}

fn text(value: &str) -> Vec<u8> {
    [b"X", &(value.len() as u32).to_le_bytes()[..], value.as_bytes()].concat()
}

fn int(value: usize) -> Vec<u8> {
    [b"J", &(value as u32).to_le_bytes()[..]].concat()
}

fn tuple(values: &[usize]) -> Vec<u8> {
    let items: Vec<u8> = values.iter().flat_map(|&value| int(value)).collect();
    [b"(", &items[..], b"t"].concat()
}

/// A zip archive of entries that are not compressed.
fn stored(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = file.len() as u32;
        // Time, checksum, both sizes, lengths of name and extra field. Nobody checks time and checksum here.
        let mut facts = vec![0; 8];
        facts.extend((data.len() as u32).to_le_bytes());
        facts.extend((data.len() as u32).to_le_bytes());
        facts.extend((name.len() as u16).to_le_bytes());
        facts.extend([0; 2]);
        file.extend([b"PK\x03\x04\x14\0\0\0\0\0", &facts[..], name.as_bytes(), data].concat());
        directory.extend([b"PK\x01\x02\x14\0\x14\0\0\0\0\0", &facts[..], &[0; 10]].concat());
        directory.extend([&offset.to_le_bytes()[..], name.as_bytes()].concat());
    }
    let n_entries = (entries.len() as u16).to_le_bytes();
    let sizes = [(directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes()].concat();
    let end = [b"PK\x05\x06\0\0\0\0", &n_entries[..], &n_entries, &sizes, &[0, 0]].concat();
    [file, directory, end].concat()
}
