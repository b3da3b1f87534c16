//! A whole model on the device, for writing text.

use modegpt_architecture::WeightProvider;

use crate::{Block, Compute, ComputeError, Embedder, Head, KvCache};

/// All blocks of a model, and the cache of one sequence.
pub struct Decoder<'a> {
    weights: &'a dyn WeightProvider,
    compute: Compute,
    embedder: Embedder,
    blocks: Vec<Block>,
    head: Head,
    caches: Vec<KvCache>,
}

impl<'a> Decoder<'a> {
    /// Brings a model to the device, with room for `capacity` tokens.
    ///
    /// # Errors
    /// [`ComputeError::TooLong`] if the model has fewer positions than that, [`ComputeError::Weights`] if the weights
    /// cannot be read.
    pub fn new(weights: &'a dyn WeightProvider, capacity: usize, compute: &Compute) -> Result<Self, ComputeError> {
        let config = weights.config();
        if capacity > config.max_positions {
            return Err(ComputeError::TooLong { found: capacity, most: config.max_positions });
        }
        let mut blocks = Vec::with_capacity(config.layers.len());
        for (index, shape) in config.layers.iter().enumerate() {
            blocks.push(Block::new(weights.layer(index)?, shape, config, compute));
        }
        let caches = config.layers.iter().map(|shape| KvCache::new(config, shape, capacity, compute)).collect();
        let mut head = Head::new(weights, compute)?;
        head.keep_resident(weights, compute)?;
        Ok(Self { weights, compute: compute.clone(), embedder: Embedder::new(weights, compute)?, blocks, head, caches })
    }

    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.caches.first().map_or(0, KvCache::len)
    }

    /// Whether no token was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next tokens (any number at first, then one at a time) and gives the logits after the last of them.
    ///
    /// # Errors
    /// [`ComputeError`] if the device fails, an id is unknown, or a logit is not finite.
    pub async fn next_logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, ComputeError> {
        let start = self.len();
        let mut x = self.embedder.embed(self.weights, ids, 1, start, &self.compute)?;
        for (block, cache) in self.blocks.iter().zip(&mut self.caches) {
            x = block.extend(x, cache);
        }
        let [_, tokens, d_model] = x.dims();
        let last = x.narrow(1, tokens - 1, 1).reshape([1, d_model]);
        let logits = self.head.logits(self.weights, last, &self.compute).await?;
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(ComputeError::NotFinite { what: "the logits".to_owned() });
        }
        Ok(logits)
    }
}
