//! How likely a model thinks the end of a text, with one layer in memory.

use std::cmp::Reverse;

use modegpt_architecture::WeightProvider;
use modegpt_model::{Compute, ComputeError, Head, ResidualStream};

use crate::layers::{layer_share, run_layers};

/// A text whose end is scored.
#[derive(Clone, Copy, Debug)]
pub struct Continuation<'a> {
    /// All tokens. The last is only predicted, never read.
    pub ids: &'a [u32],
    /// How many of them are given, at least 1 and less than all.
    pub n_context: usize,
}

/// What a model thinks of a continuation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// `Σ ln p(token)` over the continuation, in nats.
    pub log_likelihood: f64,
    /// Whether every token of it was the likeliest: greedy generation would have written it.
    pub is_greedy: bool,
}

/// How much is computed at once; changes memory and speed only.
#[derive(Clone, Copy, Debug)]
pub struct ContinuationOptions {
    /// Tokens that pass through a block together, padding included; at least one text.
    pub batch_tokens: usize,
    /// Bytes that the residual stream of the texts in work may take. Every layer is loaded once for each such group.
    pub stream_bytes: usize,
}

/// Rows that the head takes at once: of logits, with its parts of 8192 tokens, no more than 32 MiB.
pub(crate) const HEAD_ROWS: usize = 1024;

