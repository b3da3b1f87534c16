//! The residual stream on the disk: between two layers for memory's sake, and after each layer to resume from.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use modegpt_model::{ResidualStore, StoreError};

use crate::run::RunError;

/// What the names of all scratch files begin with.
const PREFIX: &str = "stream-";

/// A stream that is read from one file and written to another, so that the input of a layer survives until its output is
/// complete.
pub(super) struct FileStore {
    input: Option<Mutex<File>>,
    output: Option<(File, PathBuf)>,
}

impl FileStore {
    /// Reads from `input` if there is one, writes to `output`.
    pub(super) fn new(input: Option<&Path>, output: &Path) -> Result<Self, RunError> {
        let open = || -> io::Result<Self> {
            let input = input.map(File::open).transpose()?.map(Mutex::new);
            Ok(Self { input, output: Some((File::create(output)?, output.to_owned())) })
        };
        open().map_err(|reason| RunError::Scratch { path: output.to_owned(), reason })
    }

    /// Reads from `input`, and refuses to be written to.
    pub(super) fn read_only(input: &Path) -> Result<Self, RunError> {
        let file = File::open(input).map_err(|reason| RunError::Scratch { path: input.to_owned(), reason })?;
        Ok(Self { input: Some(Mutex::new(file)), output: None })
    }
}

impl ResidualStore for FileStore {
    fn read(&self, start: usize, values: &mut [f32]) -> Result<(), StoreError> {
        let Some(input) = &self.input else { return Err("the stream has no input yet".into()) };
        let mut file = input.lock().map_err(|_| "a reader of the stream failed before")?;
        file.seek(SeekFrom::Start(4 * start as u64))?;
        let mut bytes = vec![0; 4 * values.len()];
        file.read_exact(&mut bytes)?;
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(())
    }

    fn write(&mut self, start: usize, values: &[f32]) -> Result<(), StoreError> {
        let Some((output, path)) = &mut self.output else { return Err("the stream can only be read".into()) };
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let written = output.seek(SeekFrom::Start(4 * start as u64)).and_then(|_| output.write_all(&bytes));
        Ok(written.map_err(|reason| RunError::Scratch { path: path.clone(), reason })?)
    }
}

/// The stream after a layer, as kept to resume from: its elements and their checksum.
#[derive(Clone, Debug)]
pub(super) struct Checkpointed {
    folder: PathBuf,
}

