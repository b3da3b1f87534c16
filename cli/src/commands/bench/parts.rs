//! The parts of a compression and of what comes after it, one function each.

use std::time::Instant;

use modegpt::Model;
use modegpt::architecture::{FactorRanks, LayerShape, ModelConfig, WeightProvider};
use modegpt::calibration::{ActivationGram, Collect, Observing, observe_layer, pass_layer};
use modegpt::compress::{Layer, LayerPlan, Methods, Orders, Ridges, compress_layer};
use modegpt::model_runtime::{Block, Compute, Decoder, Head, ResidualStream};
use modegpt::statistics::LayerStatistics;
use rayon::prelude::*;

use super::Part;
use super::measure::{self, Timing, matmul, matmul_flops, measure, random_values};
use crate::device::FoundDevice;
use crate::failure::Failure;

/// The layer that is measured.
const LAYER: usize = 0;
/// Share of each width that stays when decompositions are measured.
const KEPT: f64 = 0.7;
/// Tokens written, after a prompt of as many as fit beside them.
const NEW_TOKENS: usize = 24;
const PROMPT_TOKENS: usize = 16;
/// Rows of the head that the plain product of its size has: as many as the head brings to the device at once.
const HEAD_ROWS: usize = 8192;

/// What every part works on: a layer and samples of text before it.
pub(super) struct Workload<'a> {
    pub(super) model: &'a Model,
    pub(super) found: &'a FoundDevice,
    pub(super) ids: Vec<u32>,
    pub(super) seq_len: usize,
    pub(super) n_samples: usize,
    /// Samples that are computed at once.
    batch: usize,
    /// `[n_samples, seq_len, d_model]`
    residual: Vec<f32>,
}

impl<'a> Workload<'a> {
    /// `batch_tokens` tokens or a little less, twice, so that a pass has more than one batch.
    pub(super) fn new(
        model: &'a Model,
        found: &'a FoundDevice,
        text: &str,
        seq_len: usize,
        batch_tokens: usize,
    ) -> Result<Self, Failure> {
        let batch = (batch_tokens / seq_len).max(1);
        let n_samples = 2 * batch;
        let tokens = model.tokenizer.encode(text)?;
        if tokens.is_empty() {
            return Err(Failure::request("the tokenizer makes no token of an English text"));
        }
        let ids: Vec<u32> = tokens.into_iter().cycle().take(n_samples * seq_len).collect();
        let d_model = model.config().d_model;
        let mut residual = vec![0.0; n_samples * seq_len * d_model];
        let mut stream = ResidualStream::new(Box::new(&mut residual), n_samples, seq_len, d_model, batch);
        pollster::block_on(stream.embed(&model.checkpoint, &ids, &found.compute))?;
        drop(stream);
        Ok(Self { model, found, ids, seq_len, n_samples, batch, residual })
    }

    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn shape(&self) -> &LayerShape {
        &self.config().layers[LAYER]
    }

    fn compute(&self) -> &Compute {
        &self.found.compute
    }

    fn stream(&self) -> ResidualStream<'static> {
        let residual = Box::new(self.residual.clone());
        ResidualStream::new(residual, self.n_samples, self.seq_len, self.config().d_model, self.batch)
    }

    fn n_tokens(&self) -> usize {
        self.n_samples * self.seq_len
    }

    fn batch_rows(&self) -> usize {
        self.batch * self.seq_len
    }

    /// Products of the layer over all samples: its linear maps, and attention over the half that causality leaves.
    fn layer_flops(&self) -> f64 {
        let (config, shape) = (self.config(), self.shape());
        let linear = 2.0 * config.linear_params(shape) as f64;
        let attention = (self.seq_len * config.n_heads * (shape.d_qk + shape.d_v)) as f64;
        self.n_tokens() as f64 * (linear + attention)
    }

    /// From tokens of one layer to tokens of all layers.
    fn tokens_per_sec(&self, timing: &Timing) -> f64 {
        let share = self.config().linear_params(self.shape()) as f64 / self.config().block_params() as f64;
        self.n_tokens() as f64 * share / timing.median_secs
    }
}

/// A layer loaded, all samples carried through it, and the stream stored, as an evaluation does.
pub(super) fn forward(work: &Workload<'_>, reference: f64) -> Result<Part, Failure> {
    let timing = measure(|| {
        pollster::block_on(pass_layer(&work.model.checkpoint, LAYER, &mut work.stream(), work.compute(), |_| ()))
    })?;
    Ok(Part::new("forward pass", timing).at(work.tokens_per_sec(&timing)).with_flops(work.layer_flops(), reference))
}

