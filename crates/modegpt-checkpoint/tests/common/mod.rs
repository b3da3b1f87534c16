//! Encoders that write small checkpoints, honest or not, byte by byte.
#![allow(dead_code, reason = "each test file uses some of these")]

use modegpt_checkpoint::{Error, MemorySource, TensorIndex};

/// A source of the given files.
pub(crate) fn source<const N: usize>(files: [(&str, Vec<u8>); N]) -> MemorySource {
    files.into_iter().collect()
}

/// Opens one file as the only one of a checkpoint.
pub(crate) fn open_one(name: &str, bytes: Vec<u8>) -> Result<TensorIndex, Error> {
    TensorIndex::open(&source([(name, bytes)]))
}

/// The message of the error that opening `bytes` as the file `name` gives.
#[track_caller]
pub(crate) fn refusal(name: &str, bytes: Vec<u8>) -> String {
    open_one(name, bytes).expect_err("a refusal").to_string()
}

/// A safetensors file of any header and data.
pub(crate) fn safetensors_file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// A safetensors file as the format's own crate writes it, with `f32` tensors of one dimension.
pub(crate) fn honest_safetensors(tensors: &[(&str, &[f32])]) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView, serialize};
    let encode = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let encoded: Vec<_> = tensors.iter().map(|(name, values)| (*name, values.len(), encode(values))).collect();
    let view = |bytes, n| TensorView::new(Dtype::F32, vec![n], bytes).expect("a view");
    serialize(encoded.iter().map(|(name, n, bytes)| (*name, view(bytes, *n))), None).expect("a file")
}

/// A zip archive of stored entries.
pub(crate) fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    zip_with(entries, |_| {})
}

/// What a zip directory says about one entry, to be told otherwise.
pub(crate) struct ZipEntry {
    pub(crate) name: String,
    pub(crate) flags: u16,
    pub(crate) method: u16,
    pub(crate) stored_bytes: u64,
    pub(crate) bytes: u64,
    pub(crate) offset: u64,
}

/// A zip archive whose directory entries are changed by `lie`; sizes and offsets above 32 bits go into an extra field.
pub(crate) fn zip_with(entries: &[(&str, &[u8])], lie: impl Fn(&mut ZipEntry)) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let bytes = data.len() as u64;
        let (name, offset) = ((*name).to_owned(), file.len() as u64);
        let mut entry = ZipEntry { name, flags: 0, method: 0, stored_bytes: bytes, bytes, offset };
        file.extend_from_slice(b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend_from_slice(&(bytes as u32).to_le_bytes());
        file.extend_from_slice(&(bytes as u32).to_le_bytes());
        file.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
        file.extend_from_slice(&3_u16.to_le_bytes());
        file.extend_from_slice(entry.name.as_bytes());
        file.extend_from_slice(b"pad");
        file.extend_from_slice(data);
        lie(&mut entry);
        directory.extend(directory_entry(&entry));
    }
    let end = end_record(entries.len() as u16, directory.len() as u32, file.len() as u32);
    [file, directory, end].concat()
}

fn directory_entry(entry: &ZipEntry) -> Vec<u8> {
    let mut wide = Vec::new();
    let [bytes, stored_bytes, offset] = [entry.bytes, entry.stored_bytes, entry.offset].map(|value| {
        u32::try_from(value).ok().filter(|&narrow| narrow != u32::MAX).unwrap_or_else(|| {
            wide.extend_from_slice(&value.to_le_bytes());
            u32::MAX
        })
    });
    let mut extra = b"XX\x02\0ab\x01\0".to_vec();
    extra.extend_from_slice(&(wide.len() as u16).to_le_bytes());
    extra.extend_from_slice(&wide);
    let mut out = b"PK\x01\x02\x14\0\x14\0".to_vec();
    out.extend_from_slice(&entry.flags.to_le_bytes());
    out.extend_from_slice(&entry.method.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&stored_bytes.to_le_bytes());
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
    out.extend_from_slice(&(extra.len() as u16).to_le_bytes());
    out.extend_from_slice(&[0; 10]);
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(entry.name.as_bytes());
    out.extend_from_slice(&extra);
    out
}

