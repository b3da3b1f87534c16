//! The residual streams of the dense model on a text, kept while models are compared with it.

use std::fs;
use std::path::PathBuf;

use modegpt_evaluation::KeptStreams;
use modegpt_model::StoreError;

use crate::run::scratch::Checkpointed;

/// What the streams of all texts may take on the disk. Beyond it they are computed for each cell.
const MOST_BYTES: u64 = 4 << 30;

/// A folder of streams, one file for each layer and group of windows.
pub(super) struct DenseStreams {
    /// Of all texts.
    folder: PathBuf,
    text: usize,
    most_bytes: u64,
}

impl DenseStreams {
    /// Those on the text of this index.
    pub(super) fn new(folder: PathBuf, text: usize) -> Self {
        Self { folder, text, most_bytes: MOST_BYTES }
    }

    fn group(&self, group: usize) -> PathBuf {
        self.folder.join(format!("{}-{group}", self.text))
    }

    /// Bytes of all streams that are kept.
    fn bytes(&self) -> std::io::Result<u64> {
        let mut bytes = 0;
        for group in fs::read_dir(&self.folder)? {
            for file in fs::read_dir(group?.path())? {
                bytes += file?.metadata()?.len();
            }
        }
        Ok(bytes)
    }
}

impl KeptStreams for DenseStreams {
    fn load(&self, group: usize, layer: usize, n_elements: usize) -> Result<Option<Vec<f32>>, StoreError> {
        let files = Checkpointed::new(&self.group(group));
        let is_there = files.is_intact(layer, n_elements);
        Ok(is_there.then(|| files.load(layer, n_elements)).transpose()?)
    }

    fn keep(&self, group: usize, layer: usize, stream: &[f32]) -> Result<(), StoreError> {
        let folder = self.group(group);
        fs::create_dir_all(&folder)?;
        if self.bytes()? + 4 * stream.len() as u64 <= self.most_bytes {
            Checkpointed::new(&folder).save(layer, stream)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_come_back_whole_or_not_at_all_and_stay_within_the_limit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let streams = |text| DenseStreams { folder: folder.path().join("dense"), text, most_bytes: 110 };
        let (first, second) = (streams(0), streams(1));
        let values: Vec<f32> = (0_u8..10).map(f32::from).collect();
        assert_eq!(first.load(0, 3, 10).expect("nothing yet"), None);
        first.keep(0, 3, &values).expect("48 bytes with the checksum");
        second.keep(1, 0, &values).expect("48 more");
        second.keep(1, 1, &values).expect("no room, which is no error");
        assert_eq!(first.load(0, 3, 10).expect("readable"), Some(values.clone()));
        assert_eq!(second.load(1, 0, 10).expect("readable"), Some(values));
        for (streams, group, layer, n) in [(&first, 0, 3, 9), (&first, 1, 0, 10), (&second, 1, 1, 10)] {
            assert_eq!(streams.load(group, layer, n).expect("not there"), None);
        }
        let file = Checkpointed::new(&first.group(0)).path(3);
        let mut bytes = fs::read(&file).expect("a file");
        bytes[5] ^= 1;
        fs::write(&file, bytes).expect("written");
        assert_eq!(first.load(0, 3, 10).expect("damaged"), None);
    }
}
