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

use std::path::PathBuf;

use burn::tensor::{Int, Tensor};
use modegpt_architecture::{LayerShape, LayerWeights, Linear, ModelConfig, WeightProvider};
use modegpt_calibration::{PrefixAccumulator, check_finite, forward_with_units};
use modegpt_checkpoint::OutputFolder;
use modegpt_compress::{PrefixRefit, refit_down, refit_output};
use modegpt_model::{Block, Half, ResidualStore};
use modegpt_statistics::PrefixStatistics;

use super::calibrate::at_layer;
use super::kept_stream::{KeptStream, tensor};
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
        let [original, compressed] = places(folder);
        let original = KeptStream::resume(run, &original, layer)?;
        let compressed = KeptStream::resume(run, &compressed, layer)?;
        let Some((original, compressed)) = original.zip(compressed) else { return Ok(None) };
        Ok(Some(Self { run, original, compressed, units: units_file(run, folder)? }))
    }

    /// The streams at the input of the first layer.
    pub(super) async fn begin(run: &'a CalibrationRun<'a>, folder: &OutputFolder) -> Result<Self, RunError> {
        let [original, compressed] = places(folder);
        Ok(Self {
            run,
            original: KeptStream::embed(run, original).await?,
            compressed: KeptStream::embed(run, compressed).await?,
            units: units_file(run, folder)?,
        })
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
            self.original.carry(layer, Half::Mlp, &original).await?;
            self.compressed.carry(layer, Half::Mlp, &block(&weights)).await?;
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

    /// Carries the original stream through a half of `layer`, and observes what the last map of that half of the compressed
    /// layer is to make of the compressed stream.
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
        let (run, at) = (self.run, |source| at_layer(layer, source));
        let mut sums = PrefixAccumulator::new(k, run.model.config().d_model, run.gram_path);
        let inputs = self.compressed.look(layer, half)?;
        let mut stream = self.original.open(layer, half)?;
        for samples in stream.batches() {
            let before = tensor(run.compute, &stream, &samples).map_err(at)?;
            let behind = original.forward_half(half, before.clone());
            let values = run.compute.read(behind.clone()).await.map_err(at)?;
            check_finite(&values).map_err(at)?;
            let input = tensor(run.compute, &inputs, &samples).map_err(at)?;
            let (wanted, units) = of_batch(input.clone(), [before, behind]);
            if let Some(kept) = &mut self.units {
                let values = run.compute.read(units.clone()).await.map_err(at)?;
                kept.write(samples.start * run.calibration.windows.seq_len * k, &values).map_err(|e| at(e.into()))?;
            }
            sums.add(input, units, wanted, run.compute).await.map_err(at)?;
            stream.store(&samples, &values).map_err(at)?;
        }
        Ok(sums.finish())
    }

    /// Carries the compressed stream through a half whose units, `k` of each token, were observed just now.
    async fn carry_observed(&mut self, layer: usize, half: Half, block: &Block, k: usize) -> Result<(), RunError> {
        match &self.units {
            Some(units) => self.compressed.carry_units(layer, half, block, units, k).await,
            None => self.compressed.carry(layer, half, block).await,
        }
    }

    /// Carries both streams through a layer of which, as of all before it, nothing was removed: there is nothing to make
    /// good, and a refit would only round.
    pub(super) async fn pass(&mut self, layer: usize) -> Result<(), RunError> {
        let block = self.block(layer)?;
        for stream in [&mut self.original, &mut self.compressed] {
            for half in [Half::Attention, Half::Mlp] {
                stream.carry(layer, half, &block).await?;
            }
        }
        self.settle(layer)
    }

    /// Both streams have passed `layer`.
    fn settle(&mut self, layer: usize) -> Result<(), RunError> {
        self.original.settle(layer)?;
        self.compressed.settle(layer)?;
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

/// The file for units, if this device shall keep them.
fn units_file(run: &CalibrationRun<'_>, folder: &OutputFolder) -> Result<Option<FileStore>, RunError> {
    run.compute.is_host.then(|| FileStore::scratch(&units_path(folder))).transpose()
}

/// Forgets, after an error, what nothing can be resumed from: the disk may be full.
pub(super) fn forget_half_written(folder: &OutputFolder) {
    for place in places(folder) {
        Checkpointed::new(&place).forget_half_written();
    }
    // There may be none; and the run ends by another error, which is told.
    drop(std::fs::remove_file(units_path(folder)));
}

fn units_path(folder: &OutputFolder) -> PathBuf {
    folder.path().join("prefix").join("units.f32")
}

fn places(folder: &OutputFolder) -> [PathBuf; 2] {
    ["original", "compressed"].map(|name| folder.path().join("prefix").join(name))
}
