//! The stages for a model that is small enough to be held in memory, where there may be no file system: in a browser.
//!
//! They compute what the long runs over a file system compute, by the same functions in the same order: the plans are
//! equal, and the files of the output are the same to the byte.
//!
//! Statistics, plan and files are values in the caller's hands, so that each can be shown before the next is made.

use std::collections::BTreeMap;

use modegpt_architecture::{DType, WeightError, WeightProvider};
use modegpt_calibration::{CalibrationError, GramPath, observe_layer};
use modegpt_checkpoint::{LoadError, SaveError, shard_name, total_params, write_layer, write_outer};
use modegpt_compress::{
    Allocation, LayerReport, ModelSummary, Plan, PlanOptions, Report, Ridges, Rounding, compress_layer,
};
use modegpt_model::{Compute, ComputeError, ResidualStream};
use modegpt_statistics::LayerStatistics;
use serde::Deserialize;

use crate::{Calibration, Model, Reporter, hf_folder};

/// Why a stage stopped.
#[derive(Debug, thiserror::Error)]
pub enum InMemoryError {
    /// Samples are longer than the model's context.
    #[error("samples of {found} tokens do not fit the model's context of {most}")]
    SampleTooLong {
        /// Tokens of a sample.
        found: usize,
        /// The model's context.
        most: usize,
    },
    /// Statistics are not those of the model's layers.
    #[error("statistics of {expected} layers are needed, found {found}: calibrate first")]
    Statistics {
        /// Layers of the model.
        expected: usize,
        /// Layers observed.
        found: usize,
    },
    /// Reading weights.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// Reading the model's files.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Embedding the tokens.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The forward pass.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// Planning or decomposition.
    #[error(transparent)]
    Compress(#[from] modegpt_compress::Error),
    /// A weight that does not fit the element type.
    #[error(transparent)]
    Save(#[from] SaveError),
}

/// How a model is to be observed.
pub struct Observation<'a> {
    /// The model.
    pub model: &'a Model,
    /// The samples.
    pub calibration: &'a Calibration,
    /// What computes.
    pub compute: &'a Compute,
    /// Where the largest Gram matrix is summed.
    pub gram_path: GramPath,
    /// Tokens computed at once.
    pub batch_tokens: usize,
    /// Hears of progress, in samples times layers.
    pub reporter: &'a dyn Reporter,
}

impl Observation<'_> {
    /// Statistics of every layer, in order.
    ///
    /// # Errors
    /// [`InMemoryError`] if a sample does not fit the model, weights cannot be read, or the device fails.
    pub async fn run(&self) -> Result<Vec<LayerStatistics>, InMemoryError> {
        let (config, windows) = (self.model.config(), &self.calibration.windows);
        if windows.seq_len > config.max_positions {
            return Err(InMemoryError::SampleTooLong { found: windows.seq_len, most: config.max_positions });
        }
        let weights = &self.model.checkpoint;
        let batch = (self.batch_tokens / windows.seq_len).clamp(1, windows.n);
        let mut stream = ResidualStream::in_memory(windows.n, windows.seq_len, config.d_model, batch);
        stream.embed(weights, &windows.ids, self.compute).await?;
        let all = 0..windows.n;
        let mut layers = Vec::with_capacity(config.layers.len());
        self.reporter.begin("calibrate", (config.layers.len() * windows.n) as u64);
        for layer in 0..config.layers.len() {
            let progress = |done: usize| self.reporter.advance((layer * windows.n + done) as u64);
            let shards = std::slice::from_ref(&all);
            let seen = observe_layer(weights, layer, &mut stream, shards, self.compute, self.gram_path, progress);
            layers.push(seen.await?);
        }
        self.reporter.end();
        Ok(layers)
    }
}

/// What is asked of a plan. As JSON, every field but the sparsity may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// Share of the linear weights of the decoder blocks to remove, in `[0, 1)`.
    pub sparsity: f64,
    /// How it is spread over layers.
    #[serde(default)]
    pub allocation: AllocationRequest,
    /// Multiples that widths are rounded to; those for the model's size if left out.
    #[serde(default)]
    pub rounding: Option<Rounding>,
    /// Ridges of the decompositions.
    #[serde(default)]
    pub ridges: Ridges,
}

