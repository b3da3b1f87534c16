//! Compression: statistics, plan, one shard a layer, and the folder that others load.

use std::path::{Path, PathBuf};

use modegpt_architecture::{DType, LayerShape, ModelConfig, NormPlacement, WeightError};
use modegpt_calibration::Collect;
use modegpt_checkpoint::{Existing, OutputFolder, shard_name, total_params, write_layer, write_outer};
use modegpt_compress::{
    CompressedLayer, Curves, ErrorUnit, LayerPlan, LayerReport, Methods, MlpMethod, ModelSummary, Orders, Plan,
    QueryKeyMethod, Report, Ridges, Widths, check_dense, compress_layer,
};
use modegpt_statistics::RowFisher;
use serde::{Deserialize, Serialize};

use super::decide::{Decision, decide};
use super::notes::{read_note, write_note};
use super::prefix::{Prefix, forget_half_written};
use super::request_words;
use super::survey::{Known, SurveyFolder};
use super::{CalibrationRun, GradientsFolder, MemoryPlan, RunError, StatisticsFolder};
use crate::{AllocationChoice, Calibration, Model, PlanRequest, Reporter, hf_folder, plan_request};

/// Where the plan comes from.
#[derive(Clone, Debug)]
pub enum PlanSource {
    /// It is made from the statistics.
    Make(PlanRequest),
    /// It was made before, and perhaps edited.
    Given(Box<Plan>),
}

impl PlanSource {
    /// The methods that apply.
    pub fn methods(&self) -> Methods {
        match self {
            Self::Make(request) => request.methods,
            Self::Given(plan) => plan.methods,
        }
    }

    /// What errors are weighed with.
    pub fn unit(&self) -> ErrorUnit {
        match self {
            Self::Make(request) => request.unit,
            Self::Given(plan) => plan.unit,
        }
    }

    /// What calibration has to collect for it.
    pub fn collect(&self) -> Collect {
        match self {
            Self::Make(request) => request.collect(),
            Self::Given(plan) => Collect {
                logits: plan.methods.query_key == QueryKeyMethod::Refit,
                inputs: plan.methods.needs_inputs(),
                magnitudes: plan.methods.needs_magnitudes(),
            },
        }
    }
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
    /// Samples that nothing else has seen: the best of several plans is chosen by their loss.
    pub held_out: Option<Calibration>,
    /// Surveys that compressions from the same statistics share; `None` for surveys of its own.
    pub surveys: Option<SurveyFolder>,
    /// What to do about an output that is there already.
    pub existing: Existing,
}

impl CompressionOptions {
    /// A new output as `plan` says, in the element type of the input, from a calibration of its own.
    pub fn new(plan: PlanSource) -> Self {
        let (statistics, held_out, surveys) = (None, None, None);
        Self { plan, dtype: None, strict: false, statistics, held_out, surveys, existing: Existing::Refuse }
    }

