//! `PyTorch` files: real ones (made by `data/make.py`), and hostile ones made byte by byte.

mod common;

use common::{
    HONEST, PickledTensor, end_record, four_floats, int, ints, open_one, pickled_state, refusal, source, tensor, text,
    torch_legacy, torch_zip, widen_zip, zip, zip_with,
};
use modegpt_checkpoint::{FolderSource, Format, TensorIndex};
use serde_json::Value;

const FILE: &str = "pytorch_model.bin";

/// Compares every tensor of a real file with what torch itself said about it.
fn check_real(folder: &str, format: Format, expected: &str) {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let all: Value =
        serde_json::from_slice(&std::fs::read(format!("{data}/expected.json")).expect("values")).expect("JSON");
    let expected = all[expected].as_object().expect("tensors");
    let source = FolderSource::new(format!("{data}/{folder}"));
    let index = TensorIndex::open(&source).expect(folder);
    assert_eq!(index.format(), format);
    for name in index.names() {
        let (entry, expected) = (index.get(name).expect(name), &expected[name]);
        assert_eq!(entry.dtype.to_string(), expected["dtype"], "{folder} {name}");
        assert_eq!(serde_json::json!(entry.shape), expected["shape"], "{folder} {name}");
        let values: Vec<f32> = serde_json::from_value(expected["values"].clone()).expect("numbers");
        let bytes = index.read_bytes(&source, name).expect("bytes");
        assert_eq!(bytes.len() as u64, entry.bytes, "{folder} {name}");
        match index.read_f32(&source, name) {
            Ok(found) => assert_eq!(found, values, "{folder} {name}"),
            Err(error) => assert!(matches!(name, "position_ids" | "mask"), "{error}"),
        }
        if let (&[n_rows, n_cols], true) = (&entry.shape[..], name != "position_ids") {
            for start in 0..n_rows {
                for end in start..=n_rows {
                    let rows = index.read_rows(&source, name, start..end).expect("rows");
                    assert_eq!(rows, values[start * n_cols..end * n_cols], "{folder} {name}");
                }
            }
        }
    }
    assert!(folder == "nested" || index.names().count() == expected.len(), "{folder}");
    assert_eq!(index.fingerprint(&source).expect("a fingerprint").len(), 64);
}

#[test]
fn real_files_are_read_as_torch_reads_them() {
    check_real("zip", Format::Pytorch, "tensors");
    check_real("legacy", Format::Pytorch, "tensors");
    check_real("protocol4", Format::Pytorch, "tensors");
    check_real("nested", Format::Pytorch, "tensors");
    check_real("module", Format::Pytorch, "module");
    check_real("sharded", Format::ShardedPytorch, "tensors");
}

#[test]
fn hand_made_files_are_read() {
    let pickle = pickled_state(&[HONEST]);
    let data = four_floats();
    let zipped = torch_zip(&pickle, &[("0", &data)]);
    for file in [widen_zip(&zipped), zipped, torch_legacy(&pickle, &[("0", 4, &data)])] {
        let source = source([(FILE, file)]);
        let index = TensorIndex::open(&source).expect("an index");
        assert_eq!(index.read_f32(&source, "weight").expect("values"), [1.0, -2.0, 0.5, 8.0]);
        assert_eq!(index.get("weight").expect("an entry").strides, None);
    }
}

#[test]
fn views_of_the_older_format_begin_where_they_say() {
    let shape: &[i64] = &[2];
    let view = [b"(".to_vec(), text("view"), int(1), int(3), b"t".to_vec()].concat();
    let each = PickledTensor { offset: 1, shape, strides: &[1], ..HONEST };
    let pickle = [b"\x80\x02}".to_vec(), text("weight"), tensor(&each, &view), b"s.".to_vec()].concat();
    let source = source([(FILE, torch_legacy(&pickle, &[("0", 4, &four_floats())]))]);
    let index = TensorIndex::open(&source).expect("an index");
    assert_eq!(index.read_f32(&source, "weight").expect("values"), [0.5, 8.0]);
    // The view has three elements, so three from its second on are one too many.
    let each = PickledTensor { shape: &[3], ..each };
    let pickle = [b"\x80\x02}".to_vec(), text("weight"), tensor(&each, &view), b"s.".to_vec()].concat();
    assert!(refusal(FILE, torch_legacy(&pickle, &[("0", 4, &four_floats())])).contains("exceeds its storage of 3"));
}

