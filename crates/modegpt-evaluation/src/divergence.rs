//! How far the predictions of one model are from those of another, with one layer of each in memory.

use modegpt_architecture::WeightProvider;
use modegpt_model::{Compute, ComputeError, Head, HeadInput, ResidualStream, StoreError, compare_heads};

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

/// Keeps the residual streams of a reference, so that it passes the same windows once, however many models are compared
/// with it.
pub trait KeptStreams {
    /// The stream behind `layer` of a group of windows, `n_elements` numbers; `None` if it was not kept.
    ///
    /// # Errors
    /// Whatever the storage gives.
    fn load(&self, group: usize, layer: usize, n_elements: usize) -> Result<Option<Vec<f32>>, StoreError>;

    /// Keeps such a stream, if there is room for it.
    ///
    /// # Errors
    /// Whatever the storage gives.
    fn keep(&self, group: usize, layer: usize, stream: &[f32]) -> Result<(), StoreError>;
}

/// Compares `other` with `reference` at every token that the windows score. What `kept` has of the reference's streams, which
/// must be of the same windows, is not computed again. `progress` is told the share of the work that is done, in `[0, 1]`.
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
    kept: Option<&dyn KeptStreams>,
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
        let group = Group { windows: windows_in_group, batch: options.batch, index: group_idx, kept };
        compare_group([reference, other], group, compute, &mut divergence, report).await?;
    }
    let sums = [divergence.kl_sum, divergence.reference.nll_sum, divergence.other.nll_sum];
    if sums.iter().any(|sum| !sum.is_finite()) {
        return Err(ComputeError::NotFinite { what: "the loss".to_owned() });
    }
    Ok(divergence)
}

/// Windows whose streams are in memory together.
#[derive(Clone, Copy)]
struct Group<'a> {
    windows: &'a [Window<'a>],
    /// Of them pass a block together.
    batch: usize,
    index: usize,
    kept: Option<&'a dyn KeptStreams>,
}

async fn compare_group(
    [reference, other]: [&dyn WeightProvider; 2],
    group: Group<'_>,
    compute: &Compute,
    divergence: &mut Divergence,
    mut progress: impl FnMut(f64),
) -> Result<(), ComputeError> {
    // Both models' blocks, and then both heads; the reference is rarely the smaller one.
    let layers = layer_share(reference) / 2.0;
    let streams =
        run_both([reference, other], group, compute, divergence, |share| progress(2.0 * share * layers)).await?;
    let windows = group.windows;
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
    group: Group<'_>,
    compute: &Compute,
    divergence: &mut Divergence,
    mut progress: impl FnMut(f64),
) -> Result<[ResidualStream<'static>; 2], ComputeError> {
    let Group { windows, batch, .. } = group;
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
            let mut tick = || {
                done += 1;
                progress(f64::from(done) / work);
            };
            if model == 0 && group.load(layer, stream)? {
                stream.batches().iter().for_each(|_| tick());
                continue;
            }
            run_layer(models[model], layer, std::slice::from_mut(stream), compute, tick).await?;
            if model == 0 {
                group.keep(layer, stream)?;
            }
        }
        if let Some(error) = divergence.layers.get_mut(layer) {
            for samples in streams[0].batches() {
                error.add(&streams[0].load(&samples)?, &streams[1].load(&samples)?);
            }
        }
    }
    Ok(streams)
}

impl Group<'_> {
    /// Reads the stream behind `layer`, if it is kept.
    fn load(&self, layer: usize, stream: &mut ResidualStream<'_>) -> Result<bool, ComputeError> {
        let Some(kept) = self.kept else { return Ok(false) };
        let all = 0..self.windows.len();
        let n_elements = stream.shape(&all).iter().product();
        let Some(values) = kept.load(self.index, layer, n_elements)? else { return Ok(false) };
        stream.store(&all, &values)?;
        Ok(true)
    }

    fn keep(&self, layer: usize, stream: &ResidualStream<'_>) -> Result<(), ComputeError> {
        let Some(kept) = self.kept else { return Ok(()) };
        Ok(kept.keep(self.index, layer, &stream.load(&(0..self.windows.len()))?)?)
    }
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
