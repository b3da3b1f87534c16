//! The blocks of a model, loaded one after another.

use modegpt_architecture::WeightProvider;
use modegpt_model::{Block, Compute, ComputeError, ResidualStream};

/// Carries streams through all blocks, each of which is loaded once. `progress` is told the share that is done.
pub(crate) async fn run_layers(
    weights: &dyn WeightProvider,
    streams: &mut [ResidualStream<'_>],
    compute: &Compute,
    mut progress: impl FnMut(f64),
) -> Result<(), ComputeError> {
    let config = weights.config();
    let n_batches: usize = streams.iter().map(|stream| stream.batches().len()).sum();
    let work = (n_batches * config.layers.len()) as f64;
    let mut done = 0;
    for index in 0..config.layers.len() {
        run_layer(weights, index, streams, compute, || {
            done += 1;
            progress(f64::from(done) / work);
        })
        .await?;
    }
    Ok(())
}

/// Carries streams through one block; `tick` is called after each batch.
pub(crate) async fn run_layer(
    weights: &dyn WeightProvider,
    index: usize,
    streams: &mut [ResidualStream<'_>],
    compute: &Compute,
    mut tick: impl FnMut(),
) -> Result<(), ComputeError> {
    let config = weights.config();
    let block = Block::new(weights.layer(index)?, &config.layers[index], config, compute);
    for stream in streams {
        for samples in stream.batches() {
            let x = compute.tensor(stream.load(&samples)?, stream.shape(&samples));
            let y = compute.read(block.forward(x)).await?;
            stream.store(&samples, &y)?;
            tick();
        }
    }
    drop(block);
    compute.release();
    Ok(())
}

/// The share of the multiplications that the blocks make; the rest is the head's.
pub(crate) fn layer_share(weights: &dyn WeightProvider) -> f64 {
    let config = weights.config();
    let layers = config.block_params() as f64;
    layers / (layers + (config.vocab * config.d_embedding) as f64)
}
