//! Calibration: one pass over the layers, statistics of each to the disk.

use std::ops::Range;
use std::path::{Path, PathBuf};

use modegpt_architecture::WeightProvider;
use modegpt_calibration::{CalibrationError, Collect, GramPath, Observing, observe_layer, pass_layer};
use modegpt_checkpoint::{Existing, Journal, OutputFolder};
use modegpt_model::{Compute, ComputeError};
use modegpt_statistics::{RowFisher, StatisticsHeader};
use modegpt_text::Windows;

use super::kept_stream::StreamSize;
use super::memory::Workload;
use super::request_words::name;
use super::scratch::{Checkpointed, FileStore};
use super::{MemoryPlan, RunError, StatisticsFolder};
use crate::{Calibration, LabelledSamples, Model, Reporter, Silent};

/// A calibration to be done.
pub struct CalibrationRun<'a> {
    /// The model to observe.
    pub model: &'a Model,
    /// The samples.
    pub calibration: &'a Calibration,
    /// What computes.
    pub compute: &'a Compute,
    /// Where the largest Gram matrix is summed.
    pub gram_path: GramPath,
    /// What is collected beside the usual.
    pub collect: Collect,
    /// Compute gradients of the loss over about so many of the calibration tokens.
    pub gradient_tokens: Option<usize>,
    /// Compute gradients of the loss of these instead, on their completions alone.
    pub labelled: Option<&'a LabelledSamples>,
    /// With the gradients the Fisher information of the rows of every map, summed in this way.
    pub row_fisher: Option<RowFisher>,
    /// Tokens computed at once.
    pub batch_tokens: usize,
    /// Sums are formed over so many consecutive parts of the samples, then added in order.
    pub n_shards: usize,
    /// Keep the residual stream on the disk if more host memory than this would be needed.
    pub max_host_bytes: Option<u64>,
    /// Hears of progress.
    pub reporter: &'a dyn Reporter,
}

/// Writes statistics of every layer to the folder `target`.
///
/// # Errors
/// [`RunError`]; nothing appears at `target` then.
pub async fn calibrate(run: &CalibrationRun<'_>, target: &Path, existing: Existing) -> Result<PathBuf, RunError> {
    run.check(&run.memory_plan(false))?;
    let folder = OutputFolder::begin(target, existing, &run.journal())?;
    let observed = run.observe_all(&folder, "").await;
    let ((), folder) = RunError::end(observed, folder)?;
    Ok(folder.commit()?)
}

impl<'a> CalibrationRun<'a> {
    /// A run with 2048 tokens at once, in one part, with nothing collected beside the usual, that tells nobody.
    pub fn new(model: &'a Model, calibration: &'a Calibration, compute: &'a Compute, gram_path: GramPath) -> Self {
        Self {
            model,
            calibration,
            compute,
            gram_path,
            collect: Collect::default(),
            gradient_tokens: None,
            labelled: None,
            row_fisher: None,
            batch_tokens: 2048,
            n_shards: 1,
            max_host_bytes: None,
            reporter: &Silent,
        }
    }

    /// The same run with fewer tokens at once, down to one sample, as `most` bytes of device memory demand. Where there are
    /// no samples nothing passes through the device.
    ///
    /// # Errors
    /// [`RunError::DeviceMemory`] if one sample alone needs more.
    pub fn within_device(mut self, most: u64) -> Result<Self, RunError> {
        let Windows { seq_len, ref ids, .. } = self.calibration.windows;
        while !ids.is_empty() && self.memory_plan(false).device_bytes > most {
            if self.batch_tokens <= seq_len {
                let needed_mib = self.memory_plan(false).device_bytes.div_ceil(1 << 20);
                return Err(RunError::DeviceMemory { seq_len, needed_mib, allowed_mib: most >> 20 });
            }
            self.batch_tokens /= 2;
        }
        Ok(self)
    }
}

