//! The stages for a model whose statistics are small enough to be held in memory, where there may be no file system: in a
//! browser.
//!
//! They compute what the long runs over a file system compute, by the same functions in the same order: the plans are
//! equal, and the files of the output are the same to the byte.
//!
//! Statistics and plan are values in the caller's hands, so that each can be shown before the next is made; the files of
//! the output go to an [`Output`] while they are made.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use modegpt_architecture::{DType, WeightError, WeightProvider};
use modegpt_calibration::{CalibrationError, Collect, GramPath, Observing, observe_layer};
use modegpt_checkpoint::{LoadError, SaveError, shard_name, total_params, write_layer, write_outer};
use modegpt_compress::{
    Curves, ErrorUnit, Layer, LayerReport, Methods, Mode, ModelSummary, Orders, Plan, Report, Ridges, Rounding, Target,
    compress_layer,
};
use modegpt_gradient::{GradientError, GradientOptions, Samples, Tape, collect_gradients};
use modegpt_model::{Compute, ComputeError, ResidualStream};
use modegpt_statistics::{LayerGradients, LayerStatistics, RowFisher};
use serde::Deserialize;

use crate::gradient_samples::{GRADIENT_TOKENS, LABELS, gradient_batch, gradient_samples, told_to};
use crate::plan_request::Survey;
use crate::{AllocationChoice, Calibration, Model, PlanRequest, Reporter, hf_folder, plan_request};

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
    /// A plan weighs errors with gradients, or maps with Fisher information, which was not observed.
    #[error("gradients of the loss are needed, and {found}: observe the model with them")]
    NoGradients {
        /// What there is instead.
        found: &'static str,
    },
    /// What is asked for takes a run over a file system.
    #[error("{0} cannot be done in memory alone: use the command line")]
    NotInMemory(&'static str),
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
    /// The backward pass.
    #[error(transparent)]
    Gradient(#[from] GradientError),
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
    /// What is collected beside the usual.
    pub collect: Collect,
    /// Gradients over about so many of the tokens, with the Fisher information of the rows of every map.
    pub gradient_tokens: Option<usize>,
    /// Tokens computed at once.
    pub batch_tokens: usize,
    /// Hears of progress, in samples times layers.
    pub reporter: &'a dyn Reporter,
}

/// What to collect where `mode` will perhaps be planned, or another mode that is observed at no greater cost; and over how
/// many tokens to take gradients.
pub fn needs(mode: Mode) -> (Collect, Option<usize>) {
    let methods = PlanRequest::new(Target::Sparsity(0.0), mode).methods;
    let inputs = methods.needs_inputs();
    let collect = Collect { logits: true, inputs, magnitudes: inputs };
    (collect, methods.needs_row_fisher().then_some(GRADIENT_TOKENS))
}

/// What was learnt of a model.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Statistics of every layer, in order.
    pub statistics: Vec<LayerStatistics>,
    /// What was collected in them beside the usual.
    pub collect: Collect,
    /// Gradients of the loss at every layer, in order, if they were asked for.
    pub gradients: Option<Vec<LayerGradients>>,
}

impl Observed {
    /// Whether a plan of `mode`, as that mode usually is, can be made and applied.
    pub fn serves(&self, mode: Mode) -> bool {
        let needed = PlanRequest::new(Target::Sparsity(0.0), mode);
        self.collect.covers(needed.collect()) && (needed.unit != ErrorUnit::Nats || self.gradients.is_some())
    }
}

