//! Compression behind compressed layers: the last map of each half of a layer is refitted on the stream that the compressed
//! layers before it really produce.
//!
//! Two streams could be wanted behind a half. That of the original model draws errors of earlier layers back; but an
//! erroneous stream does not tell all of the right one, and least squares shrink what they cannot predict, every layer a
//! little more. What the original half makes of the erroneous stream draws nothing back, and shrinks nothing. Halfway between
//! is far better than either (tests/results/README.md, "What mode best gains"):
//!
//! ```text
//! behind the MLP      ½ y + ½ (x̂ + mlp(x̂))
//! behind attention    ½ y + ½ (x̂ + y - x)        x, x̂ before, y behind the half; hats: the compressed model's
//! ```
//!
//! Attention adds to `x` nearly what it adds to `x̂`, and that is known already; the MLP does not.
//!
//! Beside the calibration samples their [openings](super::openings) are carried along.

use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor};
use modegpt_architecture::{LayerShape, LayerWeights, Linear, ModelConfig, WeightProvider};
use modegpt_calibration::{PrefixAccumulator, check_finite, forward_with_units};
use modegpt_checkpoint::OutputFolder;
use modegpt_compress::{PrefixRefit, refit_down, refit_output};
use modegpt_model::{Block, Half, ResidualStore};
use modegpt_statistics::PrefixStatistics;
use modegpt_text::Windows;

use super::calibrate::at_layer;
use super::kept_stream::{KeptStream, tensor};
use super::openings::Openings;
use super::scratch::{Checkpointed, FileStore};
use super::{CalibrationRun, RunError};

/// How far what is wanted behind a half lies towards the original stream, from the erroneous one with what the original half
/// adds.
const DRAWN_BACK: f32 = 0.5;

/// A layer whose last maps were refitted.
pub(super) struct Refitted {
    pub(super) weights: LayerWeights,
    /// How often the factorisation for the output map was repeated.
    pub(super) output_attempts: u32,
    /// The same for the down map.
    pub(super) down_attempts: u32,
}

/// Both streams at the input of the next layer.
pub(super) struct Prefix<'a> {
    run: &'a CalibrationRun<'a>,
    samples: Streams<'a>,
    openings: Streams<'a>,
}

/// Both streams of some samples.
struct Streams<'a> {
    run: &'a CalibrationRun<'a>,
    seq_len: usize,
    /// For how many tokens each of them counts; for one if `None`.
    counts: Option<Vec<f32>>,
    original: KeptStream<'a>,
    compressed: KeptStream<'a>,
    /// What enters the last map of the compressed half, from the pass that observes it to the one that carries the stream
    /// through the refitted map. On the disk, for there are several times as many values as in a stream; and not on cards,
    /// which compute it again sooner than they hand it over.
    units: Option<FileStore>,
}

impl<'a> Prefix<'a> {
    /// The streams at the input of `layer` as an unfinished run kept them; `None` if they are not whole.
    pub(super) fn resume(
        run: &'a CalibrationRun<'a>,
        folder: &OutputFolder,
        layer: usize,
    ) -> Result<Option<Self>, RunError> {
        let [samples, openings] = places(folder);
        let Openings { windows, counts } = openings_of(run);
        let samples = Streams::resume(run, &run.calibration.windows, None, &samples, layer)?;
        let openings = Streams::resume(run, &windows, Some(counts), &openings, layer)?;
        Ok(samples.zip(openings).map(|(samples, openings)| Self { run, samples, openings }))
    }

    /// The streams at the input of the first layer.
    pub(super) async fn begin(run: &'a CalibrationRun<'a>, folder: &OutputFolder) -> Result<Self, RunError> {
        let [samples, openings] = places(folder);
        let Openings { windows, counts } = openings_of(run);
        let samples = Streams::begin(run, &run.calibration.windows, None, &samples).await?;
        let openings = Streams::begin(run, &windows, Some(counts), &openings).await?;
        Ok(Self { run, samples, openings })
    }