impl CalibrationRun<'_> {
    /// What memory this run will take, and the compression that follows; `prefix`: whether it refits down maps on the
    /// compressed prefix.
    pub fn memory_plan(&self, prefix: bool) -> MemoryPlan {
        let plan =
            MemoryPlan::new(self.model.config(), self.workload(), self.collect.inputs, prefix, self.max_host_bytes);
        match self.gradient_samples() {
            Some(samples) if !self.calibration.windows.ids.is_empty() => {
                plan.before_or_after(self.gradients(&samples).memory_plan())
            }
            _ => plan,
        }
    }

    /// Refuses what cannot be done within `plan`, before anything is written.
    ///
    /// # Errors
    /// [`RunError::SampleTooLong`] or [`RunError::Memory`].
    pub fn check(&self, plan: &MemoryPlan) -> Result<(), RunError> {
        let (found, most) = (self.calibration.windows.seq_len, self.model.config().max_positions);
        if found > most {
            return Err(RunError::SampleTooLong { found, most });
        }
        let needed = plan.host_bytes;
        match self.max_host_bytes {
            Some(allowed) if needed > allowed => {
                Err(RunError::Memory { needed_mib: needed.div_ceil(1 << 20), allowed_mib: allowed >> 20 })
            }
            _ => Ok(()),
        }
    }

    /// What a resumed run must have in common with this one, by the names that the command line has for it.
    pub(super) fn journal(&self) -> Journal {
        let windows = &self.calibration.windows;
        let always = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("model", self.model.fingerprint().to_owned()),
            ("calibration tokens", self.calibration.token_hash.clone()),
            ("--samples", windows.n.to_string()),
            ("--seq-len", windows.seq_len.to_string()),
            ("samples at once", self.workload().batch.to_string()),
            ("--shards", self.n_shards.to_string()),
            ("effects of logits", if self.collect.logits { "collected" } else { "left out" }.to_owned()),
            ("--device", self.device_words().to_owned()),
        ];
        let inputs = self.collect.inputs.then(|| ("--inputs", "given".to_owned()));
        let magnitudes = self.collect.magnitudes.then(|| ("sizes of inputs", "collected".to_owned()));
        let fisher = self.gradient_tokens.map(|n_tokens| ("--fisher", n_tokens.to_string()));
        let rows = self.row_fisher.map(|kind| ("--fisher-rows", name(kind)));
        let labelled = self.labelled.map(|labelled| ("tokens of --fisher-data", labelled.samples.token_hash.clone()));
        let entries = always.into_iter().chain(inputs).chain(magnitudes).chain(fisher).chain(rows).chain(labelled);
        entries.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn device_words(&self) -> &'static str {
        match (self.compute.is_host, self.gram_path) {
            (true, _) => "cpu",
            (false, GramPath::Host) => "a card, with Gram matrices from the processor",
            (false, GramPath::DeviceF32) => "a card, with Gram matrices in f32",
            (false, GramPath::DeviceF64) => "a card, with Gram matrices in f64",
        }
    }

    fn workload(&self) -> Workload {
        let windows = &self.calibration.windows;
        Workload {
            n_samples: windows.n,
            seq_len: windows.seq_len,
            batch: (self.batch_tokens / windows.seq_len).clamp(1, windows.n),
            is_host: self.compute.is_host,
        }
    }

    fn size(&self) -> StreamSize {
        StreamSize::of(self, &self.calibration.windows)
    }

    /// Consecutive ranges of samples, as equal as they can be.
    fn shards(&self) -> Vec<Range<usize>> {
        let (n, shards) = (self.workload().n_samples, self.n_shards.clamp(1, self.workload().n_samples));
        (0..shards).map(|shard| shard * n / shards..(shard + 1) * n / shards).collect()
    }

    /// Observes every layer that is not done yet, in `folder/subfolder`.
    pub(super) async fn observe_all(&self, folder: &OutputFolder, subfolder: &str) -> Result<(), RunError> {
        let kept = Checkpointed::new(folder.path());
        self.observe_rest(folder, subfolder, &kept).await.inspect_err(|_| kept.forget_half_written())
    }

    async fn observe_rest(&self, folder: &OutputFolder, subfolder: &str, kept: &Checkpointed) -> Result<(), RunError> {
        let n_layers = self.model.config().layers.len();
        let file = |layer: usize| format!("{subfolder}{}", StatisticsFolder::file_name(layer));
        let first = (0..n_layers).find(|layer| !folder.has(&file(*layer))).unwrap_or(n_layers);
        self.reporter.begin("calibrate", (n_layers * self.workload().n_samples) as u64);
        if first < n_layers {
            let mut place = self.enter(first, kept).await?;
            for layer in first..n_layers {
                self.observe(layer, &mut place, kept, folder, &file(layer)).await?;
            }
        }
        kept.forget_all()?;
        self.reporter.end();
        if let Some(samples) = self.gradient_samples() {
            self.gradients(&samples).write_all(folder, subfolder).await?;
        }
        Ok(())
    }

    /// The stream at the input of `layer`: as an earlier run kept it, or computed anew.
    async fn enter(&self, layer: usize, kept: &Checkpointed) -> Result<Place, RunError> {
        let on_disk = self.memory_plan(false).stream_on_disk;
        if layer > 0 && kept.is_intact(layer, self.size().n_elements()) {
            self.reporter.note(&format!("resuming at layer {layer}"));
            return Ok(if on_disk { Place::Disk } else { Place::Memory(kept.load(layer, self.size().n_elements())?) });
        }
        let mut place = if on_disk { Place::Disk } else { Place::Memory(vec![0.0; self.size().n_elements()]) };
        let ids = &self.calibration.windows.ids;
        let weights = &self.model.checkpoint;
        match &mut place {
            Place::Memory(values) => self.size().stream(Box::new(values)).embed(weights, ids, self.compute).await?,
            Place::Disk => {
                let output = kept.path(0).with_extension("tmp");
                let store = FileStore::new(None, &output)?;
                self.size().stream(Box::new(store)).embed(weights, ids, self.compute).await?;
                kept.seal(0, &output)?;
            }
        }
        for before in 0..layer {
            self.reporter.note(&format!("computing the stream through layer {before} again"));
            match &mut place {
                Place::Memory(values) => {
                    pass_layer(weights, before, &mut self.size().stream(Box::new(values)), self.compute, |_| {})
                        .await?;
                }
                Place::Disk => {
                    let output = kept.path(before + 1).with_extension("tmp");
                    let store = FileStore::new(Some(&kept.path(before)), &output)?;
                    pass_layer(weights, before, &mut self.size().stream(Box::new(store)), self.compute, |_| {}).await?;
                    kept.seal(before + 1, &output)?;
                    kept.forget(before);
                }
            }
        }
        Ok(place)
    }

    /// Observes one layer; afterwards its statistics and the next layer's input are on the disk, in that order of need:
    /// the input first, so that a run killed in between repeats the layer from an input that is still there.
    async fn observe(
        &self,
        layer: usize,
        place: &mut Place,
        kept: &Checkpointed,
        folder: &OutputFolder,
        file: &str,
    ) -> Result<(), RunError> {
        let n_samples = self.workload().n_samples;
        let progress = |done: usize| self.reporter.advance((layer * n_samples + done) as u64);
        let weights: &dyn WeightProvider = &self.model.checkpoint;
        let shards = self.shards();
        let observing = Observing { shards: &shards, path: self.gram_path, collect: self.collect };
        let statistics = match place {
            Place::Memory(values) => {
                let mut stream = self.size().stream(Box::new(&mut *values));
                let seen = observe_layer(weights, layer, &mut stream, observing, self.compute, progress).await?;
                drop(stream);
                kept.save(layer + 1, values)?;
                seen
            }
            Place::Disk => {
                let output = kept.path(layer + 1).with_extension("tmp");
                let store = FileStore::new(Some(&kept.path(layer)), &output)?;
                let mut stream = self.size().stream(Box::new(store));
                let seen = observe_layer(weights, layer, &mut stream, observing, self.compute, progress).await?;
                drop(stream);
                kept.seal(layer + 1, &output)?;
                seen
            }
        };
        let windows = &self.calibration.windows;
        let header = StatisticsHeader::new(
            layer,
            self.model.fingerprint(),
            self.calibration.token_hash.as_str(),
            windows.n,
            windows.seq_len,
        );
        let bytes = statistics.to_bytes(&header);
        folder.write(file, |out| Ok(out.write_all(&bytes)?))?;
        kept.forget(layer);
        Ok(())
    }
}

/// Where the stream waits between layers.
pub(super) enum Place {
    Memory(Vec<f32>),
    Disk,
}

/// A fault of the device or a store at `layer`.
pub(super) fn at_layer(layer: usize, source: ComputeError) -> RunError {
    CalibrationError::Compute { layer, source }.into()
}