#[test]
fn tensors_that_leave_their_storage_are_refused() {
    let big = i64::MAX;
    let cases: [(PickledTensor<'_>, &str); 13] = [
        (PickledTensor { offset: 1, ..HONEST }, "exceeds its storage of 4 elements"),
        (PickledTensor { shape: &[2, 3], ..HONEST }, "exceeds its storage"),
        (PickledTensor { strides: &[3, 1], ..HONEST }, "exceeds its storage"),
        (PickledTensor { strides: &[big, big], ..HONEST }, "exceeds its storage"),
        (PickledTensor { shape: &[big, big], strides: &[0, 0], ..HONEST }, "exceeds its storage"),
        (PickledTensor { shape: &[5, 1], strides: &[0, 0], ..HONEST }, "repeats the elements"),
        (PickledTensor { shape: &[0, 1], offset: 5, ..HONEST }, "exceeds its storage"),
        (PickledTensor { shape: &[-2, 2], ..HONEST }, "expected sizes and strides from zero up"),
        (PickledTensor { strides: &[2, -1], ..HONEST }, "expected sizes and strides from zero up"),
        (PickledTensor { strides: &[1], ..HONEST }, "expected a stride for each of 2 dimensions, found 1"),
        (PickledTensor { shape: &[1; 65], strides: &[1; 65], ..HONEST }, "at most 64 dimensions, found 65"),
        (PickledTensor { offset: -1, ..HONEST }, "expected a tensor made of"),
        (PickledTensor { n_elements: -1, ..HONEST }, "expected a persistent id of a storage"),
    ];
    for (each, expected) in cases {
        let pickle = pickled_state(&[each]);
        for file in [torch_zip(&pickle, &[("0", &four_floats())]), torch_legacy(&pickle, &[("0", 4, &four_floats())])] {
            let message = refusal(FILE, file);
            assert!(message.contains(expected), "{message}\n  should contain {expected}");
        }
    }
}

#[test]
fn storages_that_contradict_the_pickle_are_refused() {
    let data = four_floats();
    let pickle = pickled_state(&[HONEST]);
    let wide = pickled_state(&[PickledTensor { element: "DoubleStorage", ..HONEST }]);
    let huge = pickled_state(&[PickledTensor { n_elements: i64::MAX, ..HONEST }]);
    let both = pickled_state(&[HONEST, PickledTensor { name: "other", element: "IntStorage", ..HONEST }]);
    let cases = [
        (torch_zip(&wide, &[("0", &data)]), "expected 4 elements of F64 in storage `0`, found 16 bytes"),
        (torch_zip(&huge, &[("0", &data)]), "elements of F32 in storage `0`, found 16 bytes"),
        (torch_zip(&pickle, &[("1", &data)]), "expected an entry `archive/data/0`"),
        (torch_legacy(&wide, &[("0", 4, &data)]), "ends too early"),
        (torch_legacy(&huge, &[("0", i64::MAX, &data)]), "elements of F32 in storage `0`"),
        (torch_legacy(&pickle, &[("0", 5, &data)]), "expected 4 elements of F32 in storage `0`, found 20 bytes"),
        (torch_legacy(&pickle, &[("0", -1, &data)]), "expected 4 elements"),
        (torch_legacy(&pickle, &[("1", 4, &data)]), "storage `1` belongs to no tensor"),
        (torch_legacy(&pickle, &[]), "expected a storage `0`, found none"),
        (torch_legacy(&pickle, &[("0", 4, &data), ("0", 4, &data)]), "storage `0` is listed twice"),
        (torch_legacy(&both, &[("0", 4, &data)]), "storage `0` is described in two ways"),
        (torch_legacy(&pickle, &[("0", 4, &[&data[..], b"x"].concat())]), "has the wrong size"),
        (
            torch_zip(&pickled_state(&[HONEST, HONEST]), &[("0", &data)]),
            "tensor `weight` of `pytorch_model.bin`: appears twice",
        ),
        (torch_zip(&pickled_state(&[]), &[]), "found no tensor"),
        (torch_zip(b"\x80\x02].", &[]), "expected a dictionary of tensors"),
        (torch_zip(b"\x80\x02}\x8a\x011\x88s.", &[]), "found no tensor"),
        (b"\x80\x02K\x01.".to_vec(), "expected the number 0x1950a86a20f9469cfc6c"),
        (b"hello".to_vec(), "expected a zip archive or a pickle"),
        (Vec::new(), "expected a zip archive or a pickle"),
    ];
    for (file, expected) in cases {
        let message = refusal(FILE, file);
        assert!(message.contains(expected), "{message}\n  should contain {expected}");
    }
}

#[test]
fn code_is_never_run() {
    let cases: [(&[u8], &str); 8] = [
        (b"cos\nsystem\n(U\x04exittR.", "os.system"),
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "posix.system"),
        (b"\x80\x04\x8c\x05torch\x8c\x04load\x93.", "torch.load"),
        (b"ctorch._utils\n_rebuild_tensor_v3\n.", "torch._utils._rebuild_tensor_v3"),
        (b"ctorch\nFloatStorage.__class__\n.", "torch.FloatStorage.__class__"),
        (b"c\x1b[2J\nx\n.", r"\u{1b}[2J.x"),
        (b"}(cnumpy.core.multiarray\n_reconstruct\nK\x01u.", "numpy.core.multiarray._reconstruct"),
    ];
    for (pickle, global) in cases {
        for file in [torch_zip(pickle, &[]), torch_legacy(pickle, &[])] {
            let message = refusal(FILE, file);
            assert!(message.contains(&format!("refuses to run `{global}`")), "{message}");
        }
    }
}