impl Observation<'_> {
    /// Observes every layer.
    ///
    /// # Errors
    /// [`InMemoryError`] if a sample does not fit the model, weights cannot be read, or the device fails.
    pub async fn run(&self) -> Result<Observed, InMemoryError> {
        let statistics = self.statistics().await?;
        let gradients = match self.gradient_tokens {
            Some(n_tokens) => Some(self.gradients(n_tokens).await?),
            None => None,
        };
        Ok(Observed { statistics, collect: self.collect, gradients })
    }

    async fn statistics(&self) -> Result<Vec<LayerStatistics>, InMemoryError> {
        let (config, windows) = (self.model.config(), &self.calibration.windows);
        if windows.seq_len > config.max_positions {
            return Err(InMemoryError::SampleTooLong { found: windows.seq_len, most: config.max_positions });
        }
        let weights = &self.model.checkpoint;
        let batch = (self.batch_tokens / windows.seq_len).clamp(1, windows.n);
        let mut stream = ResidualStream::in_memory(windows.n, windows.seq_len, config.d_model, batch);
        stream.embed(weights, &windows.ids, self.compute).await?;
        let all = 0..windows.n;
        let observing = Observing { shards: std::slice::from_ref(&all), path: self.gram_path, collect: self.collect };
        let mut layers = Vec::with_capacity(config.layers.len());
        self.reporter.begin("calibrate", (config.layers.len() * windows.n) as u64);
        for layer in 0..config.layers.len() {
            let progress = |done: usize| self.reporter.advance((layer * windows.n + done) as u64);
            layers.push(observe_layer(weights, layer, &mut stream, observing, self.compute, progress).await?);
        }
        self.reporter.end();
        Ok(layers)
    }

    /// A backward pass over the beginnings of samples.
    async fn gradients(&self, n_tokens: usize) -> Result<Vec<LayerGradients>, InMemoryError> {
        let weights = &self.model.checkpoint;
        let windows = gradient_samples(self.calibration, n_tokens).windows;
        let batch = gradient_batch(self.batch_tokens, &windows);
        let mut tape = Tape::in_memory(self.model.config(), windows.n, windows.seq_len, batch);
        let samples = Samples { ids: &windows.ids, counted: None };
        let options = GradientOptions { labels: LABELS, row_fisher: Some(RowFisher::PerExample) };
        let progress = told_to(self.reporter);
        let mut layers = Vec::with_capacity(self.model.config().layers.len());
        let each = |_, gradients| {
            layers.push(gradients);
            Ok::<_, InMemoryError>(())
        };
        collect_gradients(weights, &samples, &options, &mut tape, self.compute, progress, each).await?;
        self.reporter.end();
        // They came from last to first.
        layers.reverse();
        Ok(layers)
    }
}

/// What is asked of a plan. As JSON, every field but the sparsity may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparsityRequest {
    /// Share of the linear weights of the decoder blocks to remove, in `[0, 1)`.
    pub sparsity: f64,
    /// The set of methods: the paper's if left out.
    #[serde(default = "paper")]
    pub mode: Mode,
    /// How it is spread over layers; as the mode does if left out.
    #[serde(default)]
    pub allocation: Option<AllocationChoice>,
    /// Multiples that widths are rounded to; those for the model's size if left out.
    #[serde(default)]
    pub rounding: Option<Rounding>,
    /// Ridges of the decompositions.
    #[serde(default)]
    pub ridges: Ridges,
}

fn paper() -> Mode {
    Mode::Paper
}

impl From<SparsityRequest> for PlanRequest {
    fn from(request: SparsityRequest) -> Self {
        let SparsityRequest { sparsity, mode, allocation, rounding, ridges } = request;
        let usual = Self::new(Target::Sparsity(sparsity), mode);
        Self { allocation: allocation.unwrap_or(usual.allocation), rounding, ridges, ..usual }
    }
}

/// What every layer would lose at every width, if the allocation of `request` asks for that.
///
/// # Errors
/// [`InMemoryError::Statistics`] if these are not one for each layer, [`InMemoryError::Compress`] if a layer cannot be
/// decomposed, or a statistic that the methods need was not collected.
pub fn curves(
    model: &Model,
    seen: &Observed,
    request: &PlanRequest,
    reporter: &dyn Reporter,
) -> Result<Option<Curves>, InMemoryError> {
    check_layers(model, &seen.statistics)?;
    check_needs(seen, request.unit, request.methods)?;
    if request.allocation != AllocationChoice::ErrorCurves {
        return Ok(None);
    }
    let n_layers = seen.statistics.len();
    let mut surveys = Vec::with_capacity(n_layers);
    reporter.begin("survey", n_layers as u64);
    for index in 0..n_layers {
        surveys.push(with_layer(model, seen, request.unit, index, |layer| request.survey(layer))?);
        reporter.advance(index as u64 + 1);
    }
    reporter.end();
    Ok(Some(Survey::join(surveys).0))
}

/// Makes a plan from what was observed and, where the allocation asks for them, the layers' error [`curves`].
///
/// # Errors
/// [`InMemoryError::Statistics`] if these are not one for each layer, [`InMemoryError::Compress`] if the request cannot
/// be met, or curves are missing.
pub fn plan(
    model: &Model,
    seen: &Observed,
    curves: Option<Curves>,
    request: &PlanRequest,
) -> Result<Plan, InMemoryError> {
    check_layers(model, &seen.statistics)?;
    check_needs(seen, request.unit, request.methods)?;
    let influences: Vec<f64> = seen.statistics.iter().map(LayerStatistics::block_influence).collect();
    Ok(plan_request::make_plan(model, &influences, curves, request, model.checkpoint.dtype())?)
}

