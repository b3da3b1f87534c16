//! The residual stream on the disk: between two layers for memory's sake, and after each layer to resume from.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytemuck::{cast_slice, cast_slice_mut};
use modegpt_model::{ResidualStore, StoreError};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::run::RunError;

/// What the names of all scratch files begin with.
const PREFIX: &str = "stream-";

/// Bytes of the checksum behind the elements.
const SUM_BYTES: u64 = 8;

/// Values of all samples, read from one file and written to another, so that the input of a layer survives until its output is
/// complete; or, where nothing has to survive, to the same.
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

    /// An empty file that gives back what is written to it.
    pub(super) fn scratch(path: &Path) -> Result<Self, RunError> {
        let open = || -> io::Result<Self> {
            let output = File::create(path)?;
            Ok(Self { input: Some(Mutex::new(File::open(path)?)), output: Some((output, path.to_owned())) })
        };
        open().map_err(|reason| RunError::Scratch { path: path.to_owned(), reason })
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
        Ok(file.read_exact(cast_slice_mut(values))?)
    }

    fn write(&mut self, start: usize, values: &[f32]) -> Result<(), StoreError> {
        let Some((output, path)) = &mut self.output else { return Err("the stream can only be read".into()) };
        let written = output.seek(SeekFrom::Start(4 * start as u64)).and_then(|_| output.write_all(cast_slice(values)));
        Ok(written.map_err(|reason| RunError::Scratch { path: path.clone(), reason })?)
    }
}

/// The stream after a layer, as kept to resume from: its elements, in the byte order of the machine that will read them
/// again, and their checksum.
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
            let (temporary, bytes) = (path.with_extension("tmp"), cast_slice(values));
            let mut out = File::create(&temporary)?;
            out.write_all(bytes)?;
            out.write_all(&xxh3_64(bytes).to_le_bytes())?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|reason| RunError::Scratch { path: path.clone(), reason })
    }

    /// Ends a file that a [`FileStore`] wrote, so that it can be resumed from.
    pub(super) fn seal(&self, layer: usize, written: &Path) -> Result<(), RunError> {
        let path = self.path(layer);
        let seal = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new().read(true).append(true).open(written)?;
            let sum = checksum(&mut file)?;
            file.write_all(&sum.to_le_bytes())?;
            fs::rename(written, &path)
        };
        seal().map_err(|reason| RunError::Scratch { path: path.clone(), reason })
    }

    /// Whether the input of `layer` is there, whole and as it was written.
    pub(super) fn is_intact(&self, layer: usize, n_elements: usize) -> bool {
        let check = || -> io::Result<bool> {
            let mut file = File::open(self.path(layer))?;
            let n_bytes = 4 * n_elements as u64;
            if file.metadata()?.len() != n_bytes + SUM_BYTES {
                return Ok(false);
            }
            let sum = checksum(&mut (&mut file).take(n_bytes))?;
            let mut stored = [0; SUM_BYTES as usize];
            file.read_exact(&mut stored)?;
            Ok(u64::from_le_bytes(stored) == sum)
        };
        check().unwrap_or(false)
    }

    /// The input of `layer`, in memory.
    pub(super) fn load(&self, layer: usize, n_elements: usize) -> Result<Vec<f32>, RunError> {
        let path = self.path(layer);
        let read = || -> io::Result<Vec<f32>> {
            let mut values = vec![0.0; n_elements];
            File::open(&path)?.read_exact(cast_slice_mut(&mut values))?;
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
        let is_half = |path: &Path| path.extension().is_some_and(|ending| ending == "tmp" || ending == "middle");
        drop(self.remove(is_half));
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

/// Of all that is left to read: notices missing, changed and exchanged bytes.
fn checksum(reader: &mut impl Read) -> io::Result<u64> {
    let (mut sum, mut buffer) = (Xxh3::new(), vec![0; 1 << 18]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(sum.digest()),
            n => sum.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
        for name in ["stream-00001.tmp", "stream-00001.middle", "model.safetensors"] {
            fs::write(folder.path().join(name), b"half").expect("written");
        }
        let left = || -> BTreeSet<_> {
            let entries = fs::read_dir(folder.path()).expect("a folder");
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name")).collect()
        };
        kept.forget_half_written();
        assert_eq!(left(), ["model.safetensors", "stream-00000.f32"].map(str::to_owned).into());
        kept.forget_all().expect("removed");
        assert_eq!(left(), ["model.safetensors".to_owned()].into());
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
    fn a_scratch_file_gives_back_what_was_written_last() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("units");
        fs::write(&path, [7; 100]).expect("what a run that was killed has left");
        let mut scratch = FileStore::scratch(&path).expect("created");
        let mut read = [0.0; 2];
        scratch.read(0, &mut read).expect_err("nothing is left of what was there");
        for values in [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]] {
            scratch.write(0, &values).expect("written");
            scratch.read(1, &mut read).expect("read");
            assert_eq!(read.map(f32::to_bits), [values[1], values[2]].map(f32::to_bits));
        }
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
