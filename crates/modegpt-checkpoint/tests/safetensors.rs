//! Safetensors files, honest and hostile, and the shards they come in.

mod common;

use common::{honest_safetensors, open_one, refusal, safetensors_file, source};
use modegpt_checkpoint::{FolderSource, Format, MemorySource, Source, StoredType, TensorIndex, read_file};

const FILE: &str = "model.safetensors";

#[test]
fn values_of_every_float_type_are_decoded() {
    let header = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"F16","shape":[2,1],"data_offsets":[8,12]},
        "c":{"dtype":"BF16","shape":[2],"data_offsets":[12,16]},
        "d":{"dtype":"F64","shape":[],"data_offsets":[16,24]},
        "e":{"dtype":"I64","shape":[1],"data_offsets":[24,32]},
        "f":{"dtype":"F32","shape":[0,5],"data_offsets":[32,32]}}"#;
    let mut data = [1.5_f32.to_le_bytes(), (-0.25_f32).to_le_bytes()].concat();
    data.extend([0x00, 0x3c, 0x00, 0xc0, 0x80, 0x3f, 0x00, 0xc0]);
    data.extend(0.1_f64.to_le_bytes());
    data.extend(7_i64.to_le_bytes());
    let source = source([(FILE, safetensors_file(header, &data))]);
    let index = TensorIndex::open(&source).expect("an index");
    let read = |name| index.read_f32(&source, name).expect(name);
    assert_eq!(read("a"), [1.5, -0.25]);
    assert_eq!(read("b"), [1.0, -2.0]);
    assert_eq!(read("c"), [1.0, -2.0]);
    assert_eq!(read("d"), [0.1]);
    assert!(read("f").is_empty());
    assert!(index.read_rows(&source, "f", 0..0).expect("no rows").is_empty());
    assert_eq!(index.read_bytes(&source, "e").expect("bytes"), 7_i64.to_le_bytes());
    assert_eq!(index.get("e").expect("an entry").dtype, StoredType::Other("I64".to_owned()));
    let message = index.read_f32(&source, "e").expect_err("integers").to_string();
    assert_eq!(message, "tensor `e`: expected floating-point elements, found I64");
    assert_eq!(index.format(), Format::Safetensors);
    assert_eq!(index.names().collect::<String>(), "abcdef");
    assert_eq!(index.total_bytes(), data.len() as u64);
    assert!(index.contains("a") && !index.contains("g"));
    assert!(index.get("g").is_err());
}

