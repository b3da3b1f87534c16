//! One layer's share of the pass.

use std::ops::Range;

use modegpt_architecture::WeightProvider;
use modegpt_model::{Block, Compute, ComputeError, ResidualStream};
use modegpt_statistics::LayerStatistics;

use crate::{GramPath, accumulate::Accumulators};

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
/// `shards` are consecutive ranges of samples that together are all of them. Each is summed by itself and the sums are
/// added in order, so that statistics computed shard by shard elsewhere and merged have the same bits.
/// `progress` is told how many samples have passed.
///
/// # Errors
/// [`CalibrationError`] if weights cannot be read, the device fails, or an activation is not finite.
pub async fn observe_layer(
    weights: &dyn WeightProvider,
    layer: usize,
    stream: &mut ResidualStream<'_>,
    shards: &[Range<usize>],
    compute: &Compute,
    path: GramPath,
    mut progress: impl FnMut(usize),
) -> Result<LayerStatistics, CalibrationError> {
    let at = |source| CalibrationError::Compute { layer, source };
    let config = weights.config();
    let shape = &config.layers[layer];
    let block = load(weights, layer, compute)?;
    let mut total: Option<LayerStatistics> = None;
    for shard in shards {
        let mut sums = Accumulators::new(config, shape, path);
        for samples in stream.batches_of(shard) {
            let before = stream.load(&samples).map_err(at)?;
            let x = compute.tensor(before.clone(), stream.shape(&samples));
            let (y, seen) = block.observe(x);
            let after = compute.read(y).await.map_err(at)?;
            check_finite(&after).map_err(at)?;
            sums.add(&before, &after, config.d_model, seen, compute).await.map_err(at)?;
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

fn check_finite(values: &[f32]) -> Result<(), ComputeError> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(ComputeError::NotFinite { what: "the output".to_owned() })
}
