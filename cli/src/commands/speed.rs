//! `modegpt eval --speed`

use modegpt::Model;
use modegpt::architecture::WeightProvider;
use modegpt::model_runtime::{Block, Compute, ComputeError, Embedder, Head};
use serde::Serialize;

use super::bench::measure::{Timing, measure};
use crate::device::FoundDevice;
use crate::failure::Failure;
use crate::printer;

/// Prompts that are read at once.
pub(crate) const BATCHES: [usize; 2] = [1, 16];
/// Tokens of a prompt.
pub(crate) const PROMPT_TOKENS: usize = 64;

/// How fast prompts are read.
#[derive(Debug, Serialize)]
pub(crate) struct Reading {
    /// Prompts at once.
    pub(crate) batch: usize,
    /// Tokens of each.
    pub(crate) seq_len: usize,
    /// By the median of the runs.
    pub(crate) tokens_per_sec: f64,
    #[serde(flatten)]
    timing: Timing,
}

/// A whole model on the device, as it is when text is written.
struct Resident<'a> {
    model: &'a Model,
    compute: &'a Compute,
    embedder: Embedder,
    blocks: Vec<Block>,
    head: Head,
}

/// Reads prompts up to the logits of the token after each, again and again.
pub(crate) fn read_prompts(model: &Model, found: &FoundDevice) -> Result<[Reading; 2], ComputeError> {
    let resident = Resident::new(model, &found.compute)?;
    let [alone, many] = BATCHES;
    Ok([resident.timed(alone)?, resident.timed(many)?])
}

/// A line for each batch.
pub(crate) fn print(readings: &[Reading]) -> Result<(), Failure> {
    for reading in readings {
        let Reading { batch, seq_len, tokens_per_sec, timing } = reading;
        let unsteady = if timing.is_unsteady() { ", unsteady" } else { "" };
        printer::line(&format!("reading     {tokens_per_sec:.0} tokens/s, {batch} × {seq_len} at once{unsteady}"))?;
    }
    Ok(())
}

impl<'a> Resident<'a> {
    fn new(model: &'a Model, compute: &'a Compute) -> Result<Self, ComputeError> {
        let (config, weights) = (model.config(), &model.checkpoint);
        let layers = config.layers.iter().enumerate();
        let blocks = layers.map(|(index, shape)| Ok(Block::new(weights.layer(index)?, shape, config, compute)));
        let blocks = blocks.collect::<Result<_, ComputeError>>()?;
        let mut head = Head::new(weights, compute)?;
        head.keep_resident(weights, compute)?;
        Ok(Self { model, compute, embedder: Embedder::new(weights, compute)?, blocks, head })
    }

    fn timed(&self, batch: usize) -> Result<Reading, ComputeError> {
        let (seq_len, vocab) = (PROMPT_TOKENS.min(self.model.config().max_positions), self.model.config().vocab);
        // What the tokens are does not matter; they differ, so that no row of the embedding is always at hand.
        let ids: Vec<u32> = (0..batch * seq_len).map(|idx| (idx * 7919 % vocab) as u32).collect();
        let timing = measure(|| pollster::block_on(self.read(&ids, batch)))?;
        Ok(Reading { batch, seq_len, tokens_per_sec: ids.len() as f64 / timing.median_secs, timing })
    }

    async fn read(&self, ids: &[u32], batch: usize) -> Result<(), ComputeError> {
        let weights = &self.model.checkpoint;
        let x = self.embedder.embed(weights, ids, batch, 0, self.compute)?;
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        let [_, tokens, d_model] = x.dims();
        let last = x.narrow(1, tokens - 1, 1).reshape([batch, d_model]);
        self.head.logits(weights, last, self.compute).await.map(drop)
    }
}
