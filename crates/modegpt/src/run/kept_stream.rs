//! Residual streams of the refit on the compressed prefix.

use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use modegpt_calibration::check_finite;
use modegpt_model::{Block, Compute, ComputeError, Half, ResidualStore, ResidualStream};
use modegpt_text::Windows;

use super::calibrate::{Place, at_layer};
use super::scratch::{Checkpointed, FileStore};
use super::{CalibrationRun, RunError};

/// A stream that is kept on the disk between layers, to resume from, and in memory too unless memory is short.
pub(super) struct KeptStream<'a> {
    run: &'a CalibrationRun<'a>,
    size: StreamSize,
    kept: Checkpointed,
    place: Place,
}

/// How many samples of how many tokens a stream is of.
#[derive(Clone, Copy)]
pub(super) struct StreamSize {
    n_samples: usize,
    seq_len: usize,
    d_model: usize,
    /// Samples computed at once.
    batch: usize,
}

impl StreamSize {
    pub(super) fn of(run: &CalibrationRun<'_>, windows: &Windows) -> Self {
        let &Windows { n: n_samples, seq_len, .. } = windows;
        let batch = (run.batch_tokens / seq_len).clamp(1, n_samples);
        Self { n_samples, seq_len, d_model: run.model.config().d_model, batch }
    }

    pub(super) fn n_elements(self) -> usize {
        ResidualStream::elements(self.n_samples, self.seq_len, self.d_model)
    }

    pub(super) fn stream<'s>(self, store: Box<dyn ResidualStore + 's>) -> ResidualStream<'s> {
        ResidualStream::new(store, self.n_samples, self.seq_len, self.d_model, self.batch)
    }
}

impl<'a> KeptStream<'a> {
    /// The stream of `windows` at the input of `layer` as it was kept in `folder`; `None` if it is not whole.
    pub(super) fn resume(
        run: &'a CalibrationRun<'a>,
        windows: &Windows,
        folder: &Path,
        layer: usize,
    ) -> Result<Option<Self>, RunError> {
        let (kept, size) = (Checkpointed::new(folder), StreamSize::of(run, windows));
        if !kept.is_intact(layer, size.n_elements()) {
            return Ok(None);
        }
        let on_disk = run.memory_plan(true).stream_on_disk;
        let place = if on_disk { Place::Disk } else { Place::Memory(kept.load(layer, size.n_elements())?) };
        Ok(Some(Self { run, size, kept, place }))
    }

    /// The stream of `windows` at the input of the first layer, to be kept in `folder`.
    pub(super) async fn embed(
        run: &'a CalibrationRun<'a>,
        windows: &Windows,
        folder: PathBuf,
    ) -> Result<Self, RunError> {
        std::fs::create_dir_all(&folder).map_err(|reason| RunError::Scratch { path: folder.clone(), reason })?;
        let (kept, size) = (Checkpointed::new(&folder), StreamSize::of(run, windows));
        let (ids, weights) = (&windows.ids, &run.model.checkpoint);
        let place = if run.memory_plan(true).stream_on_disk {
            let output = kept.path(0).with_extension("tmp");
            let store = FileStore::new(None, &output)?;
            size.stream(Box::new(store)).embed(weights, ids, run.compute).await?;
            kept.seal(0, &output)?;
            Place::Disk
        } else {
            let mut values = vec![0.0; size.n_elements()];
            size.stream(Box::new(&mut values)).embed(weights, ids, run.compute).await?;
            kept.save(0, &values)?;
            Place::Memory(values)
        };
        Ok(Self { run, size, kept, place })
    }

