//! Compression behind compressed layers: each layer's down map is refitted on the stream that the compressed layers before
//! it really produce, towards the stream of the original model.

use std::path::PathBuf;

use modegpt_architecture::{LayerShape, LayerWeights, ModelConfig, WeightProvider};
use modegpt_calibration::{PrefixAccumulator, check_finite};
use modegpt_checkpoint::OutputFolder;
use modegpt_compress::refit_down;
use modegpt_model::{Block, Compute, ComputeError, ResidualStream};

use super::calibrate::{KeptStream, at_layer};
use super::{CalibrationRun, RunError};

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

    /// Refits the down map of a compressed layer and carries both streams through it. Also tells how often a
    /// factorisation was repeated. `tokens_per_unit`: for how many the map that is there counts.
    pub(super) async fn refit(
        &mut self,
        layer: usize,
        weights: LayerWeights,
        shape: &LayerShape,
        tokens_per_unit: f64,
    ) -> Result<(LayerWeights, u32), RunError> {
        let run = self.run;
        let config = run.model.config();
        let at = |source| at_layer(layer, source);
        carry(run.compute, &self.block(layer)?, &mut self.original.open(layer)?).await.map_err(at)?;
        self.original.settle(layer)?;

        let small = ModelConfig { layers: vec![shape.clone()], ..config.clone() };
        let block = |weights: &LayerWeights| Block::new(weights.clone(), shape, &small, run.compute);
        let mut sums = PrefixAccumulator::new(&weights, run.gram_path);
        {
            let block = block(&weights);
            let targets = self.original.look(layer + 1)?;
            let inputs = self.compressed.look(layer)?;
            for samples in inputs.batches() {
                let input = run.compute.tensor(inputs.load(&samples).map_err(at)?, inputs.shape(&samples));
                let target = targets.load(&samples).map_err(at)?;
                sums.add(&block, input, &target, run.compute).await.map_err(at)?;
            }
        }
        let n_tokens = run.calibration.windows.ids.len();
        let ridge = tokens_per_unit * shape.d_ff as f64 / n_tokens as f64;
        let (refitted, attempts) = refit_down(layer, &weights, &sums.finish(), ridge)?;
        carry(run.compute, &block(&refitted), &mut self.compressed.open(layer)?).await.map_err(at)?;
        self.compressed.settle(layer)?;
        run.compute.release();
        Ok((refitted, attempts))
    }

    /// Carries both streams through a layer of which, as of all before it, nothing was removed: there is nothing to make
    /// good, and a refit would only round.
    pub(super) async fn pass(&mut self, layer: usize) -> Result<(), RunError> {
        let run = self.run;
        let block = self.block(layer)?;
        for stream in [&mut self.original, &mut self.compressed] {
            carry(run.compute, &block, &mut stream.open(layer)?).await.map_err(|source| at_layer(layer, source))?;
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

/// Carries all samples of a stream through a block.
pub(super) async fn carry(
    compute: &Compute,
    block: &Block,
    stream: &mut ResidualStream<'_>,
) -> Result<(), ComputeError> {
    for samples in stream.batches() {
        let x = compute.tensor(stream.load(&samples)?, stream.shape(&samples));
        let after = compute.read(block.forward(x)).await?;
        check_finite(&after)?;
        stream.store(&samples, &after)?;
    }
    Ok(())
}

fn places(folder: &OutputFolder) -> [PathBuf; 2] {
    ["original", "compressed"].map(|name| folder.path().join("prefix").join(name))
}