/// The record at the end of a zip archive.
pub(crate) fn end_record(n_entries: u16, directory_bytes: u32, directory_offset: u32) -> Vec<u8> {
    let mut out = b"PK\x05\x06\0\0\0\0".to_vec();
    out.extend_from_slice(&n_entries.to_le_bytes());
    out.extend_from_slice(&n_entries.to_le_bytes());
    out.extend_from_slice(&directory_bytes.to_le_bytes());
    out.extend_from_slice(&directory_offset.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out
}

/// The same archive with 64-bit end records, and the narrow record saying only that they are there.
pub(crate) fn widen_zip(file: &[u8]) -> Vec<u8> {
    let (body, end) = file.split_at(file.len() - 22);
    let word = |at: usize| u64::from(u32::from_le_bytes([end[at], end[at + 1], end[at + 2], end[at + 3]]));
    let n_entries = u64::from(u16::from_le_bytes([end[10], end[11]]));
    let mut out = body.to_vec();
    out.extend_from_slice(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
    for value in [n_entries, n_entries, word(12), word(16)] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    out.extend_from_slice(b"PK\x06\x07\0\0\0\0");
    out.extend_from_slice(&(body.len() as u64).to_le_bytes());
    out.extend_from_slice(&1_u32.to_le_bytes());
    out.extend(end_record(u16::MAX, u32::MAX, u32::MAX));
    out
}

/// One tensor of a pickle: name, storage type and key, elements of the storage, offset, shape and strides.
pub(crate) struct PickledTensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) element: &'a str,
    pub(crate) key: &'a str,
    pub(crate) n_elements: i64,
    pub(crate) offset: i64,
    pub(crate) shape: &'a [i64],
    pub(crate) strides: &'a [i64],
}

/// A pickled text.
pub(crate) fn text(value: &str) -> Vec<u8> {
    [b"X", &(value.len() as u32).to_le_bytes()[..], value.as_bytes()].concat()
}

/// A pickled integer.
pub(crate) fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08", &value.to_le_bytes()[..]].concat()
}

/// A pickled tuple of integers.
pub(crate) fn ints(values: &[i64]) -> Vec<u8> {
    let items: Vec<u8> = values.iter().flat_map(|&value| int(value)).collect();
    [b"(", &items[..], b"t"].concat()
}

/// The instructions that leave one tensor on the stack. `view` is the sixth part of the persistent id, if any.
pub(crate) fn tensor(tensor: &PickledTensor<'_>, view: &[u8]) -> Vec<u8> {
    let mut out = b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    out.extend(text("storage"));
    out.extend(format!("ctorch\n{}\n", tensor.element).bytes());
    out.extend(text(tensor.key));
    out.extend(text("cpu"));
    out.extend(int(tensor.n_elements));
    out.extend(view);
    out.extend(b"tQ");
    out.extend(int(tensor.offset));
    out.extend(ints(tensor.shape));
    out.extend(ints(tensor.strides));
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    out
}

/// The pickle of a dictionary of tensors.
pub(crate) fn pickled_state(tensors: &[PickledTensor<'_>]) -> Vec<u8> {
    let items = tensors.iter().flat_map(|each| [text(each.name), tensor(each, b"")].concat());
    [b"\x80\x02}(".to_vec(), items.collect(), b"u.".to_vec()].concat()
}

/// A zip checkpoint of any pickle and storages.
pub(crate) fn torch_zip(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let named: Vec<_> = storages.iter().map(|(key, data)| (format!("archive/data/{key}"), *data)).collect();
    let mut entries = vec![("archive/data.pkl", pickle), ("archive/byteorder", &b"little"[..])];
    entries.extend(named.iter().map(|(name, data)| (&**name, *data)));
    zip(&entries)
}

/// A checkpoint of the older format of any pickle, with counts and data of the storages.
pub(crate) fn torch_legacy(pickle: &[u8], storages: &[(&str, i64, &[u8])]) -> Vec<u8> {
    let mut out = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    out.extend_from_slice(pickle);
    out.extend_from_slice(b"\x80\x02](");
    out.extend(storages.iter().flat_map(|(key, _, _)| text(key)));
    out.extend_from_slice(b"e.");
    for (_, count, data) in storages {
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(data);
    }
    out
}

/// Four `f32` numbers, as bytes.
pub(crate) fn four_floats() -> Vec<u8> {
    [1.0_f32, -2.0, 0.5, 8.0].iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A 2x2 tensor over [`four_floats`] that nothing is wrong with.
pub(crate) const HONEST: PickledTensor<'_> = PickledTensor {
    name: "weight",
    element: "FloatStorage",
    key: "0",
    n_elements: 4,
    offset: 0,
    shape: &[2, 2],
    strides: &[2, 1],
};
