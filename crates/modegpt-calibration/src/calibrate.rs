//! One layer's share of the pass.

use std::ops::Range;

use modegpt_architecture::WeightProvider;
use modegpt_model::{Block, Compute, ComputeError, ResidualStream};
use modegpt_statistics::LayerStatistics;

use crate::accumulate::{Accumulators, Collect};
use crate::{GramPath, logits::AttentionGeometry};

/// How a layer is observed.
#[derive(Clone, Copy, Debug)]
pub struct Observing<'a> {
    /// Consecutive ranges of samples that together are all of them. Each is summed by itself and the sums are added in
    /// order, so that statistics computed shard by shard elsewhere and merged have the same bits.
    pub shards: &'a [Range<usize>],
    /// Where the largest Gram matrices are summed.
    pub path: GramPath,
    /// What is collected beside the usual.
    pub collect: Collect,
}

/// Why calibration stopped.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The forward pass failed.
    #[error("layer {layer}: {source}")]
    Compute {
        /// Which layer.
        layer: usize,
        /// Why.
        source: ComputeError,
    },
    /// The weights cannot be used.
    #[error("layer {layer}, output map of attention: {source}")]
    Weights {
        /// Which layer.
        layer: usize,
        /// Why.
        source: modegpt_linalg::Error,
    },
    /// Shards do not fit together, which would be a fault of this crate.
    #[error("layer {layer}: {reason}")]
    Merge {
        /// Which layer.
        layer: usize,
        /// Why.
        reason: String,
    },
}

/// Carries the stream through layer `layer` and gives its statistics.
///
/// `progress` is told how many samples have passed.
///
/// # Errors
/// [`CalibrationError`] if weights cannot be read, the device fails, or an activation is not finite.
pub async fn observe_layer(
    weights: &dyn WeightProvider,
    layer: usize,
    stream: &mut ResidualStream<'_>,
    observing: Observing<'_>,
    compute: &Compute,
    mut progress: impl FnMut(usize),
) -> Result<LayerStatistics, CalibrationError> {
    let at = |source| CalibrationError::Compute { layer, source };
    let config = weights.config();
    let shape = &config.layers[layer];
    let Observing { shards, path, collect } = observing;
    let host = weights.layer(layer).map_err(|e| at(e.into()))?;
    let attention = collect.logits.then(|| AttentionGeometry::new(config, shape, &host.output.weight));
    let attention = attention.transpose().map_err(|source| CalibrationError::Weights { layer, source })?;
    let block = Block::new(host, shape, config, compute);
    let mut total: Option<LayerStatistics> = None;
    for shard in shards {
        let mut sums = Accumulators::new(config, shape, path, attention.as_ref(), collect, shard.len());
        for samples in stream.batches_of(shard) {
            let before = stream.load(&samples).map_err(at)?;
            let shape = stream.shape(&samples);
            let x = compute.tensor(before.clone(), shape);
            let (y, seen) = block.observe(x);
            let after = compute.read(y).await.map_err(at)?;
            check_finite(&after).map_err(at)?;
            sums.add(&before, &after, shape, seen, compute).await.map_err(at)?;
            stream.store(&samples, &after).map_err(at)?;
            progress(samples.end);
        }
        let part = sums.finish();
        if let Some(total) = &mut total {
            let merged = total.merge(&part);
            merged.map_err(|reason| CalibrationError::Merge { layer, reason: reason.to_string() })?;
        } else {
            total = Some(part);
        }
    }
    drop(block);
    compute.release();
    total.ok_or_else(|| CalibrationError::Merge { layer, reason: "no samples".to_owned() })
}

/// Carries the stream through layer `layer` without looking.
///
/// # Errors
/// As [`observe_layer`].
pub async fn pass_layer(
    weights: &dyn WeightProvider,
    layer: usize,
    stream: &mut ResidualStream<'_>,
    compute: &Compute,
    mut progress: impl FnMut(usize),
) -> Result<(), CalibrationError> {
    let at = |source| CalibrationError::Compute { layer, source };
    let block = load(weights, layer, compute)?;
    for samples in stream.batches() {
        let before = stream.load(&samples).map_err(at)?;
        let x = compute.tensor(before, stream.shape(&samples));
        let after = compute.read(block.forward(x)).await.map_err(at)?;
        check_finite(&after).map_err(at)?;
        stream.store(&samples, &after).map_err(at)?;
        progress(samples.end);
    }
    drop(block);
    compute.release();
    Ok(())
}

fn load(weights: &dyn WeightProvider, layer: usize, compute: &Compute) -> Result<Block, CalibrationError> {
    let config = weights.config();
    let host = weights.layer(layer).map_err(|e| CalibrationError::Compute { layer, source: e.into() })?;
    Ok(Block::new(host, &config.layers[layer], config, compute))
}

/// Refuses a stream that is not made of numbers.
///
/// # Errors
/// [`ComputeError::NotFinite`].
pub fn check_finite(values: &[f32]) -> Result<(), ComputeError> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(ComputeError::NotFinite { what: "the output".to_owned() })
}
