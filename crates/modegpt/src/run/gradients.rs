//! The backward pass, gradients of each layer to the disk.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use modegpt_architecture::{LayerShape, ModelConfig};
use modegpt_checkpoint::{Existing, Journal, OutputFolder};
use modegpt_gradient::{GradientOptions, LayerGradients, Loss, Samples, Tape, loss_elements};
use modegpt_model::{Compute, ResidualStore, StoreError};
use modegpt_statistics::{GradientsHeader, Labels};
use modegpt_text::token_hash;

use super::memory::{PROGRAM_BYTES, Workload, activation_bytes, layer_bytes, with_freed};
use super::{CalibrationRun, GradientsFolder, MemoryPlan, RunError};
use crate::gradient_samples::{LABELS, gradient_batch, gradient_samples, told_to};
use crate::{Calibration, Model, Reporter};

/// The tape, where it is kept on the disk. Its name is that of a scratch file, which go with an abandoned run.
const TAPE: &str = "stream-gradients.f32";

/// Gradients to be computed.
pub struct GradientRun<'a> {
    /// The model to differentiate.
    pub model: &'a Model,
    /// The samples.
    pub samples: &'a Calibration,
    /// Which of their tokens count, all if `None`; see [`Samples::counted`].
    pub counted: Option<&'a [bool]>,
    /// Labels, and what is asked beside the Gram matrices.
    pub options: GradientOptions,
    /// What computes.
    pub compute: &'a Compute,
    /// Tokens that a plain forward pass computes at once; this one computes no more, and fewer if they are many.
    pub batch_tokens: usize,
    /// Keep the inputs of all layers on the disk if more host memory than this would be needed.
    pub max_host_bytes: Option<u64>,
    /// Hears of progress.
    pub reporter: &'a dyn Reporter,
}

/// Writes gradients of every layer to the folder `target`.
///
/// A run that was killed begins anew when it is resumed: a backward pass over a few thousand tokens takes minutes, and half
/// a tape is of no use.
///
/// # Errors
/// [`RunError`]; nothing appears at `target` then.
pub async fn collect_gradients(run: &GradientRun<'_>, target: &Path, existing: Existing) -> Result<PathBuf, RunError> {
    run.check()?;
    let folder = OutputFolder::begin(target, existing, &run.journal())?;
    let written = run.write_all(&folder, "").await;
    let ((), folder) = RunError::end(written, folder)?;
    Ok(folder.commit()?)
}

impl CalibrationRun<'_> {
    /// Whether gradients are computed.
    pub(super) fn has_gradients(&self) -> bool {
        self.labelled.is_some() || self.gradient_tokens.is_some()
    }

    /// The samples of the backward pass, if there is one; statistics alone do not tell them.
    pub(super) fn gradient_samples(&self) -> Option<Cow<'_, Calibration>> {
        match (self.labelled, self.gradient_tokens) {
            (Some(labelled), _) => Some(Cow::Borrowed(&labelled.samples)),
            (None, Some(n_tokens)) if !self.calibration.windows.ids.is_empty() => {
                Some(Cow::Owned(gradient_samples(self.calibration, n_tokens)))
            }
            (None, _) => None,
        }
    }

    /// A backward pass over these samples with everything else as in this run. Labels that are given are taken as they are,
    /// else they are drawn from the model.
    pub(super) fn gradients<'a>(&'a self, samples: &'a Calibration) -> GradientRun<'a> {
        let labels = if self.labelled.is_some() { Labels::Next } else { LABELS };
        GradientRun {
            model: self.model,
            samples,
            counted: self.labelled.map(|labelled| labelled.counted.as_slice()),
            options: GradientOptions { labels, row_fisher: self.row_fisher },
            compute: self.compute,
            batch_tokens: self.batch_tokens,
            max_host_bytes: self.max_host_bytes,
            reporter: self.reporter,
        }
    }
}