/// Scores texts of any lengths, and gives the results in their order. `progress` is told the share of the work that is
/// done, in `[0, 1]`.
///
/// Texts of similar length are computed together, the shorter ones padded on the right, where causal attention does not
/// look: results depend on what is computed together by rounding only.
///
/// # Errors
/// [`ComputeError`] if weights cannot be read, the device fails, a text is longer than the model's context, or a
/// likelihood is not finite.
///
/// # Panics
/// If a text has no context or no continuation.
pub async fn score_continuations(
    weights: &dyn WeightProvider,
    texts: &[Continuation<'_>],
    options: ContinuationOptions,
    compute: &Compute,
    mut progress: impl FnMut(f64),
) -> Result<Vec<Likelihood>, ComputeError> {
    let split = |text: &Continuation<'_>| (1..text.ids.len()).contains(&text.n_context);
    assert!(texts.iter().all(split), "a text has both a context and a continuation");
    let nothing = Likelihood { log_likelihood: 0.0, is_greedy: true };
    let mut likelihoods = vec![nothing; texts.len()];
    let batches = batches(texts, options.batch_tokens);
    let bytes_per_token = 4 * weights.config().d_model;
    let all: usize = batches.iter().map(Batch::n_tokens).sum();
    let mut done = 0;
    for group in groups(&batches, options.stream_bytes / bytes_per_token) {
        let n_tokens: usize = group.iter().map(Batch::n_tokens).sum();
        let report = |share: f64| progress((done as f64 + share * n_tokens as f64) / all as f64);
        score_group(weights, texts, group, compute, &mut likelihoods, report).await?;
        done += n_tokens;
    }
    if likelihoods.iter().any(|likelihood| !likelihood.log_likelihood.is_finite()) {
        return Err(ComputeError::NotFinite { what: "the likelihood of a text".to_owned() });
    }
    Ok(likelihoods)
}

/// Texts that are computed together, as indices.
struct Batch {
    texts: Vec<usize>,
    /// Tokens read of the longest.
    seq_len: usize,
}

impl Batch {
    /// Padding included.
    fn n_tokens(&self) -> usize {
        self.texts.len() * self.seq_len
    }
}

/// The longest first, so that memory runs out at the beginning if at all; equally long ones in their order.
fn batches(texts: &[Continuation<'_>], batch_tokens: usize) -> Vec<Batch> {
    let n_read = |idx: usize| texts[idx].ids.len() - 1;
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|idx| Reverse(n_read(*idx)));
    let mut batches = Vec::new();
    let mut rest = order.as_slice();
    while let Some(longest) = rest.first() {
        let seq_len = n_read(*longest);
        let (batch, others) = rest.split_at((batch_tokens / seq_len).clamp(1, rest.len()));
        batches.push(Batch { texts: batch.to_vec(), seq_len });
        rest = others;
    }
    batches
}

/// Consecutive batches that together have at most `most` tokens; at least one batch each.
fn groups(batches: &[Batch], most: usize) -> Vec<&[Batch]> {
    let mut groups = Vec::new();
    let mut rest = batches;
    while !rest.is_empty() {
        let mut n_tokens = 0;
        let fitting = rest.iter().take_while(|batch| {
            n_tokens += batch.n_tokens();
            n_tokens <= most
        });
        let (group, others) = rest.split_at(fitting.count().max(1));
        groups.push(group);
        rest = others;
    }
    groups
}

async fn score_group(
    weights: &dyn WeightProvider,
    texts: &[Continuation<'_>],
    group: &[Batch],
    compute: &Compute,
    likelihoods: &mut [Likelihood],
    mut progress: impl FnMut(f64),
) -> Result<(), ComputeError> {
    let d_model = weights.config().d_model;
    let mut streams = Vec::with_capacity(group.len());
    for batch in group {
        let n = batch.texts.len();
        let mut stream = ResidualStream::in_memory(n, batch.seq_len, d_model, n);
        stream.embed(weights, &padded_ids(texts, batch), compute).await?;
        streams.push(stream);
    }
    let layers = layer_share(weights);
    run_layers(weights, &mut streams, compute, |share| progress(share * layers)).await?;
    let places: Vec<Place> = group.iter().enumerate().flat_map(|(idx, batch)| places(texts, idx, batch)).collect();
    let mut rows = Vec::new();
    for piece in places.chunks(HEAD_ROWS) {
        rows.push((gather(&streams, piece, d_model)?, piece.iter().map(|place| place.target).collect::<Vec<u32>>()));
    }
    drop(streams);
    let rows: Vec<(Vec<f32>, &[u32])> = rows.iter_mut().map(|(x, ids)| (std::mem::take(x), ids.as_slice())).collect();
    let head = Head::new(weights, compute)?;
    let report = |done: usize, all: usize| progress(layers + (1.0 - layers) * done as f64 / all as f64);
    let scores = head.score(weights, &rows, compute, report).await?;
    for (place, score) in places.iter().zip(scores.iter().flatten()) {
        let likelihood = &mut likelihoods[place.text];
        likelihood.log_likelihood -= score.nll();
        likelihood.is_greedy &= score.is_top;
    }
    Ok(())
}

/// What is read of every text, shorter ones padded with their first token.
fn padded_ids(texts: &[Continuation<'_>], batch: &Batch) -> Vec<u32> {
    let mut ids = Vec::with_capacity(batch.n_tokens());
    for (row, idx) in batch.texts.iter().enumerate() {
        let text = texts[*idx].ids;
        ids.extend_from_slice(&text[..text.len() - 1]);
        ids.resize((row + 1) * batch.seq_len, text[0]);
    }
    ids
}

/// Where a token is predicted.
struct Place {
    stream: usize,
    /// Index of the row among all of the stream.
    row: usize,
    target: u32,
    text: usize,
}

fn places(texts: &[Continuation<'_>], stream: usize, batch: &Batch) -> Vec<Place> {
    let mut places = Vec::new();
    for (sample, idx) in batch.texts.iter().enumerate() {
        let text = texts[*idx];
        // The state at position t - 1 predicts token t.
        places.extend((text.n_context..text.ids.len()).map(|t| Place {
            stream,
            row: sample * batch.seq_len + t - 1,
            target: text.ids[t],
            text: *idx,
        }));
    }
    places
}

/// The residual stream at `places`, which are in the order of streams: `[places.len(), d_model]`.
fn gather(streams: &[ResidualStream<'_>], places: &[Place], d_model: usize) -> Result<Vec<f32>, ComputeError> {
    let mut rows = Vec::with_capacity(places.len() * d_model);
    for of_stream in places.chunk_by(|a, b| a.stream == b.stream) {
        let stream = &streams[of_stream[0].stream];
        let all = stream.batches().into_iter().fold(0..0, |all, batch| all.start..batch.end);
        let values = stream.load(&all)?;
        for place in of_stream {
            rows.extend_from_slice(&values[place.row * d_model..(place.row + 1) * d_model]);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
