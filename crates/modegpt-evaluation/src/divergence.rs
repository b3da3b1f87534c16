//! How far the predictions of one model are from those of another, with one layer of each in memory.

use modegpt_architecture::WeightProvider;
use modegpt_model::{Compute, ComputeError, Head, HeadInput, ResidualStream, compare_heads};

use crate::layers::{layer_share, run_layer};
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
    /// Of the residual stream behind each layer, over all tokens of the windows; empty if the models have not the same
    /// layers and width.
    pub layers: Vec<StreamError>,
}

/// How far one residual stream is from another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StreamError {
    /// `Σ ‖x - x'‖²`, with `x` of the reference.
    pub error_sum: f64,
    /// `Σ ‖x‖²`.
    pub energy_sum: f64,
}

impl StreamError {
    /// The error as a share of the energy; 0 where there is no error.
    pub fn relative(&self) -> f64 {
        if self.error_sum == 0.0 { 0.0 } else { self.error_sum / self.energy_sum }
    }

    fn add(&mut self, reference: &[f32], other: &[f32]) {
        for (x, y) in reference.iter().zip(other) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            self.error_sum += (x - y).powi(2);
            self.energy_sum += x.powi(2);
        }
    }
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
    let streams =
        run_both([reference, other], windows, batch, compute, divergence, |share| progress(2.0 * share * layers))
            .await?;
    let [of_reference, of_other] = [predecessors(&streams[0], windows)?, predecessors(&streams[1], windows)?];
    drop(streams);
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

/// The residual streams of both models behind their blocks. Where they have the same layers, the streams are compared
/// behind each.
async fn run_both(
    models: [&dyn WeightProvider; 2],
    windows: &[Window<'_>],
    batch: usize,
    compute: &Compute,
    divergence: &mut Divergence,
    mut progress: impl FnMut(f64),
) -> Result<[ResidualStream<'static>; 2], ComputeError> {
    let configs = models.map(WeightProvider::config);
    let n_layers = configs.map(|config| config.layers.len());
    let alike = n_layers[0] == n_layers[1] && configs[0].d_model == configs[1].d_model;
    divergence.layers.resize(if alike { n_layers[0] } else { 0 }, StreamError::default());
    let ids: Vec<u32> = windows.iter().flat_map(|window| window.ids).copied().collect();
    let mut streams =
        configs.map(|config| ResidualStream::in_memory(windows.len(), windows[0].ids.len(), config.d_model, batch));
    for (stream, weights) in streams.iter_mut().zip(models) {
        stream.embed(weights, &ids, compute).await?;
    }
    let work = (streams[0].batches().len() * (n_layers[0] + n_layers[1])) as f64;
    let mut done = 0;
    for layer in 0..n_layers[0].max(n_layers[1]) {
        for (model, stream) in streams.iter_mut().enumerate().filter(|(model, _)| layer < n_layers[*model]) {
            run_layer(models[model], layer, std::slice::from_mut(stream), compute, || {
                done += 1;
                progress(f64::from(done) / work);
            })
            .await?;
        }
        if let Some(error) = divergence.layers.get_mut(layer) {
            for samples in streams[0].batches() {
                error.add(&streams[0].load(&samples)?, &streams[1].load(&samples)?);
            }
        }
    }
    Ok(streams)
}

/// The residual stream at the predecessors of all targets: at most [`HEAD_ROWS`] rows a batch.
fn predecessors(stream: &ResidualStream<'_>, windows: &[Window<'_>]) -> Result<Vec<Vec<f32>>, ComputeError> {
    let mut batches = Vec::new();
    for (idx, window) in windows.iter().enumerate() {
        let [_, _, d_model] = stream.shape(&(idx..idx + 1));
        let hidden = stream.load(&(idx..idx + 1))?;
        // The state at position t - 1 predicts token t.
        let scored = &hidden[(window.first_target - 1) * d_model..(window.ids.len() - 1) * d_model];
        batches.extend(scored.chunks(HEAD_ROWS * d_model).map(<[f32]>::to_vec));
    }
    Ok(batches)
}

#[cfg(test)]
mod tests;