impl GradientRun<'_> {
    /// An estimate of the memory this run will take.
    pub fn memory_plan(&self) -> MemoryPlan {
        let windows = &self.samples.windows;
        let config = self.model.config();
        let tape = 4 * Tape::elements(config, windows.n, windows.seq_len) as u64;
        // Attention is spelt out under autodiff, on the host too.
        let work = Workload { n_samples: windows.n, seq_len: windows.seq_len, batch: self.batch(), is_host: false };
        let weights = config.layers.iter().map(|shape| layer_bytes(config, shape)).max().unwrap_or(0);
        let sums = config.layers.iter().map(|shape| sums_bytes(config, shape)).max().unwrap_or(0);
        // The graph keeps activations, and as much again is in flight on the way back.
        let device_bytes = weights + 2 * activation_bytes(config, work);
        // The gradient of one map at a time, and its square.
        let device_bytes = device_bytes + if self.options.row_fisher.is_some() { 2 * weights } else { 0 };
        // The loss comes before any layer.
        let loss = 4 * loss_elements(config, windows.n * windows.seq_len) as u64;
        let without_tape = with_freed(PROGRAM_BYTES + (sums + device_bytes).max(loss));
        let stream_on_disk = self.max_host_bytes.is_some_and(|most| without_tape + tape > most);
        MemoryPlan {
            host_bytes: if stream_on_disk { without_tape } else { without_tape + tape },
            device_bytes: device_bytes.max(loss),
            scratch_bytes: if stream_on_disk { tape } else { 0 },
            stream_bytes: tape,
            stream_on_disk,
        }
    }

    /// Refuses what cannot be done, before anything is written.
    ///
    /// # Errors
    /// [`RunError::SampleTooLong`] or [`RunError::Memory`].
    pub fn check(&self) -> Result<(), RunError> {
        let (found, most) = (self.samples.windows.seq_len, self.model.config().max_positions);
        if found > most {
            return Err(RunError::SampleTooLong { found, most });
        }
        let needed = self.memory_plan().host_bytes;
        match self.max_host_bytes {
            Some(allowed) if needed > allowed => {
                Err(RunError::Memory { needed_mib: needed.div_ceil(1 << 20), allowed_mib: allowed >> 20 })
            }
            _ => Ok(()),
        }
    }

    /// Gives the gradients of each layer to `each`, from last to first. A tape that must not be in memory is the file
    /// `tape`, which is removed at the end.
    ///
    /// # Errors
    /// [`RunError`], also what `each` gives.
    pub async fn for_each_layer(
        &self,
        tape: &Path,
        each: impl FnMut(usize, LayerGradients) -> Result<(), RunError>,
    ) -> Result<Loss, RunError> {
        let windows = &self.samples.windows;
        let config = self.model.config();
        let n = Tape::elements(config, windows.n, windows.seq_len);
        let on_disk = self.memory_plan().stream_on_disk;
        let store: Box<dyn ResidualStore> =
            if on_disk { Box::new(TapeFile::create(tape, n)?) } else { Box::new(vec![0.0; n]) };
        let mut stream = Tape::new(store, config, windows.n, windows.seq_len, self.batch());
        let samples = Samples { ids: &windows.ids, counted: self.counted };
        let progress = told_to(self.reporter);
        let weights = &self.model.checkpoint;
        let options = &self.options;
        let collected =
            modegpt_gradient::collect_gradients(weights, &samples, options, &mut stream, self.compute, progress, each);
        let collected = collected.await;
        drop(stream);
        if on_disk {
            fs::remove_file(tape).map_err(|reason| RunError::Scratch { path: tape.to_owned(), reason })?;
        }
        let loss = collected?;
        self.reporter.end();
        Ok(loss)
    }

    /// Writes the files of all layers to `folder/subfolder`, unless they are all there.
    pub(super) async fn write_all(&self, folder: &OutputFolder, subfolder: &str) -> Result<(), RunError> {
        let file = |layer: usize| format!("{subfolder}{}", GradientsFolder::file_name(layer));
        if !(0..self.model.config().layers.len()).all(|layer| folder.has(&file(layer))) {
            self.for_each_layer(&folder.path().join(TAPE), |layer, gradients| {
                let bytes = gradients.to_bytes(&self.header(layer));
                folder.write(&file(layer), |out| Ok(out.write_all(&bytes)?))?;
                Ok(())
            })
            .await?;
        }
        // A run that was killed may have left one.
        Ok(folder.remove(TAPE)?)
    }

    /// What names the gradients of a layer.
    pub fn header(&self, layer: usize) -> GradientsHeader {
        let windows = &self.samples.windows;
        GradientsHeader {
            version: GradientsHeader::VERSION,
            layer,
            model_fingerprint: self.model.fingerprint().to_owned(),
            token_hash: self.token_hash(),
            n_samples: windows.n,
            seq_len: windows.seq_len,
            labels: self.options.labels,
            row_fisher: self.options.row_fisher,
        }
    }

    fn token_hash(&self) -> String {
        let Some(counted) = self.counted else { return self.samples.token_hash.clone() };
        let mask = counted.iter().map(|counts| u32::from(*counts));
        token_hash(&self.samples.windows.ids.iter().copied().chain(mask).collect::<Vec<_>>())
    }

    fn journal(&self) -> Journal {
        let windows = &self.samples.windows;
        let labels = match self.options.labels {
            Labels::Sampled { seed } => format!("sampled, seed {seed}"),
            Labels::Next => "next".to_owned(),
        };
        let row_fisher = self.options.row_fisher.map_or("none".to_owned(), |kind| format!("{kind:?}"));
        [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("model", self.model.fingerprint().to_owned()),
            ("tokens", self.token_hash()),
            ("samples", format!("{} of {} tokens", windows.n, windows.seq_len)),
            ("labels", labels),
            ("row fisher", row_fisher),
            ("batch", self.batch().to_string()),
            ("device", if self.compute.is_host { "cpu" } else { "card" }.to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    fn batch(&self) -> usize {
        gradient_batch(self.batch_tokens, &self.samples.windows)
    }
}

/// Gram matrices of a layer while they grow: a block in f32 beside the packed sum in f64.
fn sums_bytes(config: &ModelConfig, shape: &LayerShape) -> u64 {
    let per_head = (2 * config.n_heads + config.n_kv_heads) * shape.d_qk * shape.d_qk;
    8 * (2 * config.d_model * config.d_model + per_head) as u64
}

/// A tape in one file, read and written in place.
struct TapeFile {
    file: Mutex<File>,
}

impl TapeFile {
    fn create(path: &Path, n_elements: usize) -> Result<Self, RunError> {
        let create = || -> io::Result<Self> {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
            file.set_len(4 * n_elements as u64)?;
            Ok(Self { file: Mutex::new(file) })
        };
        create().map_err(|reason| RunError::Scratch { path: path.to_owned(), reason })
    }
}

impl ResidualStore for TapeFile {
    fn read(&self, start: usize, values: &mut [f32]) -> Result<(), StoreError> {
        let mut file = self.file.lock().map_err(|_| "a reader of the tape failed before")?;
        file.seek(SeekFrom::Start(4 * start as u64))?;
        let mut bytes = vec![0; 4 * values.len()];
        file.read_exact(&mut bytes)?;
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(())
    }

    fn write(&mut self, start: usize, values: &[f32]) -> Result<(), StoreError> {
        let file = self.file.get_mut().map_err(|_| "a reader of the tape failed before")?;
        file.seek(SeekFrom::Start(4 * start as u64))?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(file.write_all(&bytes)?)
    }
}
