//! Compression: statistics, plan, one shard a layer, and the folder that others load.

use std::path::{Path, PathBuf};

use modegpt_architecture::{DType, LayerShape, ModelConfig, WeightProvider};
use modegpt_checkpoint::{Existing, OutputFolder, shard_name, total_params, write_layer, write_outer};
use modegpt_compress::{
    Allocation, LayerReport, ModelSize, ModelSummary, Plan, PlanOptions, Report, Ridges, Rounding, Target,
    compress_layer,
};
use serde::{Deserialize, Serialize};

use super::{CalibrationRun, RunError, StatisticsFolder};
use crate::{Model, Reporter, hf_folder};

/// How sparsity is to be spread over layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AllocationChoice {
    /// By block influence, as sharp as the paper's.
    Paper,
    /// By block influence with this temperature.
    Epsilon(f64),
    /// The same everywhere.
    Uniform,
}

/// Where the plan comes from.
#[derive(Clone, Debug)]
pub enum PlanSource {
    /// It is made from the statistics.
    Make {
        /// How small the model shall become.
        target: Target,
        /// How sparsity is spread.
        allocation: AllocationChoice,
        /// Multiples that widths are rounded to; those for the model's size if `None`.
        rounding: Option<Rounding>,
        /// Ridges of the decompositions.
        ridges: Ridges,
    },
    /// It was made before, and perhaps edited.
    Given(Box<Plan>),
}

/// What is asked of a compression beside its plan.
#[derive(Clone, Debug)]
pub struct CompressionOptions {
    /// The plan, or how to make it.
    pub plan: PlanSource,
    /// Element type of the output; that of the input if `None`.
    pub dtype: Option<DType>,
    /// Treat a fallback as an error.
    pub strict: bool,
    /// Statistics of an earlier calibration, to be used instead of a new one.
    pub statistics: Option<StatisticsFolder>,
    /// What to do about an output that is there already.
    pub existing: Existing,
}

/// What a compression did.
#[derive(Clone, Debug)]
pub struct CompressionResult {
    /// The new model's folder.
    pub folder: PathBuf,
    /// The plan that was applied.
    pub plan: Plan,
    /// What it cost, layer by layer.
    pub report: Report,
    /// The new model.
    pub config: ModelConfig,
    /// All parameters before and after.
    pub params: (u64, u64),
    /// Bytes of all weights before and after.
    pub bytes: (u64, u64),
}

/// A layer that is done: what the configuration and the report need of it.
#[derive(Serialize, Deserialize)]
struct Done {
    shape: LayerShape,
    report: LayerReport,
}

const STATISTICS: &str = "statistics/";

/// Makes a plan for `model` from its layers' block influences.
///
/// # Errors
/// [`RunError::Compress`] if the target cannot be reached.
pub fn make_plan(
    model: &Model,
    influences: &[f64],
    target: Target,
    allocation: AllocationChoice,
    rounding: Option<Rounding>,
    ridges: Ridges,
    dtype: DType,
) -> Result<Plan, RunError> {
    let config = model.config();
    let block_params = config.block_params() as u64;
    let other_params = model.params() - block_params;
    let bytes_per_param = dtype.size() as u64;
    let size = ModelSize { block_params, other_params, bytes_per_param, other_bytes: other_params * bytes_per_param };
    let sparsity = target.sparsity(&size)?;
    let allocation = match allocation {
        AllocationChoice::Paper => Allocation::by_block_influence(config, influences)?,
        AllocationChoice::Epsilon(epsilon) => Allocation::BlockInfluence { epsilon, cap: Allocation::DEFAULT_CAP },
        AllocationChoice::Uniform => Allocation::Uniform {},
    };
    let rounding = rounding.unwrap_or_else(|| Rounding::default_for(config));
    let options = PlanOptions { sparsity, allocation, rounding, ridges };
    Ok(Plan::new(config, model.fingerprint(), influences, &options)?)
}

/// Compresses a model into the folder `target`.
///
/// # Errors
/// [`RunError`]; nothing appears at `target` then, and what was done stays in `<target>.partial`, to be resumed from.
pub async fn compress(
    run: &CalibrationRun<'_>,
    options: &CompressionOptions,
    target: &Path,
) -> Result<CompressionResult, RunError> {
    run.check()?;
    if let PlanSource::Given(plan) = &options.plan {
        plan.check_model(run.model.config(), run.model.fingerprint())?;
    }
    let model = run.model;
    let dtype = options.dtype.unwrap_or(model.checkpoint.dtype());
    let mut journal = run.journal();
    journal.insert("plan".to_owned(), describe_plan(&options.plan));
    journal.insert("dtype".to_owned(), dtype.torch_name().to_owned());
    let folder = OutputFolder::begin(target, options.existing, &journal)?;
    let filled = fill(run, options, dtype, &folder).await;
    let (mut result, folder) = RunError::end(filled, folder)?;
    result.folder = folder.commit()?;
    Ok(result)
}