    /// Refits the maps of a compressed layer and carries both streams through it.
    ///
    /// - `units`: its hidden units, by their place in the original layer
    /// - `tokens_per_unit`: for how many the map that is there counts
    pub(super) async fn refit(
        &mut self,
        layer: usize,
        weights: LayerWeights,
        shape: &LayerShape,
        units: &[usize],
        maps: PrefixRefit,
        tokens_per_unit: f64,
    ) -> Result<Refitted, RunError> {
        let (run, config) = (self.run, self.run.model.config());
        let small = ModelConfig { layers: vec![shape.clone()], ..config.clone() };
        let block = |weights: &LayerWeights| Block::new(weights.clone(), shape, &small, run.compute);
        let ridge = |map: &Linear| tokens_per_unit * map.weight.rows as f64 / run.calibration.windows.ids.len() as f64;
        let original = self.block(layer)?;

        let seen = self.observe_attention(layer, &original, &block(&weights), weights.output.weight.rows).await?;
        let (mut weights, output_attempts) = refit_output(layer, &weights, &seen, ridge(&weights.output))?;
        self.carry_observed(layer, Half::Attention, &block(&weights), weights.output.weight.rows).await?;

        let mut down_attempts = 0;
        if maps == PrefixRefit::All {
            let seen = self.observe_mlp(layer, &original, units).await?;
            (weights, down_attempts) = refit_down(layer, &weights, &seen, ridge(&weights.down))?;
            self.carry_observed(layer, Half::Mlp, &block(&weights), units.len()).await?;
        } else {
            self.carry(layer, Half::Mlp, [&original, &block(&weights)]).await?;
        }
        self.settle(layer)?;
        Ok(Refitted { weights, output_attempts, down_attempts })
    }

    /// Carries the original stream through the attention of `layer`, and observes what the output map of the compressed one,
    /// which has `k` inputs, is to make of the compressed stream.
    async fn observe_attention(
        &mut self,
        layer: usize,
        original: &Block,
        compressed: &Block,
        k: usize,
    ) -> Result<PrefixStatistics, RunError> {
        let of_batch = |x: Tensor<3>, [before, behind]: [Tensor<3>; 2]| {
            let (_, units) = forward_with_units(compressed, Half::Attention, x.clone());
            (behind + (x - before) * (1.0 - DRAWN_BACK), units)
        };
        self.observe(layer, Half::Attention, original, of_batch, k).await
    }

    /// The same for the MLP. Its hidden units are some of those of the original one, which have to be computed anyway.
    async fn observe_mlp(
        &mut self,
        layer: usize,
        original: &Block,
        units: &[usize],
    ) -> Result<PrefixStatistics, RunError> {
        let places: Vec<i32> = units.iter().map(|&unit| unit as i32).collect();
        let of_batch = |x: Tensor<3>, [_, behind]: [Tensor<3>; 2]| {
            let (erroneous, hidden) = forward_with_units(original, Half::Mlp, x);
            let places = Tensor::<1, Int>::from_data(places.as_slice(), &hidden.device());
            (behind * DRAWN_BACK + erroneous * (1.0 - DRAWN_BACK), hidden.select(1, places))
        };
        self.observe(layer, Half::Mlp, original, of_batch, units.len()).await
    }

    /// Carries the original streams through a half of `layer`, and observes what the last map of that half of the compressed
    /// layer is to make of the compressed ones.
    ///
    /// `of_batch` of the compressed stream before the half and the original one before and behind it: the stream that is
    /// wanted, and the `k` units of the compressed half.
    async fn observe(
        &mut self,
        layer: usize,
        half: Half,
        original: &Block,
        of_batch: impl Fn(Tensor<3>, [Tensor<3>; 2]) -> (Tensor<3>, Tensor<2>),
        k: usize,
    ) -> Result<PrefixStatistics, RunError> {
        let mut sums = PrefixAccumulator::new(k, self.run.model.config().d_model, self.run.gram_path);
        for streams in [&mut self.samples, &mut self.openings] {
            streams.observe(layer, half, original, &of_batch, k, &mut sums).await?;
        }
        Ok(sums.finish())
    }

    /// Carries the compressed streams through a half whose units, `k` of each token, were observed just now.
    async fn carry_observed(&mut self, layer: usize, half: Half, block: &Block, k: usize) -> Result<(), RunError> {
        for streams in [&mut self.samples, &mut self.openings] {
            match &streams.units {
                Some(units) => streams.compressed.carry_units(layer, half, block, units, k).await?,
                None => streams.compressed.carry(layer, half, block).await?,
            }
        }
        Ok(())
    }

    /// Carries the original streams and the compressed ones through a half, each through that of its own block.
    async fn carry(&mut self, layer: usize, half: Half, [original, compressed]: [&Block; 2]) -> Result<(), RunError> {
        for streams in [&mut self.samples, &mut self.openings] {
            streams.original.carry(layer, half, original).await?;
            streams.compressed.carry(layer, half, compressed).await?;
        }
        Ok(())
    }

    /// Carries both streams through a layer of which, as of all before it, nothing was removed: there is nothing to make
    /// good, and a refit would only round.
    pub(super) async fn pass(&mut self, layer: usize) -> Result<(), RunError> {
        let block = self.block(layer)?;
        for half in [Half::Attention, Half::Mlp] {
            self.carry(layer, half, [&block, &block]).await?;
        }
        self.settle(layer)
    }