#[test]
fn broken_pickles_are_refused() {
    let cases: [(&[u8], &str); 32] = [
        (b"", "ends too early"),
        (b"}", "ends too early"),
        (b".", "expected a value on the stack, found none"),
        (b"(.", "expected a value on the stack, found none"),
        (b"N(0Ns.", "expected a value on the stack"),
        (b"t.", "expected a mark on the stack, found none"),
        (b"}(Nu.", "expected keys and values, found 1 items"),
        (b"N(NNu.", "expected a dictionary to add to"),
        (b"}Na.", "expected a list to add to"),
        (b"NNb.", "expected a dictionary to add to"),
        (b"h\x05.", "expected a value in place 5 of the memo, found none"),
        (b"Nr\xff\xff\xff\xff0j\xfe\xff\xff\xff.", "expected a value in place 4294967294"),
        (b"gx\n.", "expected a place in the memo, found `x`"),
        (b"\x80\x06.", "expected protocol 0 to 5, found 6"),
        (b"\x8a\x11aaaaaaaaaaaaaaaaa.", "at most 16 bytes, found 17"),
        (b"\x8b\xff\xff\xff\xff.", "at most 67108864 bytes"),
        (b"X\xff\xff\xff\xff.", "at most 67108864 bytes, found 4294967295"),
        (b"X\xff\xff\xff\x03.", "ends too early"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "at most 67108864 bytes"),
        (b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "at most 67108864 bytes"),
        (b"X\x02\0\0\0\xff\xff.", "expected text in UTF-8"),
        (b"Iten\n.", "expected an integer, found `ten`"),
        (b"NR.", "expected a value on the stack"),
        (b"N)R.", "expected a function and a tuple"),
        (b"ccollections\nOrderedDict\nN\x85R.", "expected other arguments for OrderedDict, found 1"),
        (b"ctorch._utils\n_rebuild_parameter\nNNN\x87R.", "expected a tensor as parameter"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.", "expected a tensor made of"),
        (b"ctorch\nFloatStorage\n)R.", "expected other arguments for StorageType"),
        (b"NQ.", "expected a persistent id of a storage"),
        (b"Pid\n.", "found 0x50"),
        (b"\x81.", "found 0x81"),
        (b"(ios\nsystem\n.", "found 0x69"),
    ];
    for (pickle, expected) in cases {
        let message = refusal(FILE, torch_zip(pickle, &[]));
        assert!(message.contains(expected), "{pickle:?} {message}\n  should contain {expected}");
    }
    let endless = [b"c".to_vec(), vec![b'x'; 5000], b"\ny\n.".to_vec()].concat();
    assert!(refusal(FILE, torch_zip(&endless, &[])).contains("expected a line of at most 4096 bytes"));
}

#[test]
fn bombs_stay_small() {
    // Each step holds the one before twice: a billion values, if they were unfolded.
    let doubling = [b"]q\0".to_vec(), b"]h\0ah\0aq\0".repeat(30), b".".to_vec()].concat();
    assert!(refusal(FILE, torch_zip(&doubling, &[])).contains("expected a dictionary of tensors"));
    // Neither a deep value nor one that contains itself is walked through.
    let deep = [b")".to_vec(), b"\x85".repeat(200_000), b".".to_vec()].concat();
    assert!(refusal(FILE, torch_zip(&deep, &[])).contains("expected a dictionary of tensors"));
    assert!(refusal(FILE, torch_zip(b"}q\0X\x05\0\0\0modelh\0s.", &[])).contains("found no tensor"));
    let marks = [b"(".repeat(200_000), b".".to_vec()].concat();
    assert!(refusal(FILE, torch_zip(&marks, &[])).contains("expected a value on the stack"));
    let endless = b"N0".repeat(3 << 20);
    assert!(refusal(FILE, torch_zip(&endless, &[])).contains("expected at most 4194304 instructions"));
    let long = [b"\x8e\0\0\0\x03\0\0\0\0".to_vec(), vec![0; 48 << 20]].concat();
    assert!(refusal(FILE, torch_zip(&long.repeat(2), &[])).contains("expected at most 67108864 bytes"));
    // One tensor under very many names.
    let mut names = [b"\x80\x02}".to_vec(), tensor(&HONEST, b""), b"q\x01".to_vec(), b"0}(".to_vec()].concat();
    for place in 0..270_000 {
        names.extend([text(&place.to_string()), b"h\x01".to_vec()].concat());
    }
    names.extend(b"u.");
    let message = refusal(FILE, torch_zip(&names, &[("0", &four_floats())]));
    assert!(message.contains("expected at most 262144 tensors"), "{message}");
}

#[test]
fn hostile_archives_are_refused() {
    let (pickle, data) = (pickled_state(&[HONEST]), four_floats());
    let entries = [("a/data.pkl", &pickle[..]), ("a/data/0", &data[..])];
    let lie = |lie: fn(&mut common::ZipEntry)| {
        zip_with(&entries, move |entry| {
            if entry.name == "a/data/0" {
                lie(entry);
            }
        })
    };
    assert!(open_one(FILE, lie(|_| {})).is_ok());
    let cases = [
        (lie(|entry| entry.method = 8), "expected `a/data/0` stored as it is"),
        (lie(|entry| entry.flags = 1), "compressed or encrypted"),
        (lie(|entry| entry.bytes += 1), "compressed or encrypted"),
        (lie(|entry| (entry.bytes, entry.stored_bytes) = (64, 64)), "`a/data/0` runs into what follows it"),
        (lie(|entry| (entry.bytes, entry.stored_bytes) = (u64::MAX, u64::MAX)), "runs into what follows it"),
        (
            lie(|entry| (entry.bytes, entry.stored_bytes) = (12, 12)),
            "expected 4 elements of F32 in storage `0`, found 12",
        ),
        (lie(|entry| entry.offset += 1), "header of `a/data/0`"),
        (lie(|entry| entry.offset = 0), "header of `a/data/0`"),
        (lie(|entry| entry.offset += 44), "header of `a/data/0`"),
        (lie(|entry| entry.offset = 1 << 20), "`a/data/0` lies behind the directory"),
        (lie(|entry| entry.offset = u64::MAX), "`a/data/0` lies behind the directory"),
        (lie(|entry| entry.name = "a/data/1".to_owned()), "expected an entry `a/data/0`"),
        (lie(|entry| entry.name = "b/data.pkl".to_owned()), "expected one entry `<root>/data.pkl`"),
        (lie(|entry| entry.name = "a/data.pkl".to_owned()), "entry `a/data.pkl` appears twice"),
        (zip(&[("a/data.pkl", &pickle), ("a/byteorder", b"big"), ("a/data/0", &data)]), "expected byte order `little`"),
        (zip(&[("a/other", &pickle)]), "expected one entry `<root>/data.pkl`"),
        (b"PK\x03\x04 and nothing else".to_vec(), "is the file whole?"),
    ];
    for (file, expected) in cases {
        let message = refusal(FILE, file);
        assert!(message.contains(expected), "{message}\n  should contain {expected}");
    }
}

#[test]
fn lying_end_records_are_refused() {
    let honest = torch_zip(&pickled_state(&[HONEST]), &[("0", &four_floats())]);
    let body = &honest[..honest.len() - 22];
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| honest[body.len() + at + byte]));
    let (bytes, start) = (word(12), word(16));
    let with_end = |end: Vec<u8>| [body, &end].concat();
    assert!(open_one(FILE, with_end(end_record(3, bytes, start))).is_ok());
    let cases = [
        (with_end(end_record(2, bytes, start)), "expected 2 entries, found 3"),
        (with_end(end_record(u16::MAX, bytes, start)), "expected 65535 entries, found 3"),
        (with_end(end_record(3, bytes, start - 1)), "expected the directory to end at"),
        (with_end(end_record(3, u32::MAX, u32::MAX)), "expected the directory to end at"),
        (with_end(end_record(3, bytes - 1, start + 1)), "entry 0 is broken"),
        (with_end(end_record(0, 0, start + bytes)), "expected one entry"),
    ];
    for (file, expected) in cases {
        let message = refusal(FILE, file);
        assert!(message.contains(expected), "{message}\n  should contain {expected}");
    }
    let wide = widen_zip(&honest);
    for place in wide.len() - 22 - 20 - 56..wide.len() - 22 {
        let mut file = wide.clone();
        file[place] ^= 0x80;
        // Some of these bytes (versions, disks) mean nothing to us; the rest must be noticed, and none may panic.
        let _ = open_one(FILE, file);
    }
    let mut far = wide.clone();
    far[wide.len() - 22 - 12..wide.len() - 22 - 4].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refusal(FILE, far).contains("ends too early"));
}