    /// The stream before a half of `layer`, to be read only.
    pub(super) fn look(&mut self, layer: usize, half: Half) -> Result<ResidualStream<'_>, RunError> {
        let [before, _] = self.paths(layer, half);
        Ok(match &mut self.place {
            Place::Memory(values) => self.size.stream(Box::new(values)),
            Place::Disk => self.size.stream(Box::new(FileStore::read_only(&before)?)),
        })
    }

    /// The stream before a half of `layer`, to be replaced by that behind it.
    pub(super) fn open(&mut self, layer: usize, half: Half) -> Result<ResidualStream<'_>, RunError> {
        let [before, behind] = self.paths(layer, half);
        Ok(match &mut self.place {
            Place::Memory(values) => self.size.stream(Box::new(values)),
            Place::Disk => self.size.stream(Box::new(FileStore::new(Some(&before), &behind)?)),
        })
    }

    /// Carries all samples through a half of `layer`.
    pub(super) async fn carry(&mut self, layer: usize, half: Half, block: &Block) -> Result<(), RunError> {
        self.carry_by(layer, half, |_, x| Ok(block.forward_half(half, x))).await
    }

    /// Carries all samples through a half of `layer`, as `block` does whose `units` are known, `k` of each token.
    pub(super) async fn carry_units(
        &mut self,
        layer: usize,
        half: Half,
        block: &Block,
        units: &FileStore,
        k: usize,
    ) -> Result<(), RunError> {
        let compute = self.run.compute;
        self.carry_by(layer, half, |samples, x| {
            let [n_samples, seq_len, _] = x.dims();
            let rows = n_samples * seq_len;
            let mut values = vec![0.0; rows * k];
            units.read(samples.start * seq_len * k, &mut values)?;
            Ok(block.finish_half(half, x, compute.tensor(values, [rows, k])))
        })
        .await
    }

    /// Replaces the stream before a half of `layer` by what `step` makes of the samples.
    async fn carry_by(
        &mut self,
        layer: usize,
        half: Half,
        step: impl Fn(&Range<usize>, Tensor<3>) -> Result<Tensor<3>, ComputeError>,
    ) -> Result<(), RunError> {
        let compute = self.run.compute;
        let mut stream = self.open(layer, half)?;
        carry(compute, step, &mut stream).await.map_err(|source| at_layer(layer, source))
    }

    /// The files before and behind a half of `layer`, where the stream is not in memory.
    fn paths(&self, layer: usize, half: Half) -> [PathBuf; 2] {
        let middle = self.kept.path(layer).with_extension("middle");
        match half {
            Half::Attention => [self.kept.path(layer), middle],
            Half::Mlp => [middle, self.kept.path(layer + 1).with_extension("tmp")],
        }
    }

    /// Keeps the output of `layer` in place of its input.
    pub(super) fn settle(&mut self, layer: usize) -> Result<(), RunError> {
        match &self.place {
            Place::Memory(values) => self.kept.save(layer + 1, values)?,
            Place::Disk => {
                let [middle, output] = self.paths(layer, Half::Mlp);
                self.kept.seal(layer + 1, &output)?;
                // What cannot be removed is overwritten or goes with the rest.
                let _ = std::fs::remove_file(middle);
            }
        }
        // The input stays until the next layer is done: a run killed now repeats this layer from it.
        if layer > 0 {
            self.kept.forget(layer - 1);
        }
        Ok(())
    }
}

/// Samples of a stream, on the device.
pub(super) fn tensor(
    compute: &Compute,
    stream: &ResidualStream<'_>,
    samples: &Range<usize>,
) -> Result<Tensor<3>, ComputeError> {
    Ok(compute.tensor(stream.load(samples)?, stream.shape(samples)))
}

/// Replaces a stream by what `step` makes of the samples.
pub(super) async fn carry(
    compute: &Compute,
    step: impl Fn(&Range<usize>, Tensor<3>) -> Result<Tensor<3>, ComputeError>,
    stream: &mut ResidualStream<'_>,
) -> Result<(), ComputeError> {
    for samples in stream.batches() {
        let after = compute.read(step(&samples, tensor(compute, stream, &samples)?)?).await?;
        check_finite(&after)?;
        stream.store(&samples, &after)?;
    }
    Ok(())
}