/// Where the files of a compressed model go, one after the other.
pub trait Output {
    /// Takes the next part of `file`. Parts of a file follow each other; with another name the file before is whole.
    ///
    /// # Errors
    /// Why it cannot be kept.
    fn put(&mut self, file: &str, part: &[u8]) -> io::Result<()>;
}

/// Files held in memory, by name.
impl Output for BTreeMap<String, Vec<u8>> {
    fn put(&mut self, file: &str, part: &[u8]) -> io::Result<()> {
        self.entry(file.to_owned()).or_default().extend_from_slice(part);
        Ok(())
    }
}

/// How much of a file is put at once.
const PART_BYTES: usize = 1 << 20;

struct FileOf<'a> {
    output: &'a mut dyn Output,
    name: &'a str,
}

impl Write for FileOf<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.output.put(self.name, part)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Applies a plan; what a folder on disk would hold goes to `output`. Gives what it cost, layer by layer.
///
/// - `calibration`: what was observed, named in the model card
/// - `dtype`: element type of the output
/// - `output`: after an error it holds a part of a model, which is of no use
/// - `progress`: is given every layer's report when the layer is done
///
/// # Errors
/// [`InMemoryError`]: the plan is another model's, a layer cannot be compressed (the message names it), or `output`
/// refuses a file.
pub fn compress(
    model: &Model,
    calibration: &Calibration,
    seen: &Observed,
    plan: &Plan,
    dtype: DType,
    output: &mut dyn Output,
    mut progress: impl FnMut(&LayerReport),
) -> Result<Report, InMemoryError> {
    check_layers(model, &seen.statistics)?;
    let config = model.config();
    plan.check_model(config, model.fingerprint())?;
    check_needs(seen, plan.unit, plan.methods)?;
    let n_layers = config.layers.len();
    write_file(output, &shard_name(0, n_layers), |file| write_outer(&model.checkpoint, dtype, file))?;
    let mut compressed_config = config.clone();
    let mut reports = Vec::with_capacity(n_layers);
    for (index, layer_plan) in plan.layers.iter().enumerate() {
        let layer = with_layer(model, seen, plan.unit, index, |layer| {
            compress_layer(layer, layer_plan, plan.methods, plan.ridges, &Orders::default())
        })?;
        write_file(output, &shard_name(index + 1, n_layers), |file| {
            write_layer(config, index, &layer.shape, &layer.weights, dtype, file)
        })?;
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
    for (name, bytes) in finished.files()? {
        output.put(name, &bytes).map_err(SaveError::from)?;
    }
    Ok(report)
}

fn write_file(
    output: &mut dyn Output,
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> Result<(), SaveError>,
) -> Result<(), InMemoryError> {
    let mut file = BufWriter::with_capacity(PART_BYTES, FileOf { output, name });
    write(&mut file)?;
    Ok(file.flush().map_err(SaveError::from)?)
}

/// Lets `work` see everything about a layer.
fn with_layer<T>(
    model: &Model,
    seen: &Observed,
    unit: ErrorUnit,
    index: usize,
    work: impl FnOnce(&Layer<'_>) -> Result<T, modegpt_compress::Error>,
) -> Result<T, InMemoryError> {
    let config = model.config();
    let weights = model.checkpoint.layer(index)?.into_dense().map_err(WeightError::from)?;
    let (shape, statistics) = (&config.layers[index], &seen.statistics[index]);
    let gradients = seen.gradients.as_ref().filter(|_| unit == ErrorUnit::Nats).map(|layers| &layers[index]);
    Ok(work(&Layer { config, index, weights: &weights, shape, statistics, gradients })?)
}

fn check_needs(seen: &Observed, unit: ErrorUnit, methods: Methods) -> Result<(), InMemoryError> {
    if methods.prefix.is_any() {
        return Err(InMemoryError::NotInMemory("a refit on the compressed prefix"));
    }
    let found = match &seen.gradients {
        None => "none were computed",
        Some(layers) if layers.len() != seen.statistics.len() => "those there are belong to another model",
        Some(_) => return Ok(()),
    };
    if unit == ErrorUnit::Nats { Err(InMemoryError::NoGradients { found }) } else { Ok(()) }
}

fn check_layers(model: &Model, statistics: &[LayerStatistics]) -> Result<(), InMemoryError> {
    let (expected, found) = (model.config().layers.len(), statistics.len());
    if expected == found { Ok(()) } else { Err(InMemoryError::Statistics { expected, found }) }
}