    /// All streams have passed `layer`.
    fn settle(&mut self, layer: usize) -> Result<(), RunError> {
        for streams in [&mut self.samples, &mut self.openings] {
            streams.original.settle(layer)?;
            streams.compressed.settle(layer)?;
        }
        self.run.compute.release();
        Ok(())
    }

    /// A layer of the original model.
    fn block(&self, layer: usize) -> Result<Block, RunError> {
        let config = self.run.model.config();
        let weights = self.run.model.checkpoint.layer(layer)?;
        Ok(Block::new(weights, &config.layers[layer], config, self.run.compute))
    }
}

impl<'a> Streams<'a> {
    /// The streams of `windows` at the input of `layer` as they were kept at `place`; `None` if they are not whole.
    fn resume(
        run: &'a CalibrationRun<'a>,
        windows: &Windows,
        counts: Option<Vec<f32>>,
        place: &Path,
        layer: usize,
    ) -> Result<Option<Self>, RunError> {
        let [original, compressed] = both(place);
        let original = KeptStream::resume(run, windows, &original, layer)?;
        let compressed = KeptStream::resume(run, windows, &compressed, layer)?;
        let Some((original, compressed)) = original.zip(compressed) else { return Ok(None) };
        let (seq_len, units) = (windows.seq_len, units_file(run, place)?);
        Ok(Some(Self { run, seq_len, counts, original, compressed, units }))
    }

    /// The streams of `windows` at the input of the first layer, to be kept at `place`.
    async fn begin(
        run: &'a CalibrationRun<'a>,
        windows: &Windows,
        counts: Option<Vec<f32>>,
        place: &Path,
    ) -> Result<Self, RunError> {
        let [original, compressed] = both(place);
        Ok(Self {
            run,
            seq_len: windows.seq_len,
            counts,
            original: KeptStream::embed(run, windows, original).await?,
            compressed: KeptStream::embed(run, windows, compressed).await?,
            units: units_file(run, place)?,
        })
    }

    /// [`Prefix::observe`] of these samples, added to `sums`.
    async fn observe(
        &mut self,
        layer: usize,
        half: Half,
        original: &Block,
        of_batch: &impl Fn(Tensor<3>, [Tensor<3>; 2]) -> (Tensor<3>, Tensor<2>),
        k: usize,
        sums: &mut PrefixAccumulator,
    ) -> Result<(), RunError> {
        let (compute, at) = (self.run.compute, |source| at_layer(layer, source));
        let inputs = self.compressed.look(layer, half)?;
        let mut stream = self.original.open(layer, half)?;
        for samples in stream.batches() {
            let before = tensor(compute, &stream, &samples).map_err(at)?;
            let behind = original.forward_half(half, before.clone());
            let values = compute.read(behind.clone()).await.map_err(at)?;
            check_finite(&values).map_err(at)?;
            let input = tensor(compute, &inputs, &samples).map_err(at)?;
            let (wanted, units) = of_batch(input.clone(), [before, behind]);
            let tokens = samples.start * self.seq_len..samples.end * self.seq_len;
            if let Some(kept) = &mut self.units {
                let values = compute.read(units.clone()).await.map_err(at)?;
                kept.write(tokens.start * k, &values).map_err(|e| at(e.into()))?;
            }
            let counts = self.counts.as_ref().map(|counts| &counts[tokens]);
            sums.add(input, units, wanted, counts, compute).await.map_err(at)?;
            stream.store(&samples, &values).map_err(at)?;
        }
        Ok(())
    }
}

fn openings_of(run: &CalibrationRun<'_>) -> Openings {
    Openings::of(&run.calibration.windows, run.model.tokenizer.prefix_ids())
}

/// The file for units, if this device shall keep them.
fn units_file(run: &CalibrationRun<'_>, place: &Path) -> Result<Option<FileStore>, RunError> {
    run.compute.is_host.then(|| FileStore::scratch(&units_path(place))).transpose()
}

/// Forgets, after an error, what nothing can be resumed from: the disk may be full.
pub(super) fn forget_half_written(folder: &OutputFolder) {
    for place in places(folder) {
        for stream in both(&place) {
            Checkpointed::new(&stream).forget_half_written();
        }
        // There may be none; and the run ends by another error, which is told.
        drop(std::fs::remove_file(units_path(&place)));
    }
}

/// Where the streams of the samples are, and those of the openings.
fn places(folder: &OutputFolder) -> [PathBuf; 2] {
    ["samples", "openings"].map(|name| folder.path().join("prefix").join(name))
}

fn both(place: &Path) -> [PathBuf; 2] {
    ["original", "compressed"].map(|name| place.join(name))
}

fn units_path(place: &Path) -> PathBuf {
    place.join("units.f32")
}