    /// What memory `run` will take with the compression that follows.
    pub fn memory_plan(&self, run: &CalibrationRun<'_>) -> MemoryPlan {
        let plan = run.memory_plan(self.plan.methods().prefix.is_any());
        let held_out = self.held_out.as_ref().map_or(0, |samples| 4 * samples.windows.ids.len());
        MemoryPlan { host_bytes: plan.host_bytes + (held_out * run.model.config().d_model) as u64, ..plan }
    }
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
/// Subfolders of an unfinished run that are gone in the end.
const WORK: [&str; 4] = ["statistics", "surveys", "prefix", "layers"];

/// Makes a plan for `model` from its layers' block influences and, where allocation asks for them, their error curves.
///
/// # Errors
/// [`RunError::Compress`] if the target cannot be reached, or curves are missing.
pub fn make_plan(
    model: &Model,
    influences: &[f64],
    curves: Option<Curves>,
    request: &PlanRequest,
    dtype: DType,
) -> Result<Plan, RunError> {
    Ok(plan_request::make_plan(model, influences, curves, request, dtype)?)
}

/// Refuses a request that no plan meets, before any work is done.
///
/// # Errors
/// [`RunError::Compress`].
pub fn check_request(model: &Model, request: &PlanRequest, dtype: DType) -> Result<(), RunError> {
    let config = model.config();
    let equal = vec![0.5; config.layers.len()];
    let curves = (request.allocation == AllocationChoice::ErrorCurves).then(|| request.free_curves(config));
    make_plan(model, &equal, curves, request, dtype).map(|_| ())
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
    check_dense(run.model.config())?;
    let needed = options.plan.methods().needs_row_fisher().then_some(RowFisher::PerExample);
    let run = &CalibrationRun { row_fisher: run.row_fisher.or(needed), ..*run };
    run.check(&options.memory_plan(run))?;
    check_needs(run, options)?;
    if let PlanSource::Given(plan) = &options.plan {
        plan.check_model(run.model.config(), run.model.fingerprint())?;
    }
    let model = run.model;
    let dtype = options.dtype.unwrap_or(model.checkpoint.dtype());
    let mut journal = run.journal();
    journal.extend(request_words::words(&options.plan).into_iter().map(|(name, value)| (name.to_owned(), value)));
    journal.insert("--dtype".to_owned(), request_words::name(dtype));
    let held_out = options.held_out.as_ref().map_or("none", |samples| &samples.token_hash);
    journal.insert("held-out tokens".to_owned(), held_out.to_owned());
    let folder = OutputFolder::begin(target, options.existing, &journal)?;
    let filled = fill(run, options, dtype, &folder).await;
    let (mut result, folder) = RunError::end(filled, folder)?;
    result.folder = folder.commit()?;
    Ok(result)
}

/// Refuses, before any work, a plan for which something is missing.
fn check_needs(run: &CalibrationRun<'_>, options: &CompressionOptions) -> Result<(), RunError> {
    let config = run.model.config();
    if options.plan.methods().prefix.is_any() {
        if config.norm_placement == NormPlacement::Post {
            let reason = "this model normalises what leaves a module, so that its stream is no plain sum";
            return Err(RunError::NoPrefix { reason });
        }
        if run.calibration.windows.ids.is_empty() {
            let reason = "statistics alone do not tell the samples: pass --calibration FILE… too";
            return Err(RunError::NoPrefix { reason });
        }
    }
    match (options.plan.unit(), &options.statistics) {
        (ErrorUnit::Nats, Some(statistics)) => {
            let gradients = GradientsFolder::of_all_layers(statistics.path(), config.layers.len())?;
            if options.plan.methods().needs_row_fisher() {
                gradients.check_row_fisher(run.model.fingerprint())?;
            }
            Ok(())
        }
        (ErrorUnit::Nats, None) if !run.has_gradients() => {
            Err(RunError::NoGradients { reason: "none are computed: pass --fisher".to_owned() })
        }
        _ => Ok(()),
    }
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
    let Decision { plan, orders } = match &options.plan {
        PlanSource::Given(plan) => Decision { plan: (**plan).clone(), orders: Vec::new() },
        PlanSource::Make(request) => decide(run, &statistics, request, options, dtype, folder).await?,
    };
    let gradients = (plan.unit == ErrorUnit::Nats).then(|| GradientsFolder::new(statistics.path()));
    let known = Known { model, statistics: &statistics, gradients: gradients.as_ref() };
    let done = apply(run, options, &known, &plan, &orders, dtype, folder).await;
    let done = done.inspect_err(|_| forget_half_written(folder))?;

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
    for name in WORK {
        folder.remove(name)?;
    }
    Ok(CompressionResult { folder: folder.path().to_owned(), plan, report, config, params, bytes })
}

/// Compresses and writes every layer that is not done yet, and what stands outside the layers.
async fn apply(
    run: &CalibrationRun<'_>,
    options: &CompressionOptions,
    known: &Known<'_>,
    plan: &Plan,
    orders: &[Orders],
    dtype: DType,
    folder: &OutputFolder,
) -> Result<Vec<Done>, RunError> {
    let model = known.model;
    let config = model.config();
    let n_layers = config.layers.len();
    run.reporter.begin("compress", n_layers as u64);
    let outer = shard_name(0, n_layers);
    if !folder.has(&outer) {
        folder.write(&outer, |out| write_outer(&model.checkpoint, dtype, out))?;
    }
    // A note is written after its shard: where it is, both are.
    let note = |index: usize| format!("layers/{index:05}.json");
    let mut done: Vec<Done> = (0..n_layers).map_while(|index| read_note(folder, &note(index))).collect();
    let mut prefix = if plan.methods.prefix.is_any() && done.len() < n_layers {
        let resumed = Prefix::resume(run, folder, done.len())?;
        if resumed.is_none() {
            // Without the streams there is nothing to go on from.
            done.clear();
        }
        Some(match resumed {
            Some(prefix) => prefix,
            None => Prefix::begin(run, folder).await?,
        })
    } else {
        None
    };
    for (index, layer_plan) in plan.layers.iter().enumerate().skip(done.len()) {
        run.reporter.advance(index as u64);
        let nothing = Orders::default();
        let orders = orders.get(index).unwrap_or(&nothing);
        let compressed = known.with_layer(index, |layer| {
            if index == 0 {
                tell_few_tokens(plan, layer.statistics.n_tokens, run.reporter);
            }
            Ok(compress_layer(layer, layer_plan, plan.methods, plan.ridges, orders)?)
        })?;
        let CompressedLayer { mut weights, shape, units, mut report } = compressed;
        let is_whole = |report: &LayerReport| report.before == report.after;
        if let Some(prefix) = &mut prefix
            && is_whole(&report)
            && done.iter().all(|done| is_whole(&done.report))
        {
            prefix.pass(index).await?;
        } else if let Some(prefix) = &mut prefix {
            let dense = weights.into_dense().map_err(WeightError::from)?;
            let refitted = prefix.refit(index, dense, &shape, &units, plan.methods.prefix, plan.ridges.prefix).await?;
            report.value_output.fallbacks += refitted.output_attempts;
            report.mlp.fallbacks += refitted.down_attempts;
            weights = refitted.weights.into();
        }
        check_fallbacks(&report, options.strict, run.reporter)?;
        folder
            .write(&shard_name(index + 1, n_layers), |out| write_layer(config, index, &shape, &weights, dtype, out))?;
        let layer = Done { shape, report };
        write_note(folder, &note(index), &layer)?;
        done.push(layer);
    }
    run.reporter.advance(n_layers as u64);
    run.reporter.end();
    Ok(done)
}

/// Every layer has seen the same tokens; some layer keeps the most units.
fn tell_few_tokens(plan: &Plan, n_tokens: u64, reporter: &dyn Reporter) {
    let refits =
        plan.methods.maps.is_none() && matches!(plan.methods.mlp, MlpMethod::Leverage | MlpMethod::Elimination);
    let shrunk = plan.layers.iter().zip(&plan.model.widths).filter(|(layer, before)| layer.d_ff < before.d_ff);
    // Elimination is held over all of them, a refit over those that are kept.
    let units = |(layer, before): (&LayerPlan, &Widths)| match plan.methods.mlp {
        MlpMethod::Elimination => before.d_ff,
        _ => layer.d_ff,
    };
    let most = shrunk.map(units).max().unwrap_or(0);
    if refits && n_tokens < (Ridges::TOKENS_PER_UNKNOWN * most) as u64 {
        reporter.note(&format!(
            "{n_tokens} tokens for up to {most} hidden units: with fewer than {} for each, down maps are held to the weights that \
             are there, and more calibration text would lose less",
            Ridges::TOKENS_PER_UNKNOWN
        ));
    }
}

fn check_fallbacks(report: &LayerReport, strict: bool, reporter: &dyn Reporter) -> Result<(), RunError> {
    let fallbacks = report.mlp.fallbacks + report.query_key.fallbacks + report.value_output.fallbacks;
    if fallbacks == 0 {
        return Ok(());
    }
    if strict {
        return Err(RunError::Strict { layer: report.index, fallbacks });
    }
    reporter.note(&format!("layer {}: factorised with extra jitter (rounds: {fallbacks})", report.index));
    Ok(())
}