#[test]
fn every_truncation_is_refused() {
    let (pickle, data) = (pickled_state(&[HONEST]), four_floats());
    let zipped = torch_zip(&pickle, &[("0", &data)]);
    for file in [widen_zip(&zipped), zipped, torch_legacy(&pickle, &[("0", 4, &data)])] {
        assert!(open_one(FILE, file.clone()).is_ok());
        for n_bytes in 0..file.len() {
            refusal(FILE, file[..n_bytes].to_vec());
        }
    }
}

#[test]
fn sparse_views_are_gathered_piece_by_piece() {
    let values: Vec<f32> = (0..4096_u16).map(f32::from).collect();
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let cases: [(&[i64], &[i64], i64); 7] = [
        (&[3, 5], &[1000, 1], 7),
        (&[5, 3], &[1, 1000], 7),
        (&[4, 4], &[1000, 300], 0),
        (&[2, 3, 4], &[5, 1000, 60], 9),
        (&[2, 2, 2, 2], &[1, 2, 4, 8], 11),
        (&[8], &[500], 3),
        (&[3, 1, 7], &[7, 4000, 1], 1),
    ];
    for (shape, strides, offset) in cases {
        let each = PickledTensor { n_elements: 4096, shape, strides, offset, ..HONEST };
        let source = source([(FILE, torch_zip(&pickled_state(&[each]), &[("0", &data)]))]);
        let index = TensorIndex::open(&source).expect("an index");
        let mut expected = vec![offset];
        for (&size, &stride) in shape.iter().zip(strides) {
            expected = expected.iter().flat_map(|base| (0..size).map(move |place| base + place * stride)).collect();
        }
        let expected: Vec<f32> = expected.iter().map(|&place| values[place as usize]).collect();
        assert_eq!(index.read_f32(&source, "weight").expect("values"), expected, "{shape:?} {strides:?}");
        if let &[n_rows, n_cols] = shape {
            let rows = index.read_rows(&source, "weight", 1..n_rows as usize).expect("rows");
            assert_eq!(rows, expected[n_cols as usize..], "{shape:?} {strides:?}");
        }
    }
    assert_eq!(ints(&[]), b"(t");
}
