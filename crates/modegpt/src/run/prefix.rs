//! Compression behind compressed layers: the last map of each module is refitted on the stream that the compressed layers
//! before it really produce, towards the stream of the original model.

use std::ops::Range;
use std::path::PathBuf;

use burn::tensor::Tensor;
use modegpt_architecture::{LayerShape, LayerWeights, Linear, ModelConfig, WeightProvider};
use modegpt_calibration::{LastMap, PrefixAccumulator, check_finite};
use modegpt_checkpoint::OutputFolder;
use modegpt_compress::{PrefixRefit, refit_down, refit_output};
use modegpt_model::{Block, Compute, ComputeError, ResidualStream};
use modegpt_statistics::PrefixStatistics;

use super::calibrate::{KeptStream, Within, at_layer};
use super::{CalibrationRun, RunError};

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
        Ok(original.zip(compressed).map(|(original, compressed)| Self { run, original, compressed }))
    }

    /// The streams at the input of the first layer.
    pub(super) async fn begin(run: &'a CalibrationRun<'a>, folder: &OutputFolder) -> Result<Self, RunError> {
        let [original, compressed] = places(folder);
        Ok(Self {
            run,
            original: KeptStream::embed(run, original).await?,
            compressed: KeptStream::embed(run, compressed).await?,
        })
    }

    /// Refits the maps of a compressed layer and carries both streams through it.
    /// `tokens_per_unit`: for how many the map that is there counts.
    pub(super) async fn refit(
        &mut self,
        layer: usize,
        weights: LayerWeights,
        shape: &LayerShape,
        maps: PrefixRefit,
        tokens_per_unit: f64,
    ) -> Result<Refitted, RunError> {
        let run = self.run;
        let config = run.model.config();
        let small = ModelConfig { layers: vec![shape.clone()], ..config.clone() };
        let block = |weights: &LayerWeights| Block::new(weights.clone(), shape, &small, run.compute);
        let n_tokens = run.calibration.windows.ids.len();
        let ridge = |map: &Linear| tokens_per_unit * map.weight.rows as f64 / n_tokens as f64;

        let seen = self.carry_original(layer, &weights, &block(&weights)).await?;
        let ridge_of_output = ridge(&weights.output);
        let (weights, output_attempts) = refit_output(layer, &weights, &seen, ridge_of_output)?;
        let (weights, down_attempts) = if maps == PrefixRefit::All {
            let seen = self.carry_through_attention(layer, &weights, &block(&weights)).await?;
            let (weights, attempts) = refit_down(layer, &weights, &seen, ridge(&weights.down))?;
            let block = block(&weights);
            self.carry_compressed(layer, Within::Middle, |x| block.forward_mlp(x)).await?;
            (weights, attempts)
        } else {
            let block = block(&weights);
            self.carry_compressed(layer, Within::Input, |x| block.forward(x)).await?;
            (weights, 0)
        };
        self.compressed.settle(layer)?;
        run.compute.release();
        Ok(Refitted { weights, output_attempts, down_attempts })
    }

    /// Carries the compressed stream from a place in `layer` to its output.
    async fn carry_compressed(
        &mut self,
        layer: usize,
        from: Within,
        block: impl Fn(Tensor<3>) -> Tensor<3>,
    ) -> Result<(), RunError> {
        let mut stream = self.compressed.open(layer, from, Within::Output)?;
        let carried = carry(self.run.compute, block, &mut stream).await;
        carried.map_err(|source| at_layer(layer, source))
    }

    /// Carries the original stream through `layer`, and observes on the way what the attention of the compressed one is to
    /// make of the compressed stream.
    async fn carry_original(
        &mut self,
        layer: usize,
        weights: &LayerWeights,
        compressed: &Block,
    ) -> Result<PrefixStatistics, RunError> {
        let (run, at) = (self.run, |source| at_layer(layer, source));
        let original = self.block(layer)?;
        let mut sums = PrefixAccumulator::new(LastMap::Output, &weights.output, run.gram_path);
        let inputs = self.compressed.look(layer, Within::Input)?;
        let mut stream = self.original.open(layer, Within::Input, Within::Output)?;
        for samples in stream.batches() {
            let middle = original.forward_attention(tensor(run.compute, &stream, &samples).map_err(at)?);
            let target = run.compute.read(middle.clone()).await.map_err(at)?;
            let input = tensor(run.compute, &inputs, &samples).map_err(at)?;
            sums.add(compressed, input, &target, run.compute).await.map_err(at)?;
            let after = run.compute.read(original.forward_mlp(middle)).await.map_err(at)?;
            check_finite(&after).map_err(at)?;
            stream.store(&samples, &after).map_err(at)?;
        }
        drop(stream);
        self.original.settle(layer)?;
        Ok(sums.finish())
    }

    /// Carries the compressed stream through the attention of a compressed layer, and observes what its MLP is to make of
    /// it.
    async fn carry_through_attention(
        &mut self,
        layer: usize,
        weights: &LayerWeights,
        compressed: &Block,
    ) -> Result<PrefixStatistics, RunError> {
        let (run, at) = (self.run, |source| at_layer(layer, source));
        let mut sums = PrefixAccumulator::new(LastMap::Down, &weights.down, run.gram_path);
        let targets = self.original.look(layer + 1, Within::Input)?;
        let mut stream = self.compressed.open(layer, Within::Input, Within::Middle)?;
        for samples in stream.batches() {
            let middle = compressed.forward_attention(tensor(run.compute, &stream, &samples).map_err(at)?);
            let target = targets.load(&samples).map_err(at)?;
            let kept = run.compute.read(middle.clone()).await.map_err(at)?;
            stream.store(&samples, &kept).map_err(at)?;
            sums.add(compressed, middle, &target, run.compute).await.map_err(at)?;
        }
        Ok(sums.finish())
    }

    /// Carries both streams through a layer of which, as of all before it, nothing was removed: there is nothing to make
    /// good, and a refit would only round.
    pub(super) async fn pass(&mut self, layer: usize) -> Result<(), RunError> {
        let run = self.run;
        let block = self.block(layer)?;
        for stream in [&mut self.original, &mut self.compressed] {
            let mut through = stream.open(layer, Within::Input, Within::Output)?;
            let carried = carry(run.compute, |x| block.forward(x), &mut through).await;
            drop(through);
            carried.map_err(|source| at_layer(layer, source))?;
            stream.settle(layer)?;
        }
        run.compute.release();
        Ok(())
    }

    /// A layer of the original model.
    fn block(&self, layer: usize) -> Result<Block, RunError> {
        let config = self.run.model.config();
        let weights = self.run.model.checkpoint.layer(layer)?;
        Ok(Block::new(weights, &config.layers[layer], config, self.run.compute))
    }
}

/// Samples of a stream, on the device.
fn tensor(compute: &Compute, stream: &ResidualStream<'_>, samples: &Range<usize>) -> Result<Tensor<3>, ComputeError> {
    Ok(compute.tensor(stream.load(samples)?, stream.shape(samples)))
}

/// Carries all samples of a stream through a block or a half of one.
pub(super) async fn carry(
    compute: &Compute,
    block: impl Fn(Tensor<3>) -> Tensor<3>,
    stream: &mut ResidualStream<'_>,
) -> Result<(), ComputeError> {
    for samples in stream.batches() {
        let after = compute.read(block(tensor(compute, stream, &samples)?)).await?;
        check_finite(&after)?;
        stream.store(&samples, &after)?;
    }
    Ok(())
}

fn places(folder: &OutputFolder) -> [PathBuf; 2] {
    ["original", "compressed"].map(|name| folder.path().join("prefix").join(name))
}