impl Checkpointed {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The file that holds the input of `layer`.
    pub(super) fn path(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("{PREFIX}{layer:05}.f32"))
    }

    /// Keeps the input of `layer`. Not forced to the disk: a checksum tells whether it got there.
    pub(super) fn save(&self, layer: usize, values: &[f32]) -> Result<(), RunError> {
        let path = self.path(layer);
        let write = || -> io::Result<()> {
            let temporary = path.with_extension("tmp");
            let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
            let mut sum = Checksum::default();
            for chunk in values.chunks(1 << 16) {
                let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
                sum.add(&bytes);
                out.write_all(&bytes)?;
            }
            out.write_all(&sum.0.to_le_bytes())?;
            out.flush()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|reason| RunError::Scratch { path: path.clone(), reason })
    }

    /// Ends a file that a [`FileStore`] wrote, so that it can be resumed from.
    pub(super) fn seal(&self, layer: usize, written: &Path) -> Result<(), RunError> {
        let path = self.path(layer);
        let seal = || -> io::Result<()> {
            let mut sum = Checksum::default();
            sum.add_all(&mut BufReader::with_capacity(1 << 20, File::open(written)?).take(u64::MAX))?;
            let mut file = fs::OpenOptions::new().append(true).open(written)?;
            file.write_all(&sum.0.to_le_bytes())?;
            fs::rename(written, &path)
        };
        seal().map_err(|reason| RunError::Scratch { path: path.clone(), reason })
    }

    /// Whether the input of `layer` is there, whole and as it was written.
    pub(super) fn is_intact(&self, layer: usize, n_elements: usize) -> bool {
        let check = || -> io::Result<bool> {
            let file = File::open(self.path(layer))?;
            if file.metadata()?.len() != 4 * n_elements as u64 + 8 {
                return Ok(false);
            }
            let mut reader = BufReader::with_capacity(1 << 20, file);
            let mut sum = Checksum::default();
            sum.add_all(&mut (&mut reader).take(4 * n_elements as u64))?;
            let mut stored = [0; 8];
            reader.read_exact(&mut stored)?;
            Ok(u64::from_le_bytes(stored) == sum.0)
        };
        check().unwrap_or(false)
    }

    /// The input of `layer`, in memory.
    pub(super) fn load(&self, layer: usize, n_elements: usize) -> Result<Vec<f32>, RunError> {
        let path = self.path(layer);
        let read = || -> io::Result<Vec<f32>> {
            let mut reader = BufReader::with_capacity(1 << 20, File::open(&path)?);
            let mut values = Vec::with_capacity(n_elements);
            let mut bytes = vec![0; 1 << 18];
            while values.len() < n_elements {
                let wanted = bytes.len().min(4 * (n_elements - values.len()));
                reader.read_exact(&mut bytes[..wanted])?;
                let parts = bytes[..wanted].chunks_exact(4);
                values.extend(parts.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
            Ok(values)
        };
        read().map_err(|reason| RunError::Scratch { path: path.clone(), reason })
    }

    /// Forgets the input of `layer`.
    pub(super) fn forget(&self, layer: usize) {
        // What cannot be removed now goes at the end.
        drop(fs::remove_file(self.path(layer)));
    }

    /// Forgets every input, also those that runs which were killed have left, whole or half written.
    pub(super) fn forget_all(&self) -> Result<(), RunError> {
        self.remove(|_| true)
    }

    /// Forgets what is half written: nothing can be resumed from it, and the disk may be full.
    pub(super) fn forget_half_written(&self) {
        // A run that ends by an error tells of that one.
        drop(self.remove(|path| path.extension().is_some_and(|ending| ending == "tmp")));
    }

    fn remove(&self, is_meant: impl Fn(&Path) -> bool) -> Result<(), RunError> {
        let remove = || -> io::Result<()> {
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_meant(&entry.path()) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        remove().map_err(|reason| RunError::Scratch { path: self.folder.clone(), reason })
    }
}

/// A sum that notices missing, changed and exchanged words.
#[derive(Default)]
struct Checksum(u64);

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        for word in bytes.chunks_exact(4) {
            let word = u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
    }

    /// Reads to the end; the length is a multiple of four.
    fn add_all(&mut self, reader: &mut impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 18];
        let mut held = 0;
        loop {
            let n = reader.read(&mut buffer[held..])?;
            held += n;
            let whole = held / 4 * 4;
            self.add(&buffer[..whole]);
            buffer.copy_within(whole..held, 0);
            held -= whole;
            if n == 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_stream_comes_back_and_damage_is_noticed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kept = Checkpointed::new(folder.path());
        let values: Vec<f32> = (0..100_003).map(|i| (i as f32).sin()).collect();
        kept.save(3, &values).expect("written");
        assert!(kept.is_intact(3, values.len()));
        assert!(!kept.is_intact(3, values.len() - 1));
        assert!(!kept.is_intact(2, values.len()));
        assert_eq!(kept.load(3, values.len()).expect("read"), values);

        let mut bytes = fs::read(kept.path(3)).expect("read");
        bytes[77_777] ^= 1;
        fs::write(kept.path(3), bytes).expect("written");
        assert!(!kept.is_intact(3, values.len()));
    }

    #[test]
    fn all_streams_are_forgotten_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kept = Checkpointed::new(folder.path());
        kept.save(0, &[1.0, 2.0]).expect("written");
        for name in ["stream-00001.tmp", "model.safetensors"] {
            fs::write(folder.path().join(name), b"half").expect("written");
        }
        kept.forget_all().expect("removed");
        let left: Vec<_> =
            fs::read_dir(folder.path()).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
        assert_eq!(left, ["model.safetensors"]);
    }

    #[test]
    fn a_stream_on_the_disk_equals_one_in_memory() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kept = Checkpointed::new(folder.path());
        let values: Vec<f32> = (0..5000).map(|i| (i as f32).cos()).collect();
        let path = folder.path().join("out.tmp");
        let mut first = FileStore::new(None, &path).expect("created");
        first.write(2000, &values[2000..]).expect("written");
        first.write(0, &values[..2000]).expect("written");
        drop(first);
        kept.seal(1, &path).expect("sealed");
        assert!(kept.is_intact(1, values.len()));
        let second = FileStore::new(Some(&kept.path(1)), &path).expect("opened");
        let mut read = vec![0.0; 1000];
        second.read(1500, &mut read).expect("read");
        assert_eq!(read, values[1500..2500]);
    }

    #[test]
    fn a_stream_that_is_only_read_leaves_no_file_and_takes_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kept = Checkpointed::new(folder.path());
        kept.save(2, &[1.0, 2.0, 3.0]).expect("written");
        let mut store = FileStore::read_only(&kept.path(2)).expect("opened");
        let mut read = [0.0; 2];
        store.read(1, &mut read).expect("read");
        assert_eq!(read.map(f32::to_bits), [2.0_f32, 3.0].map(f32::to_bits));
        store.write(0, &[9.0]).expect_err("it is only read");
        assert_eq!(kept.load(2, 3).expect("read"), [1.0, 2.0, 3.0]);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);

        let message = FileStore::read_only(&kept.path(7)).map(drop).expect_err("no such file").to_string();
        assert!(message.contains("stream-00007.f32"), "{message}");
    }
}