/// The same, with statistics; the last ones are given too.
pub(super) fn observed(work: &Workload<'_>, reference: f64) -> Result<(Part, LayerStatistics), Failure> {
    let mut statistics = None;
    let every = 0..work.n_samples;
    let timing = measure(|| {
        let (weights, mut stream) = (&work.model.checkpoint, work.stream());
        let shards = std::slice::from_ref(&every);
        let observing =
            Observing { shards, path: work.found.gram_path, collect: Collect { logits: true, ..Collect::default() } };
        let seen = observe_layer(weights, LAYER, &mut stream, observing, work.compute(), |_| ());
        statistics = Some(pollster::block_on(seen)?);
        Ok::<(), Failure>(())
    })?;
    let statistics = statistics.ok_or_else(|| Failure::Fault("no layer was observed".to_owned()))?;
    let config = work.config();
    let heads = (config.n_heads + config.n_kv_heads) as f64;
    let squares = |n: usize| (n * n) as f64;
    let shape = work.shape();
    let grams = squares(shape.d_ff) + heads * (squares(shape.d_qk) + squares(shape.d_v));
    let flops = work.layer_flops() + 2.0 * work.n_tokens() as f64 * grams;
    let part = Part::new("calibration pass", timing).at(work.tokens_per_sec(&timing)).with_flops(flops, reference);
    Ok((part, statistics))
}

/// Rate of a product of the size of the MLP's first map, in floating-point operations per second.
pub(super) fn layer_reference(work: &Workload<'_>) -> Result<f64, Failure> {
    rate(work.compute(), [work.batch_rows(), work.config().d_model, work.shape().d_ff])
}

/// `ZᵀZ` of one batch of hidden units, counted as the full product `2 m n²`.
pub(super) fn gram(work: &Workload<'_>) -> Result<Part, Failure> {
    let (rows, d_ff) = (work.batch_rows(), work.shape().d_ff);
    let samples = 0..work.batch;
    let stream = work.stream();
    let x = work.compute().tensor(stream.load(&samples)?, stream.shape(&samples));
    let layer = work.model.checkpoint.layer(LAYER).map_err(Failure::Request)?;
    let (_, seen) = Block::new(layer, work.shape(), work.config(), work.compute()).observe(x);
    let mut sum = ActivationGram::new(d_ff, work.found.gram_path);
    let timing = measure(|| pollster::block_on(sum.add(seen.hidden.clone(), work.compute())))?;
    let sizes = [d_ff, rows, d_ff];
    Ok(Part::new("Gram of hidden units", timing).with_flops(matmul_flops(sizes), rate(work.compute(), sizes)?))
}

/// The three decompositions of the layer at 30 %, each by itself, on the host.
pub(super) fn decompositions(work: &Workload<'_>, statistics: &LayerStatistics) -> Result<Vec<Part>, Failure> {
    let (config, shape) = (work.config(), work.shape());
    let weights = work.model.checkpoint.layer(LAYER).map_err(Failure::Request)?.into_dense()?;
    let keep = |width: usize| ((width as f64 * KEPT) as usize).max(1);
    // Rotary widths are even, and so is what stays of them.
    let d_qk = if config.is_rotary() { (keep(shape.d_qk) / 2 * 2).max(2) } else { keep(shape.d_qk) };
    let (d_ff, d_v) = (keep(shape.d_ff), keep(shape.d_v));
    let plan = |d_ff, d_qk, d_v| LayerPlan {
        index: LAYER,
        block_influence: 0.0,
        sparsity: 1.0 - KEPT,
        d_ff,
        d_qk,
        d_v,
        ranks: FactorRanks::default(),
        curves: None,
        map_curves: None,
    };
    let mlp = plan(d_ff, shape.d_qk, shape.d_v);
    let query_key = plan(shape.d_ff, d_qk, shape.d_v);
    let value_output = plan(shape.d_ff, shape.d_qk, d_v);
    // Decompositions run on the host, whatever the device.
    let reference = rate(&Compute::host(), [shape.d_ff, shape.d_ff, config.d_model])?;
    let layer = Layer { config, index: LAYER, weights: &weights, shape, statistics, gradients: None };
    let timed = |plan: &LayerPlan, methods: Methods| -> Result<Timing, Failure> {
        Ok(measure(|| compress_layer(&layer, plan, methods, Ridges::default(), &Orders::default()).map(drop))?)
    };
    Ok(vec![
        Part::new("MLP: leverage, Nyström", timed(&mlp, Methods::PAPER)?)
            .with_flops(mlp_flops(shape.d_ff, d_ff, config.d_model), reference),
        Part::new("MLP: elimination", timed(&mlp, Methods::BEST)?),
        // Selects columns: there is nothing to count.
        Part::new("query-key: CR", timed(&query_key, Methods::PAPER)?),
        Part::new("query-key: refit", timed(&query_key, Methods::BEST)?),
        Part::new("value-output: SVD", timed(&value_output, Methods::PAPER)?)
            .with_flops(value_output_flops(config, shape.d_v, d_v), reference),
        Part::new("value-output: attention", timed(&value_output, Methods::BEST)?),
    ])
}

