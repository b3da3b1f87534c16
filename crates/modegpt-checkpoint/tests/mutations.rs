//! Small valid files of every format with a few bytes changed: an error or a result, never a panic, and never a read or
//! an allocation that the size of the file does not justify.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::{
    HONEST, PickledTensor, four_floats, honest_safetensors, pickled_state, torch_legacy, torch_zip, widen_zip,
};
use modegpt_checkpoint::{Error, MemorySource, Source, TensorIndex};

const MUTATIONS_PER_FILE: u64 = 1500;

/// A source that notes the largest buffer it was asked to fill, which is what a lying length would show in.
struct Watched {
    files: MemorySource,
    largest: AtomicU64,
}

impl Source for Watched {
    fn describe(&self) -> String {
        self.files.describe()
    }

    fn files(&self) -> Result<Vec<String>, Error> {
        self.files.files()
    }

    fn size(&self, file: &str) -> Result<Option<u64>, Error> {
        self.files.size(file)
    }

    fn read_at(&self, file: &str, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.largest.fetch_max(buf.len() as u64, Ordering::Relaxed);
        self.files.read_at(file, offset, buf)
    }
}

/// The generator `splitmix64`: the same files on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit.max(1) as u64) as usize
    }
}

/// Changes, removes, repeats or overwrites a few bytes.
fn mutate(file: &mut Vec<u8>, random: &mut Random) {
    const EXTREMES: [&[u8]; 5] = [&[0xff; 8], &[0; 8], &[0x7f], &[0xff, 0xff, 0xff, 0x7f], &[0, 0, 0, 0x80]];
    for _ in 0..=random.below(3) {
        let place = random.below(file.len());
        let end = (place + 1 + random.below(12)).min(file.len());
        match random.below(6) {
            0 | 1 if !file.is_empty() => file[place] = random.below(256) as u8,
            2 if !file.is_empty() => file[place] ^= 1 << random.below(8),
            3 => drop(file.drain(place..end)),
            4 => drop(file.splice(place..place, file[place..end].to_vec())),
            _ => {
                let extreme = EXTREMES[random.below(EXTREMES.len())];
                let end = (place + extreme.len()).min(file.len());
                file[place..end].copy_from_slice(&extreme[..end - place]);
            }
        }
    }
}

/// Opens the files and reads all there is; returns whether they were accepted.
fn read_everything(files: MemorySource) -> bool {
    let total: u64 = files.0.values().map(|bytes| bytes.len() as u64).sum();
    let source = Watched { files, largest: AtomicU64::new(0) };
    let opened = TensorIndex::open(&source);
    if let Ok(index) = &opened {
        for (name, entry) in index.entries() {
            assert!(entry.bytes <= total, "{name} claims {} of {total} bytes", entry.bytes);
            let _ = index.read_bytes(&source, name);
            let _ = index.read_f32(&source, name);
            let n_rows = entry.shape.first().copied().unwrap_or(0);
            let _ = index.read_rows(&source, name, n_rows / 2..n_rows);
        }
        let _ = index.fingerprint(&source);
    }
    assert!(source.largest.into_inner() <= total, "a read of more than all files");
    opened.is_ok()
}

/// Mutates the file `target` among `files`, many times over.
fn check<const N: usize>(target: &str, files: [(&str, Vec<u8>); N]) {
    let files: MemorySource = files.into_iter().collect();
    assert!(read_everything(files.clone()), "the file itself is valid");
    let mut random = Random(target.len() as u64 * 1000 + N as u64);
    let n_accepted = (0..MUTATIONS_PER_FILE).filter(|_| {
        let mut mutant = files.clone();
        mutate(mutant.0.get_mut(target).expect("the target"), &mut random);
        read_everything(mutant)
    });
    // Changes of values alone are not to be noticed, most others are.
    let n_accepted = n_accepted.count() as u64;
    assert!(n_accepted < MUTATIONS_PER_FILE * 3 / 4, "{n_accepted} of {MUTATIONS_PER_FILE} accepted");
    // Linux alone tells how much memory the process ever held.
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the peak");
        let kibibytes: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(kibibytes < 256 << 10, "{kibibytes} KiB were held at once");
    }
}

fn pickle() -> Vec<u8> {
    let transposed = PickledTensor { name: "transposed", strides: &[1, 2], ..HONEST };
    let half = PickledTensor { name: "h", element: "HalfStorage", key: "1", n_elements: 8, strides: &[5, 2], ..HONEST };
    pickled_state(&[HONEST, transposed, half])
}

#[test]
fn mutated_safetensors() {
    check("model.safetensors", [("model.safetensors", honest_safetensors(&[("a", &[1.0, 2.0]), ("b", &[3.0])]))]);
}

#[test]
fn mutated_zip() {
    let file = torch_zip(&pickle(), &[("0", &four_floats()), ("1", &four_floats())]);
    check("pytorch_model.bin", [("pytorch_model.bin", file.clone())]);
    check("pytorch_model.bin", [("pytorch_model.bin", widen_zip(&file))]);
}

#[test]
fn mutated_legacy() {
    let file = torch_legacy(&pickle(), &[("0", 4, &four_floats()), ("1", 8, &four_floats())]);
    check("pytorch_model.bin", [("pytorch_model.bin", file)]);
}

#[test]
fn mutated_shard_index() {
    const INDEX: &str = "model.safetensors.index.json";
    let index = br#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#.to_vec();
    let shards = |name| honest_safetensors(&[(name, &[1.0])]);
    check(INDEX, [(INDEX, index), ("one.safetensors", shards("a")), ("two.safetensors", shards("b"))]);
}

#[test]
fn mutated_real_files() {
    for folder in ["zip", "legacy", "protocol4", "nested", "module"] {
        let path = format!("{}/tests/data/{folder}/pytorch_model.bin", env!("CARGO_MANIFEST_DIR"));
        check("pytorch_model.bin", [("pytorch_model.bin", std::fs::read(path).expect("a file"))]);
    }
}
