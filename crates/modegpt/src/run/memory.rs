//! How much memory a run will take, told before it begins.

use modegpt_architecture::{LayerShape, ModelConfig};
use serde::Serialize;

use super::openings;

/// Bytes that a compression will need, by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Most host memory at any time.
    pub host_bytes: u64,
    /// Most device memory at any time; part of the host's where the device is the host.
    pub device_bytes: u64,
    /// Most disk space for statistics, residual streams and what the refit keeps, beside the output itself.
    pub scratch_bytes: u64,
    /// The residual stream of all samples, wherever it is kept.
    pub stream_bytes: u64,
    /// Whether the stream is kept on the disk, because the host's share would exceed what is allowed.
    pub stream_on_disk: bool,
}

/// What the program itself takes: code, tokenizer, threads and their buffers.
pub(super) const PROGRAM_BYTES: u64 = 60 << 20;

/// With what the allocator keeps of blocks that were freed: an eighth has been seen.
pub(super) fn with_freed(bytes: u64) -> u64 {
    bytes + bytes / 7
}

/// Size of the calibration set and how much of it is computed at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) n_samples: usize,
    pub(crate) seq_len: usize,
    pub(crate) batch: usize,
    pub(crate) is_host: bool,
}

impl MemoryPlan {
    /// The plan for compressing `config` with the given calibration set, keeping the stream on the disk if the host would
    /// otherwise need more than `max_host_bytes`.
    ///
    /// `inputs`: whether the inputs of whole maps are collected too; `prefix`: whether maps are refitted on the compressed
    /// prefix.
    pub(crate) fn new(
        config: &ModelConfig,
        work: Workload,
        inputs: bool,
        prefix: bool,
        max_host_bytes: Option<u64>,
    ) -> Self {
        // Ids, and every value that a token has anywhere, take four bytes.
        let bytes_of_tokens = 4 * (work.n_samples * work.seq_len) as u64;
        let (ids, stream_bytes) = (bytes_of_tokens, bytes_of_tokens * config.d_model as u64);
        let largest = |cost: fn(&ModelConfig, &LayerShape) -> u64| {
            config.layers.iter().map(|shape| cost(config, shape)).max().unwrap_or(0)
        };
        let weights = largest(layer_bytes);
        let activations = activation_bytes(config, work);
        let (accumulators, statistics) = if inputs {
            // Every block in f32 is unpacked at once, and every sum packed.
            (largest(accumulator_bytes) + 2 * largest(input_bytes), largest(statistics_bytes) + largest(input_bytes))
        } else {
            (largest(accumulator_bytes), largest(statistics_bytes))
        };
        let observe = weights + activations + accumulators + 2 * statistics;
        // The layer before and after, its statistics as read and as numbers, and the factorisation.
        let decompose = 3 * weights + 2 * statistics + largest(factorisation_bytes);
        // The refit on the compressed prefix holds two streams, the original layer and the compressed one, and observes, while
        // nothing is factorised.
        let (refit, n_streams) = if prefix { (observe + 2 * weights, 2) } else { (0, 0) };
        // Of each the inputs of two layers, the place behind attention and what is being written.
        let n_stream_files = 2 + 4 * n_streams;
        // Openings are carried along with the samples: at most one for so many tokens, and what begins every text.
        let n_tokens = work.n_samples * work.seq_len;
        let n_openings = if prefix { n_tokens.div_ceil(openings::EVERY) + 1 } else { 0 };
        let bytes_with_openings = 4 * (n_tokens + n_openings) as u64;
        let refit_bytes = bytes_with_openings * config.d_model as u64;
        let units_of_token = if prefix && work.is_host { largest(most_units) } else { 0 };
        let device_bytes = weights + activations;
        let host_work = if work.is_host { observe } else { observe - activations / 2 };
        let without_stream = with_freed(PROGRAM_BYTES + ids + host_work.max(decompose).max(refit));
        // In memory the stream is gone when decomposition begins, unless it is needed for the refit.
        let then = decompose.max(refit) + n_streams * refit_bytes;
        let with_stream = with_freed(PROGRAM_BYTES + ids + (host_work + stream_bytes).max(then));
        let stream_on_disk = max_host_bytes.is_some_and(|most| with_stream > most);
        let n_layers = config.layers.len() as u64;
        Self {
            host_bytes: if stream_on_disk { without_stream } else { with_stream },
            device_bytes,
            scratch_bytes: n_layers * statistics + n_stream_files * refit_bytes + bytes_with_openings * units_of_token,
            stream_bytes,
            stream_on_disk,
        }
    }
}

impl MemoryPlan {
    /// The plan of two runs of which one begins when the other is done.
    pub(crate) fn before_or_after(self, other: Self) -> Self {
        Self {
            host_bytes: self.host_bytes.max(other.host_bytes),
            device_bytes: self.device_bytes.max(other.device_bytes),
            scratch_bytes: self.scratch_bytes.max(other.scratch_bytes),
            ..self
        }
    }
}

/// Weights of a layer in f32.
pub(super) fn layer_bytes(config: &ModelConfig, shape: &LayerShape) -> u64 {
    4 * config.linear_params(shape) as u64
}

/// Values that enter the last map of a half, for a token.
fn most_units(config: &ModelConfig, shape: &LayerShape) -> u64 {
    shape.d_ff.max(config.n_heads * shape.d_v) as u64
}

/// Statistics of a layer as stored: packed triangles in f64.
fn statistics_bytes(config: &ModelConfig, shape: &LayerShape) -> u64 {
    let triangle = |n: usize| (n * (n + 1) / 2) as u64;
    let heads = (config.n_heads + config.n_kv_heads) as u64;
    8 * (triangle(shape.d_ff) + heads * (triangle(shape.d_qk) + triangle(shape.d_v)))
}

/// Gram matrices of the inputs of whole maps, packed triangles in f64.
fn input_bytes(config: &ModelConfig, shape: &LayerShape) -> u64 {
    let (d, heads) = (config.d_model, config.n_heads * shape.d_v);
    4 * (2 * d * (d + 1) + heads * (heads + 1)) as u64
}

/// The largest Gram matrix while it grows: a full block in f32 beside the packed sum in f64.
fn accumulator_bytes(_config: &ModelConfig, shape: &LayerShape) -> u64 {
    (4 + 4) * (shape.d_ff * shape.d_ff) as u64
}

/// Cholesky factor, its inverse and a right-hand side of the largest Gram matrix, in f64.
fn factorisation_bytes(config: &ModelConfig, shape: &LayerShape) -> u64 {
    8 * (3 * shape.d_ff * shape.d_ff + 3 * shape.d_ff * config.d_model) as u64
}

/// Activations of one batch inside a layer.
pub(super) fn activation_bytes(config: &ModelConfig, work: Workload) -> u64 {
    let tokens = work.batch * work.seq_len;
    let widest = config.layers.iter().map(|s| 4 * s.d_ff + 4 * config.n_heads * (s.d_qk + s.d_v)).max().unwrap_or(0);
    let scores = if work.is_host { 0 } else { 3 * work.batch * config.n_heads * work.seq_len * work.seq_len };
    4 * (tokens * (widest + 6 * config.d_model) + scores) as u64
}
