//! The forward pass, which fills the tape.

use modegpt_architecture::WeightProvider;
use modegpt_model::{Block, Compute, ComputeError, Embedder};

use crate::{GradientError, Samples, Tape};

/// Embeds the samples and carries them through every layer, keeping the input of each and the output of the last.
///
/// `progress` is told how many samples have passed a layer, over all layers.
///
/// # Errors
/// [`GradientError`] if the samples do not fit the tape, weights cannot be read, the device fails, or an activation is not
/// finite.
pub async fn forward(
    weights: &dyn WeightProvider,
    samples: &Samples<'_>,
    tape: &mut Tape<'_>,
    compute: &Compute,
    mut progress: impl FnMut(usize),
) -> Result<(), GradientError> {
    let config = weights.config();
    tape.check(samples, config.vocab)?;
    let embedder = Embedder::new(weights, compute)?;
    for batch in tape.batches() {
        let ids = &samples.ids[batch.start * tape.seq_len()..batch.end * tape.seq_len()];
        let x = embedder.embed(weights, ids, batch.len(), 0, compute)?;
        tape.store(0, &batch, &compute.read(x).await?)?;
    }
    for (layer, shape) in config.layers.iter().enumerate() {
        let at = GradientError::at(layer);
        let host = weights.layer(layer).map_err(|e| at(e.into()))?;
        let block = Block::new(host, shape, config, compute);
        for batch in tape.batches() {
            let x = compute.tensor(tape.load(layer, &batch)?, tape.shape(&batch));
            let y = compute.read(block.forward(x)).await.map_err(&at)?;
            check_finite(&y, "the output").map_err(&at)?;
            tape.store(layer + 1, &batch, &y)?;
            progress(layer * tape.n_samples() + batch.end);
        }
        drop(block);
        compute.release();
    }
    Ok(())
}

pub(crate) fn check_finite(values: &[f32], what: &str) -> Result<(), ComputeError> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(ComputeError::NotFinite { what: what.to_owned() })
}