/// Does all of the work in the unfinished folder.
async fn fill(
    run: &CalibrationRun<'_>,
    options: &CompressionOptions,
    dtype: DType,
    folder: &OutputFolder,
) -> Result<CompressionResult, RunError> {
    let model = run.model;
    let statistics = if let Some(statistics) = &options.statistics {
        statistics.clone()
    } else {
        run.observe_all(folder, STATISTICS).await?;
        StatisticsFolder::new(folder.path().join(STATISTICS))
    };
    let plan = match &options.plan {
        PlanSource::Given(plan) => (**plan).clone(),
        &PlanSource::Make { target, allocation, rounding, ridges } => {
            let n_layers = model.config().layers.len();
            let (influences, _) = statistics.influences(n_layers, model.fingerprint())?;
            make_plan(model, &influences, target, allocation, rounding, ridges, dtype)?
        }
    };
    let done = apply(model, &plan, &statistics, dtype, options.strict, folder, run.reporter)?;

    let mut config = model.config().clone();
    let summary = ModelSummary::of(&config);
    let (shapes, reports): (Vec<_>, Vec<_>) = done.into_iter().map(|done| (done.shape, done.report)).unzip();
    config.layers = shapes;
    let report = Report::new(&summary, reports);
    let params = (model.params(), total_params(&config));
    let bytes = (model.checkpoint.bytes(), params.1 * dtype.size() as u64);
    let finished = hf_folder::Finished {
        model,
        config: &config,
        plan: &plan,
        report: &report,
        calibration: run.calibration,
        dtype,
        params,
        bytes,
    };
    for (name, bytes) in finished.files()? {
        folder.write(name, |out| Ok(out.write_all(&bytes)?))?;
    }
    for name in ["statistics", "layers"] {
        folder.remove(name)?;
    }
    Ok(CompressionResult { folder: folder.path().to_owned(), plan, report, config, params, bytes })
}

/// Compresses and writes every layer that is not done yet, and what stands outside the layers.
fn apply(
    model: &Model,
    plan: &Plan,
    statistics: &StatisticsFolder,
    dtype: DType,
    strict: bool,
    folder: &OutputFolder,
    reporter: &dyn Reporter,
) -> Result<Vec<Done>, RunError> {
    let config = model.config();
    let n_layers = config.layers.len();
    reporter.begin("compress", n_layers as u64);
    let outer = shard_name(0, n_layers);
    if !folder.has(&outer) {
        folder.write(&outer, |out| write_outer(&model.checkpoint, dtype, out))?;
    }
    let mut done = Vec::with_capacity(n_layers);
    for (index, layer_plan) in plan.layers.iter().enumerate() {
        let note = format!("layers/{index:05}.json");
        // The note is written after the shard: where it is, both are.
        let layer = if let Some(layer) = read_note(folder, &note) {
            layer
        } else {
            let (seen, _) = statistics.read(index, model.fingerprint())?;
            let weights = model.checkpoint.layer(index)?;
            let shape = &config.layers[index];
            let compressed = compress_layer(config, index, &weights, shape, &seen, layer_plan, plan.ridges)?;
            drop((weights, seen));
            check_fallbacks(&compressed.report, strict, reporter)?;
            folder.write(&shard_name(index + 1, n_layers), |out| {
                write_layer(config, index, &compressed.shape, &compressed.weights, dtype, out)
            })?;
            let layer = Done { shape: compressed.shape, report: compressed.report };
            let text = serde_json::to_string_pretty(&layer).unwrap_or_default();
            folder.write(&note, |out| Ok(out.write_all(text.as_bytes())?))?;
            layer
        };
        done.push(layer);
        reporter.advance(index as u64 + 1);
    }
    reporter.end();
    Ok(done)
}

fn read_note(folder: &OutputFolder, note: &str) -> Option<Done> {
    let text = std::fs::read_to_string(folder.path().join(note)).ok()?;
    serde_json::from_str(&text).ok()
}

fn check_fallbacks(report: &LayerReport, strict: bool, reporter: &dyn Reporter) -> Result<(), RunError> {
    let fallbacks = report.mlp.fallbacks + report.query_key.fallbacks + report.value_output.fallbacks;
    if fallbacks == 0 {
        return Ok(());
    }
    if strict {
        return Err(RunError::Strict { layer: report.index, fallbacks });
    }
    reporter.note(&format!("layer {}: factorised with {fallbacks} rounds of extra jitter", report.index));
    Ok(())
}

fn describe_plan(plan: &PlanSource) -> String {
    match plan {
        PlanSource::Make { target, allocation, rounding, ridges } => {
            let rounding = rounding.map_or("by size".to_owned(), |r| format!("ff {} head {}", r.ff, r.head));
            format!("{target:?}, {allocation:?}, rounding {rounding}, {ridges:?}")
        }
        PlanSource::Given(plan) => modegpt_text::token_hash(&plan.to_json().bytes().map(u32::from).collect::<Vec<_>>()),
    }
}