/// Cholesky and the inverse's diagonal (`n³/3` each); then the cross product, Cholesky of what is kept, its solve and the
/// error; then the energy of the output.
fn mlp_flops(n: usize, k: usize, d: usize) -> f64 {
    let (n, k, d) = (n as f64, k as f64, d as f64);
    let gone = n - k;
    let refit = 2.0 * k * gone * d + k.powi(3) / 3.0 + 2.0 * k * k * d + 2.0 * gone * gone * d;
    2.0 * n.powi(3) / 3.0 + refit + n * n * d
}

/// The Grams of the output maps and the products with encoder and decoder; eigenproblems of a head's size not counted.
fn value_output_flops(config: &ModelConfig, d_v: usize, k: usize) -> f64 {
    let (heads, kv_heads) = (config.n_heads as f64, config.n_kv_heads as f64);
    let (d, d_v, k) = (config.d_model as f64, d_v as f64, k as f64);
    2.0 * d * (heads * d_v * d_v + (heads + kv_heads) * d_v * k)
}

/// Losses of one batch, the head read part by part, as an evaluation does.
pub(super) fn head(work: &Workload<'_>) -> Result<Part, Failure> {
    let (config, weights, rows) = (work.config(), &work.model.checkpoint, work.batch_rows());
    let x = work.residual[..rows * config.d_model].to_vec();
    let batches = [(x, &work.ids[..rows])];
    let head = Head::new(weights, work.compute())?;
    let timing = measure(|| pollster::block_on(head.score(weights, &batches, work.compute(), |_, _| ())).map(drop))?;
    let flops = matmul_flops([rows, config.d_embedding, config.vocab]);
    let reference = rate(work.compute(), [rows, config.d_embedding, config.vocab.min(HEAD_ROWS)])?;
    Ok(Part::new("head and loss", timing).at(rows as f64 / timing.median_secs).with_flops(flops, reference))
}

/// One token after another; its limit is that every weight is read once for each.
pub(super) fn decode(work: &Workload<'_>) -> Result<(Part, f64), Failure> {
    let (config, compute) = (work.config(), work.compute());
    let new = NEW_TOKENS.min(config.max_positions / 2).max(1);
    let prompt = PROMPT_TOKENS.min(config.max_positions - new).min(work.ids.len());
    let mut decoder = Decoder::new(&work.model.checkpoint, prompt + new, compute)?;
    pollster::block_on(decoder.next_logits(&work.ids[..prompt]))?;
    let mut secs = Vec::with_capacity(new);
    for step in 0..new {
        let id = work.ids[(prompt + step) % work.ids.len()];
        let begin = Instant::now();
        pollster::block_on(decoder.next_logits(&[id]))?;
        secs.push(begin.elapsed().as_secs_f64());
    }
    // The first step of a kind may be slower: kernels are compiled for it.
    let timing = Timing::of(if secs.len() > 1 { secs.split_off(1) } else { secs });
    drop(decoder);
    let weight_bytes = 4.0 * (config.block_params() + config.vocab * config.d_embedding) as f64;
    let bandwidth = bandwidth(compute, weight_bytes as usize)?;
    let share = weight_bytes / timing.median_secs / bandwidth;
    Ok((Part::new("writing a token", timing).at(1.0 / timing.median_secs).with_share(share), bandwidth))
}

/// Bytes per second at which as many bytes as the weights take, or the most that is sensible, are read once and summed.
fn bandwidth(compute: &Compute, bytes: usize) -> Result<f64, Failure> {
    const WIDTH: usize = 1024;
    let most = (512 << 20).min(compute.max_tensor_bytes);
    let rows = (bytes.clamp(1 << 20, most.max(1 << 20)) / (4 * WIDTH)).max(1);
    let values = random_values(rows * WIDTH, 3);
    let timing = if compute.is_host {
        measure(|| {
            let sum: f32 = values.par_chunks(1 << 16).map(stream_sum).sum();
            if sum.is_finite() { Ok(()) } else { Err(Failure::Fault("a sum of numbers is none".to_owned())) }
        })?
    } else {
        let tensor = compute.tensor(values, [rows, WIDTH]);
        measure(|| measure::finish(compute, tensor.clone().sum_dim(1)))?
    };
    Ok((rows * WIDTH * 4) as f64 / timing.median_secs)
}

/// A sum in independent lanes, so that memory and not addition sets the pace.
fn stream_sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 32];
    for part in values.chunks_exact(32) {
        lanes.iter_mut().zip(part).for_each(|(lane, value)| *lane += value);
    }
    lanes.iter().sum()
}

/// Floating-point operations per second of a plain product.
fn rate(compute: &Compute, sizes: [usize; 3]) -> Result<f64, Failure> {
    Ok(matmul_flops(sizes) / matmul(compute, sizes)?.median_secs)
}
