//! How far the predictions of one model are from those of another, with one layer of each in memory.

use modegpt_architecture::WeightProvider;
use modegpt_model::{Compute, ComputeError, Head, HeadInput, ResidualStream, compare_heads};

use crate::layers::{layer_share, run_layers};
use crate::multiple_choice::HEAD_ROWS;
use crate::{Score, ScoringOptions, Window};

/// Summed differences of two models' predictions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Losses of the model that the other is measured against.
    pub reference: Score,
    /// Losses of the other.
    pub other: Score,
    /// `Σ KL(p ‖ q)` over the tokens, in nats; `p` of the reference, `q` of the other.
    pub kl_sum: f64,
    /// Tokens at which both models think the same likeliest.
    pub n_agree: u64,
}

impl Divergence {
    /// Mean of `KL(p ‖ q)` over the tokens, in nats.
    pub fn kl_divergence(&self) -> f64 {
        self.kl_sum / self.other.n_tokens as f64
    }

    /// Share of tokens at which both models think the same likeliest.
    pub fn top1_agreement(&self) -> f64 {
        self.n_agree as f64 / self.other.n_tokens as f64
    }
}

/// Compares `other` with `reference` at every token that the windows score. `progress` is told the share of the work that
/// is done, in `[0, 1]`.
///
/// # Errors
/// As [`score_windows`](crate::score_windows), of either model.
///
/// # Panics
/// If the vocabularies differ.
pub async fn compare_windows(
    reference: &dyn WeightProvider,
    other: &dyn WeightProvider,
    windows: &[Window<'_>],
    options: ScoringOptions,
    compute: &Compute,
    mut progress: impl FnMut(f64),
) -> Result<Divergence, ComputeError> {
    let mut divergence = Divergence::default();
    let Some(seq_len) = windows.first().map(|window| window.ids.len()) else {
        return Ok(divergence);
    };
    let window_bytes = 4 * seq_len * (reference.config().d_model + other.config().d_model);
    let group = (options.stream_bytes / window_bytes).max(1);
    for (group_idx, windows_in_group) in windows.chunks(group).enumerate() {
        let (done, share) = (group_idx * group, windows_in_group.len() as f64);
        let report = |part: f64| progress((done as f64 + share * part) / windows.len() as f64);
        compare_group([reference, other], windows_in_group, options.batch, compute, &mut divergence, report).await?;
    }
    let sums = [divergence.kl_sum, divergence.reference.nll_sum, divergence.other.nll_sum];
    if sums.iter().any(|sum| !sum.is_finite()) {
        return Err(ComputeError::NotFinite { what: "the loss".to_owned() });
    }
    Ok(divergence)
}

async fn compare_group(
    [reference, other]: [&dyn WeightProvider; 2],
    windows: &[Window<'_>],
    batch: usize,
    compute: &Compute,
    divergence: &mut Divergence,
    mut progress: impl FnMut(f64),
) -> Result<(), ComputeError> {
    // Both models' blocks, and then both heads; the reference is rarely the smaller one.
    let layers = layer_share(reference) / 2.0;
    let of_reference = states(reference, windows, batch, compute, |share| progress(share * layers)).await?;
    let of_other = states(other, windows, batch, compute, |share| progress((1.0 + share) * layers)).await?;
    let targets: Vec<&[u32]> =
        windows.iter().flat_map(|window| window.ids[window.first_target..].chunks(HEAD_ROWS)).collect();
    let heads = (Head::new(reference, compute)?, Head::new(other, compute)?);
    let report = |done: usize, all: usize| progress(2.0 * layers + (1.0 - 2.0 * layers) * done as f64 / all as f64);
    let pairs = compare_heads(
        HeadInput { head: &heads.0, weights: reference, batches: &of_reference },
        HeadInput { head: &heads.1, weights: other, batches: &of_other },
        &targets,
        compute,
        report,
    )
    .await?;
    for pair in pairs.iter().flatten() {
        divergence.reference.add(&[pair.reference]);
        divergence.other.add(&[pair.other]);
        divergence.kl_sum += pair.divergence;
        divergence.n_agree += u64::from(pair.agree);
    }
    Ok(())
}

/// The residual stream behind the blocks, at the predecessors of all targets: at most [`HEAD_ROWS`] rows a batch.
async fn states(
    weights: &dyn WeightProvider,
    windows: &[Window<'_>],
    batch: usize,
    compute: &Compute,
    progress: impl FnMut(f64),
) -> Result<Vec<Vec<f32>>, ComputeError> {
    let d_model = weights.config().d_model;
    let ids: Vec<u32> = windows.iter().flat_map(|window| window.ids).copied().collect();
    let mut stream = ResidualStream::in_memory(windows.len(), windows[0].ids.len(), d_model, batch);
    stream.embed(weights, &ids, compute).await?;
    run_layers(weights, std::slice::from_mut(&mut stream), compute, progress).await?;
    let mut batches = Vec::new();
    for (idx, window) in windows.iter().enumerate() {
        let hidden = stream.load(&(idx..idx + 1))?;
        // The state at position t - 1 predicts token t.
        let scored = &hidden[(window.first_target - 1) * d_model..(window.ids.len() - 1) * d_model];
        batches.extend(scored.chunks(HEAD_ROWS * d_model).map(<[f32]>::to_vec));
    }
    Ok(batches)
}

#[cfg(test)]
mod tests;