#[test]
fn rows_are_slices_of_the_whole() {
    let header = r#"{"w":{"dtype":"F32","shape":[5,3],"data_offsets":[0,60]}}"#;
    let data: Vec<u8> = (0..15_u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    let source = source([(FILE, safetensors_file(header, &data))]);
    let index = TensorIndex::open(&source).expect("an index");
    let whole = index.read_f32(&source, "w").expect("all");
    for start in 0..=5 {
        for end in start..=5 {
            let rows = index.read_rows(&source, "w", start..end).expect("rows");
            assert_eq!(rows, whole[start * 3..end * 3]);
        }
    }
    let message = index.read_rows(&source, "w", 4..6).expect_err("too many").to_string();
    assert_eq!(message, "tensor `w`: expected rows within 0..5, found 4..6");
    #[expect(clippy::reversed_empty_ranges, reason = "a caller may compute one")]
    let reversed = index.read_rows(&source, "w", 3..2);
    assert!(reversed.is_err());
}

#[test]
fn broken_headers_are_refused() {
    let one = |dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#)
    };
    let two = |first: &str, second: &str| {
        let t = r#"{"dtype":"U8","shape":[4],"data_offsets":"#;
        format!(r#"{{"a":{t}{first}}},"b":{t}{second}}}}}"#)
    };
    let cases = [
        (one("F32", "[3]", 0, 12), "has the wrong size: expected 75 bytes, found 71"),
        (one("F32", "[1]", 0, 4), "has the wrong size: expected 66 bytes, found 70"),
        (one("F32", "[3]", 0, 8), "expected 12 bytes for F32 [3], found 8"),
        (one("F33", "[2]", 0, 8), "unknown variant `F33`"),
        (one("F4", "[3]", 0, 8), "no whole bytes in shape [3]"),
        (one("F32", "[4294967296,4294967296]", 0, 8), "no whole bytes in shape"),
        (one("F32", "[4611686018427387904,2]", 0, 8), "no whole bytes in shape"),
        (one("F32", "[2]", 8, 0), "expected data from offset 0, found 8..0"),
        (one("F32", "[-2]", 0, 8), "invalid value: integer `-2`"),
        (one("F32", "[2.0]", 0, 8), "invalid type: floating point"),
        (one("F32", "[2]", 0, u64::MAX), "expected 8 bytes for F32 [2], found 18446744073709551615"),
        (two("[0,4]", "[2,6]"), "tensor `b` of `model.safetensors`: overlap"),
        (two("[0,4]", "[5,9]"), "tensor `b` of `model.safetensors`: hole"),
        (two("[1,5]", "[5,9]"), "tensor `a` of `model.safetensors`: hole"),
        (two("[0,4]", "[0,4]"), "overlap"),
        (two("[0,4]", "[4,8]").replace("\"b\"", "\"a\""), "`a` appears twice"),
        (two("[0,4]", "[4,8]") + "x", "trailing characters"),
        (r#"{"t":5}"#.to_owned(), "invalid type: integer `5`"),
        (r#"{"__metadata__":{"a":1}}"#.to_owned(), "expected a string"),
        ("[]".to_owned(), "expected a header that begins with `{`"),
        (String::new(), "expected a header that begins with `{`"),
        ("{".repeat(9000), "is not a valid safetensors file"),
        (r#"{"a":"#.repeat(9000), "is not a valid safetensors file"),
    ];
    for (header, expected) in cases {
        let message = refusal(FILE, safetensors_file(&header, &[0; 8]));
        assert!(message.contains(expected), "{message}\n  should contain {expected}");
    }
}

#[test]
fn lying_header_lengths_are_refused() {
    let honest = honest_safetensors(&[("a", &[1.0, 2.0])]);
    for (length, expected) in [
        (u64::MAX, "expected at most 100000000 bytes"),
        (100_000_001, "expected at most 100000000 bytes"),
        (100_000_000, "ends too early: expected 100000000 bytes at offset 8"),
        (honest.len() as u64 - 7, "ends too early"),
        (0, "expected a header"),
    ] {
        let mut file = honest.clone();
        file[..8].copy_from_slice(&length.to_le_bytes());
        let message = refusal(FILE, file);
        assert!(message.contains(expected), "{message}\n  should contain {expected}");
    }
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let honest = honest_safetensors(&[("a", &[1.0, 2.0]), ("b", &[3.0])]);
    assert!(open_one(FILE, honest.clone()).is_ok());
    for n_bytes in 0..honest.len() {
        refusal(FILE, honest[..n_bytes].to_vec());
    }
    refusal(FILE, [&honest[..], b"x"].concat());
}

/// Two shards and an index of the given text.
fn sharded(index: &str) -> MemorySource {
    source([
        ("model.safetensors.index.json", index.as_bytes().to_vec()),
        ("one.safetensors", honest_safetensors(&[("a", &[1.0]), ("b", &[2.0])])),
        ("two.safetensors", honest_safetensors(&[("c", &[3.0, 4.0])])),
    ])
}

#[test]
fn shards_are_read_as_one() {
    let map = r#"{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}"#;
    let source = sharded(&format!(r#"{{"metadata":{{"total_size":16}},"weight_map":{map}}}"#));
    let index = TensorIndex::open(&source).expect("an index");
    assert_eq!(index.format(), Format::ShardedSafetensors);
    assert_eq!(index.file(), "model.safetensors.index.json");
    assert_eq!(index.read_f32(&source, "b").expect("b"), [2.0]);
    assert_eq!(index.read_f32(&source, "c").expect("c"), [3.0, 4.0]);
}

#[test]
fn shards_that_contradict_the_index_are_refused() {
    let [a, b, c] = [r#""a":"one.safetensors""#, r#""b":"one.safetensors""#, r#""c":"two.safetensors""#];
    let cases = [
        (format!("{a},{b},{c},{b}"), "`b` appears twice"),
        (format!("{a},{c}"), "`one.safetensors` holds tensor `b`, which `model.safetensors.index.json` does not name"),
        (
            format!(r#"{a},{b},{c},"d":"two.safetensors""#),
            "expects tensor `d` in `two.safetensors`, which does not hold it",
        ),
        (
            format!(r#"{a},"b":"two.safetensors",{c}"#),
            "holds tensor `b`, which `model.safetensors.index.json` expects in",
        ),
        (format!(r#"{a},{b},"c":"three.safetensors""#), "memory has no file `three.safetensors`"),
        (format!(r#"{a},{b},"c":"../two.safetensors""#), "found `../two.safetensors`"),
        (format!(r#"{a},{b},"c":"x\\two.safetensors""#), r"found `x\two.safetensors`"),
        (format!(r#"{a},{b},"c":"..""#), "found `..`"),
        (format!(r#"{a},{b},"c":7"#), "invalid type: integer `7`"),
        (String::new(), "expected tensors in `weight_map`, found none"),
    ];
    for (map, expected) in cases {
        let error = TensorIndex::open(&sharded(&format!(r#"{{"weight_map":{{{map}}}}}"#))).expect_err("a refusal");
        assert!(error.to_string().contains(expected), "{error}\n  should contain {expected}");
    }
    assert!(TensorIndex::open(&sharded("{}")).is_err());
    assert!(TensorIndex::open(&sharded("")).is_err());
}

#[test]
fn a_missing_shard_takes_its_own_tensors_only() {
    let map = r#"{"a":"one.safetensors","b":"one.safetensors","c":"three.safetensors","d":"three.safetensors"}"#;
    let mut source = sharded(&format!(r#"{{"weight_map":{map}}}"#));
    let index = TensorIndex::open_incomplete(&source).expect("an index");
    assert_eq!(index.read_f32(&source, "b").expect("b"), [2.0]);
    assert_eq!(index.lost().keys().collect::<Vec<_>>(), ["c", "d"]);
    let message = index.read_f32(&source, "c").expect_err("no such shard").to_string();
    assert_eq!(message, "tensor `c` lies in `three.safetensors`, which is missing");
    let message = index.read_f32(&source, "e").expect_err("no such tensor").to_string();
    assert_eq!(message, "the checkpoint has no tensor `e`");

    // What is there is checked as ever.
    source.0.insert("three.safetensors".to_owned(), honest_safetensors(&[("c", &[3.0])]));
    let message = TensorIndex::open_incomplete(&source).expect_err("`d` is nowhere").to_string();
    assert!(message.contains("expects tensor `d` in `three.safetensors`, which does not hold it"), "{message}");
    source.0.remove("three.safetensors");
    source.0.insert("one.safetensors".to_owned(), honest_safetensors(&[("a", &[1.0]), ("c", &[2.0])]));
    let message = TensorIndex::open_incomplete(&source).expect_err("`c` lies elsewhere").to_string();
    assert!(message.contains("which `model.safetensors.index.json` expects in `three.safetensors`"), "{message}");
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let mut source = sharded(r#"{"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}}"#);
    source.0.insert("two.safetensors".to_owned(), honest_safetensors(&[("c", &[3.0]), ("a", &[1.0])]));
    let message = TensorIndex::open(&source).expect_err("a refusal").to_string();
    let expected =
        "`two.safetensors` holds tensor `a`, which `model.safetensors.index.json` expects in `one.safetensors`";
    assert_eq!(message, expected);
}

#[test]
fn the_preferred_file_is_opened() {
    let file = honest_safetensors(&[("a", &[1.0])]);
    let pytorch = common::torch_zip(&common::pickled_state(&[common::HONEST]), &[("0", &common::four_floats())]);
    let cases = [
        (vec!["pytorch_model.bin", "x.safetensors", FILE], Some(FILE)),
        (vec!["pytorch_model.bin", "x.safetensors"], Some("x.safetensors")),
        (vec!["pytorch_model.bin", "x.safetensors", "y.safetensors"], Some("pytorch_model.bin")),
        (vec!["x.safetensors", "y.safetensors"], None),
        (vec!["config.json"], None),
        (vec![], None),
    ];
    for (names, expected) in cases {
        let bytes = |name: &str| if name == "pytorch_model.bin" { pytorch.clone() } else { file.clone() };
        let source: MemorySource = names.iter().map(|&name| (name, bytes(name))).collect();
        let opened = TensorIndex::open(&source);
        assert_eq!(opened.as_ref().ok().map(TensorIndex::file), expected, "{names:?}: {opened:?}");
    }
}

#[test]
fn fingerprints_tell_checkpoints_apart() {
    let fingerprint = |file: Vec<u8>| {
        let source = source([(FILE, file)]);
        TensorIndex::open(&source).expect("an index").fingerprint(&source).expect("a fingerprint")
    };
    let first = fingerprint(honest_safetensors(&[("a", &[1.0, 2.0])]));
    assert_eq!(first.len(), 64);
    assert_eq!(first, fingerprint(honest_safetensors(&[("a", &[1.0, 2.0])])));
    let others = [
        honest_safetensors(&[("a", &[1.0, 3.0])]),
        honest_safetensors(&[("b", &[1.0, 2.0])]),
        honest_safetensors(&[("a", &[1.0]), ("b", &[2.0])]),
        safetensors_file(r#"{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#, &[0, 0, 128, 63, 0, 0, 0, 64]),
    ];
    for other in others {
        assert_ne!(first, fingerprint(other));
    }
    let mut long = vec![0.0; 4096];
    let zeros = fingerprint(honest_safetensors(&[("a", &long)]));
    long[4095] = 1.0;
    assert_ne!(zeros, fingerprint(honest_safetensors(&[("a", &long)])));
}

#[test]
fn files_are_read_within_limits() {
    let source = source([("x", vec![1, 2, 3])]);
    assert_eq!(read_file(&source, "x", 3).expect("all"), [1, 2, 3]);
    assert!(read_file(&source, "x", 2).expect_err("too large").to_string().contains("at most 2 bytes, found 3"));
    assert_eq!(read_file(&source, "y", 3).expect_err("missing").to_string(), "memory has no file `y`");
    let past = source.read_at("x", 2, &mut [0; 2]).expect_err("past the end").to_string();
    assert_eq!(past, "`x` ends too early: expected 2 bytes at offset 2, found a file of 3 bytes");
    assert!(source.read_at("x", u64::MAX, &mut [0; 2]).is_err());
}

#[test]
fn folders_are_sources() {
    let folder = FolderSource::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"));
    assert_eq!(folder.files().expect("files"), ["expected.json", "make.py"]);
    assert_eq!(folder.size("zip").expect("a folder is no file"), None);
    assert_eq!(folder.size("absent").expect("absent"), None);
    let whole = read_file(&folder, "make.py", 1 << 20).expect("a file");
    assert_eq!(folder.size("make.py").expect("a size"), Some(whole.len() as u64));
    let mut part = [0; 7];
    folder.read_at("make.py", 5, &mut part).expect("a part");
    assert_eq!(part, whole[5..12]);
    assert!(
        folder
            .read_at("make.py", whole.len() as u64 - 6, &mut part)
            .expect_err("end")
            .to_string()
            .contains("too early")
    );
    for name in ["../Cargo.toml", "zip/pytorch_model.bin", "", "..", "C:x"] {
        assert!(folder.size(name).is_err(), "{name}");
    }
    assert!(FolderSource::new("/no/such/folder").files().is_err());
}

/// The trained model that comes with the command line.
#[test]
fn a_trained_model_is_read() {
    let source = FolderSource::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../cli/demo/opt-tiny-stories"));
    let index = TensorIndex::open(&source).expect("an index");
    let name = "model.decoder.embed_tokens.weight";
    let shape = index.get(name).expect("embeddings").shape.clone();
    let whole = index.read_f32(&source, name).expect("values");
    assert_eq!(whole.len(), shape[0] * shape[1]);
    assert!(whole.iter().all(|value| value.is_finite()) && whole.iter().any(|value| *value != 0.0));
    assert_eq!(index.read_rows(&source, name, 7..9).expect("rows"), whole[7 * shape[1]..9 * shape[1]]);
    // The format's own reader agrees on every byte.
    let file = read_file(&source, FILE, 1 << 30).expect("the file");
    let theirs = safetensors::SafeTensors::deserialize(&file).expect("their index");
    assert_eq!(theirs.len(), index.names().count());
    for (name, tensor) in theirs.tensors() {
        assert_eq!(index.get(&name).expect("an entry").shape, tensor.shape());
        assert_eq!(index.read_bytes(&source, &name).expect("bytes"), tensor.data(), "{name}");
    }
    assert_eq!(index.fingerprint(&source).expect("one"), index.fingerprint(&source).expect("two"));
}