/// How sparsity is to be spread over layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllocationRequest {
    /// By block influence, as sharp as the paper's.
    #[default]
    Paper,
    /// By block influence with this temperature.
    Epsilon(f64),
    /// The same everywhere.
    Uniform,
}

/// Makes a plan from what was observed.
///
/// # Errors
/// [`InMemoryError::Statistics`] if these are not one for each layer, [`InMemoryError::Compress`] if the request cannot
/// be met.
pub fn plan(model: &Model, statistics: &[LayerStatistics], request: &PlanRequest) -> Result<Plan, InMemoryError> {
    let config = model.config();
    check_layers(model, statistics)?;
    let influences: Vec<f64> = statistics.iter().map(LayerStatistics::block_influence).collect();
    let allocation = match request.allocation {
        AllocationRequest::Paper => Allocation::by_block_influence(config, &influences)?,
        AllocationRequest::Epsilon(epsilon) => Allocation::BlockInfluence { epsilon, cap: Allocation::DEFAULT_CAP },
        AllocationRequest::Uniform => Allocation::Uniform {},
    };
    let options = PlanOptions {
        sparsity: request.sparsity,
        allocation,
        rounding: request.rounding.unwrap_or_else(|| Rounding::default_for(config)),
        ridges: request.ridges,
    };
    Ok(Plan::new(config, model.fingerprint(), &influences, &options)?)
}

/// A compressed model.
#[derive(Clone, Debug)]
pub struct InMemoryResult {
    /// What a folder on disk would hold, by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// What it cost, layer by layer.
    pub report: Report,
}

/// Applies a plan.
///
/// - `calibration`: what the statistics were collected on, named in the model card
/// - `dtype`: element type of the output
/// - `progress`: is given every layer's report when the layer is done
///
/// # Errors
/// [`InMemoryError`]: the plan is another model's, or a layer cannot be compressed; the message names it.
pub fn compress(
    model: &Model,
    calibration: &Calibration,
    statistics: &[LayerStatistics],
    plan: &Plan,
    dtype: DType,
    mut progress: impl FnMut(&LayerReport),
) -> Result<InMemoryResult, InMemoryError> {
    check_layers(model, statistics)?;
    let config = model.config();
    plan.check_model(config, model.fingerprint())?;
    let n_layers = config.layers.len();
    let mut files = BTreeMap::new();
    let mut outer = Vec::new();
    write_outer(&model.checkpoint, dtype, &mut outer)?;
    files.insert(shard_name(0, n_layers), outer);
    let mut compressed_config = config.clone();
    let mut reports = Vec::with_capacity(n_layers);
    for (index, (seen, layer_plan)) in statistics.iter().zip(&plan.layers).enumerate() {
        let weights = model.checkpoint.layer(index)?;
        let before = &config.layers[index];
        let layer = compress_layer(config, index, &weights, before, seen, layer_plan, plan.ridges)?;
        let mut shard = Vec::new();
        write_layer(config, index, &layer.shape, &layer.weights, dtype, &mut shard)?;
        files.insert(shard_name(index + 1, n_layers), shard);
        progress(&layer.report);
        compressed_config.layers[index] = layer.shape;
        reports.push(layer.report);
    }
    let report = Report::new(&ModelSummary::of(config), reports);
    let params = (model.params(), total_params(&compressed_config));
    let finished = hf_folder::Finished {
        model,
        config: &compressed_config,
        plan,
        report: &report,
        calibration,
        dtype,
        params,
        bytes: (model.checkpoint.bytes(), params.1 * dtype.size() as u64),
    };
    files.extend(finished.files()?.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)));
    Ok(InMemoryResult { files, report })
}

fn check_layers(model: &Model, statistics: &[LayerStatistics]) -> Result<(), InMemoryError> {
    let (expected, found) = (model.config().layers.len(), statistics.len());
    if expected == found { Ok(()) } else { Err(InMemoryError::Statistics { expected, found }) }
}
