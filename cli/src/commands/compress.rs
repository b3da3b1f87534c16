//! `modegpt compress`

use std::path::Path;
use std::time::Instant;

use modegpt::architecture::{DType, Family, MapName, ModelConfig};
use modegpt::calibration::Collect;
use modegpt::compress::{Allocation, ErrorUnit, LayerReport, Methods, Mode, Plan, TriedPlan};
use modegpt::run::{
    CalibrationRun, CompressionOptions, CompressionResult, MemoryPlan, PlanSource, StatisticsFolder, check_request,
    compress,
};
use modegpt::statistics::RowFisher;
use modegpt::{Calibration, GRADIENT_TOKENS, Model, Reporter};
use serde::Serialize;

use crate::args::{CalibrationArgs, CompressArgs, PrefixName};
use crate::device::FoundDevice;
use crate::failure::Failure;
use crate::progress::{Bars, StageTime};
use crate::{device, inputs, printer, process_memory};

/// What `--json` prints; scripts rely on these names.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    output: String,
    mode: Mode,
    methods: Methods,
    allocation: Allocation,
    /// What errors were weighed with.
    unit: ErrorUnit,
    /// The plans that were tried on held-out text, if more than one.
    tried: Vec<TriedPlan>,
    pub(crate) params_before: u64,
    pub(crate) params_after: u64,
    pub(crate) block_params_before: u64,
    pub(crate) block_params_after: u64,
    /// Share of the decoder blocks' linear weights that was removed.
    sparsity: f64,
    /// Share of all parameters that was removed.
    sparsity_of_all_params: f64,
    pub(crate) bytes_before: u64,
    pub(crate) bytes_after: u64,
    dtype: DType,
    device: String,
    special_tokens: String,
    calibration_token_hash: String,
    calibration_samples: usize,
    calibration_seq_len: usize,
    seed: u64,
    fallbacks: u32,
    planned_host_bytes: u64,
    peak_host_bytes: Option<u64>,
    pub(crate) secs: f64,
    /// What it was spent on; the rest is reading what there is and saying what there will be.
    stages: Vec<StageTime>,
    pub(crate) layers: Vec<LayerReport>,
}

/// Runs the command.
pub(crate) fn run(args: &CompressArgs) -> Result<(), Failure> {
    let begin = Instant::now();
    check_prefix(args)?;
    let plan = plan_source_of_file(args)?;
    plan.iter().try_for_each(|plan| check_fisher(args, plan))?;
    device::set_threads(args.common.threads);
    let found = device::open(args.common.device)?;
    let model = inputs::open_model(&args.model.model)?;
    let mut options = CompressionOptions {
        plan: match plan {
            Some(plan) => PlanSource::Given(Box::new(plan)),
            None => PlanSource::Make(inputs::plan_request(
                &model,
                &args.target,
                inputs::asks_for_gradients(&args.calibration),
            )?),
        },
        dtype: args.dtype.map(inputs::dtype),
        strict: args.strict,
        statistics: args.statistics.as_ref().map(StatisticsFolder::new),
        held_out: None,
        surveys: None,
        existing: inputs::existing(args.existing.force, args.existing.resume),
    };
    check_gradient_options(args, &options)?;
    // Found out before any work: a sparsity that cannot be reached.
    check_target(&model, &options)?;
    let calibration = match &options.statistics {
        Some(statistics) if args.calibration.calibration.is_empty() => statistics.calibration(model.fingerprint())?,
        statistics => {
            let n_held_out = if has_choice(&options.plan) { args.held_out } else { 0 };
            let (drawn, held_out) = inputs::draw_and_hold_out(&model, &args.calibration, n_held_out)?;
            if let Some(statistics) = statistics {
                check_samples(&drawn, &statistics.calibration(model.fingerprint())?)?;
            }
            options.held_out = held_out;
            drawn
        }
    };
    let bars = Bars::default();
    if let PlanSource::Make(request) = &mut options.plan
        && args.target.prefix.is_none()
    {
        request.methods.prefix = request.usual_prefix(model.config(), &calibration);
    }
    let collect = options.plan.collect();
    let run = run_of(&model, &calibration, &found, &args.calibration, collect, args.common.batch_tokens, &bars)?;
    let labelled = inputs::labelled(&model, &args.calibration)?;
    let run = CalibrationRun { labelled: labelled.as_ref(), ..run };
    let run = with_row_fisher(&run, options.statistics.is_none() && options.plan.methods().needs_row_fisher());
    let memory = options.memory_plan(&run);
    announce(&model, &calibration, &found, memory);
    announce_plan(&options.plan);
    announce_trial(&options);
    let result = pollster::block_on(compress(&run, &options, &args.output))?;
    let summary = summarise(&result, args, &run, &found, memory, begin, bars.stages());
    if args.common.json { printer::json(&summary) } else { print(&summary, &result.folder) }
}

/// Whether more than one plan serves.
fn has_choice(plan: &PlanSource) -> bool {
    matches!(plan, PlanSource::Make(request) if request.alternatives().len() > 1)
}

/// Says whether plans will be tried.
fn announce_trial(options: &CompressionOptions) {
    if let Some(held_out) = &options.held_out {
        printer::remark(&format!(
            "held out     {} samples, on which errors in other units are tried",
            held_out.windows.n
        ));
    } else if has_choice(&options.plan) {
        printer::remark("held out     none: errors without gradients are not tried");
    }
}

/// Refuses a refit on the compressed prefix without samples that could be carried through it.
fn check_prefix(args: &CompressArgs) -> Result<(), Failure> {
    if args.target.prefix.is_some_and(|maps| maps != PrefixName::None) && args.calibration.calibration.is_empty() {
        let reason = "--prefix carries the samples through the compressed layers: pass --calibration FILE… too";
        return Err(Failure::Usage(reason.to_owned()));
    }
    Ok(())
}

/// Refuses gradients beside a plan that has no use for them.
fn check_fisher(args: &CompressArgs, plan: &Plan) -> Result<(), Failure> {
    if inputs::asks_for_gradients(&args.calibration) && plan.unit != ErrorUnit::Nats {
        let reason = format!("--fisher: this plan weighs errors in {}, without gradients", plan.unit);
        return Err(Failure::Usage(reason));
    }
    Ok(())
}

/// Refuses what is said of a backward pass that there will not be.
fn check_gradient_options(args: &CompressArgs, options: &CompressionOptions) -> Result<(), Failure> {
    let usage = |reason: &str| Err(Failure::Usage(reason.to_owned()));
    if args.calibration.fisher_rows.is_some() && !options.plan.methods().needs_row_fisher() {
        return usage("--fisher-rows belongs to --mode fwsvd, or to calibrate");
    }
    if args.calibration.fisher_data.is_some() && options.statistics.is_some() {
        return usage("--fisher-data is for a backward pass, and --statistics has its gradients: pass it to calibrate");
    }
    Ok(())
}

/// Refuses samples that are not those behind the statistics.
fn check_samples(drawn: &Calibration, seen: &Calibration) -> Result<(), Failure> {
    if drawn.token_hash == seen.token_hash {
        return Ok(());
    }
    Err(Failure::request(format!(
        "the calibration text gives other samples (token hash {}) than the statistics come from ({})",
        drawn.token_hash, seen.token_hash
    )))
}

fn plan_source_of_file(args: &CompressArgs) -> Result<Option<Plan>, Failure> {
    let Some(file) = &args.plan else { return Ok(None) };
    let fail = |e: &dyn std::fmt::Display| Failure::request(format!("plan `{}`: {e}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| fail(&e))?;
    Ok(Some(Plan::from_json(&text).map_err(|e| fail(&e))?))
}

fn check_target(model: &Model, options: &CompressionOptions) -> Result<(), Failure> {
    if let PlanSource::Make(request) = &options.plan {
        check_request(model, request, options.dtype.unwrap_or(model.checkpoint.dtype()))?;
    }
    Ok(())
}

/// A calibration run with as many tokens at once as the device's memory allows.
///
/// # Errors
/// If one sample alone needs more.
pub(crate) fn run_of<'a>(
    model: &'a Model,
    calibration: &'a Calibration,
    found: &'a FoundDevice,
    args: &CalibrationArgs,
    collect: Collect,
    batch_tokens: usize,
    reporter: &'a dyn Reporter,
) -> Result<CalibrationRun<'a>, Failure> {
    let run = CalibrationRun {
        collect,
        gradient_tokens: args.fisher,
        row_fisher: args.fisher_rows.map(inputs::row_fisher),
        batch_tokens,
        n_shards: args.shards,
        max_host_bytes: args.max_ram,
        reporter,
        ..CalibrationRun::new(model, calibration, &found.compute, found.gram_path)
    };
    Ok(match args.max_vram {
        Some(most) => run.within_device(most)?,
        None => run,
    })
}

/// With the Fisher information of rows, if that is `needed`, and gradients over the usual number of tokens if it was asked
/// for without any.
pub(crate) fn with_row_fisher<'a>(run: &CalibrationRun<'a>, needed: bool) -> CalibrationRun<'a> {
    let row_fisher = run.row_fisher.or(needed.then_some(RowFisher::PerExample));
    let gradient_tokens = run.gradient_tokens.or(row_fisher.map(|_| GRADIENT_TOKENS));
    CalibrationRun { row_fisher, gradient_tokens, ..*run }
}

/// Says, before work begins, what will be done and what memory it takes.
pub(crate) fn announce(model: &Model, calibration: &Calibration, found: &FoundDevice, plan: MemoryPlan) {
    let MemoryPlan { host_bytes, device_bytes, scratch_bytes, stream_bytes, stream_on_disk } = plan;
    let windows = &calibration.windows;
    printer::remark(&format!("model        {}", describe(model.config(), model.params())));
    printer::remark(&format!("device       {}", found.name));
    printer::remark(&format!("tokenizer    {}", model.tokenizer.special_tokens_note()));
    printer::remark(&format!("calibration  {} samples of {} tokens", windows.n, windows.seq_len));
    let stream = if stream_on_disk { "on the disk" } else { "in memory" };
    printer::remark(&format!(
        "memory plan  host {}, device {}, disk {} (residual stream of {} {stream})",
        printer::bytes(host_bytes),
        if found.compute.is_host { "the host's".to_owned() } else { printer::bytes(device_bytes) },
        printer::bytes(scratch_bytes),
        printer::bytes(stream_bytes),
    ));
}

/// Says, before work begins, by which methods widths are decided and lost.
pub(crate) fn announce_plan(plan: &PlanSource) {
    printer::remark(&format!("methods      {}", plan.methods()));
    let allocation = match plan {
        PlanSource::Make(request) => request.allocation.to_string(),
        PlanSource::Given(plan) => plan.allocation.to_string(),
    };
    printer::remark(&format!("allocation   {allocation}; errors in {}", plan.unit()));
}

/// One line on what a model is.
pub(crate) fn describe(config: &ModelConfig, params: u64) -> String {
    format!(
        "{}, {} layers, width {}, {} heads ({} kv), {} parameters",
        family_name(config.family),
        config.layers.len(),
        config.d_model,
        config.n_heads,
        config.n_kv_heads,
        printer::grouped(params),
    )
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::Opt => "OPT",
        Family::Llama => "Llama",
        Family::Gpt2 => "GPT-2",
    }
}

fn summarise(
    result: &CompressionResult,
    args: &CompressArgs,
    run: &CalibrationRun<'_>,
    found: &FoundDevice,
    plan: MemoryPlan,
    begin: Instant,
    stages: Vec<StageTime>,
) -> Summary {
    let CalibrationRun { model, calibration, .. } = run;
    let totals = &result.report.totals;
    let (params_before, params_after) = result.params;
    Summary {
        output: result.folder.display().to_string(),
        mode: result.plan.mode,
        methods: result.plan.methods,
        allocation: result.plan.allocation,
        unit: result.plan.unit,
        tried: result.plan.tried.clone(),
        params_before,
        params_after,
        block_params_before: totals.block_params_before,
        block_params_after: totals.block_params_after,
        sparsity: totals.sparsity,
        sparsity_of_all_params: 1.0 - params_after as f64 / params_before as f64,
        bytes_before: result.bytes.0,
        bytes_after: result.bytes.1,
        dtype: args.dtype.map_or(model.checkpoint.dtype(), inputs::dtype),
        device: found.name.clone(),
        special_tokens: model.tokenizer.special_tokens_note().to_owned(),
        calibration_token_hash: calibration.token_hash.clone(),
        calibration_samples: calibration.windows.n,
        calibration_seq_len: calibration.windows.seq_len,
        seed: args.calibration.seed,
        fallbacks: result.report.fallbacks,
        planned_host_bytes: plan.host_bytes,
        peak_host_bytes: process_memory::peak_host_bytes(),
        secs: begin.elapsed().as_secs_f64(),
        stages,
        layers: result.report.layers.clone(),
    }
}

/// What each stage took, parts of one together: `gradients: loss` is part of `gradients`.
fn stage_list(stages: &[StageTime]) -> String {
    let whole = |stage: &StageTime| stage.name.split(':').next().unwrap_or_default().to_owned();
    let parts = stages.chunk_by(|a, b| whole(a) == whole(b));
    let told =
        parts.map(|parts| format!("{} {:.1}", whole(&parts[0]), parts.iter().map(|part| part.secs).sum::<f64>()));
    told.collect::<Vec<_>>().join(", ")
}

fn print(summary: &Summary, folder: &Path) -> Result<(), Failure> {
    printer::line(&layer_table(&summary.layers))?;
    printer::line("")?;
    printer::line(&size_table(summary))?;
    printer::line("")?;
    printer::line(&format!("written      {}", folder.display()))?;
    printer::line(&format!("time         {:.1} s ({})", summary.secs, stage_list(&summary.stages)))?;
    if let Some(peak) = summary.peak_host_bytes {
        let planned = printer::bytes(summary.planned_host_bytes);
        printer::line(&format!("peak memory  {} (planned {planned})", printer::bytes(peak)))?;
    }
    if summary.fallbacks > 0 {
        printer::line(&format!("fallbacks    extra jitter (rounds: {}); see the report", summary.fallbacks))?;
    }
    Ok(())
}

/// Widths and errors of every layer, or the ranks of its maps.
pub(crate) fn layer_table(layers: &[LayerReport]) -> String {
    if layers.iter().any(|layer| !layer.maps.is_empty()) {
        return map_table(layers);
    }
    let header = ["layer", "removed", "d_ff", "d_qk", "d_v", "MLP error", "QK error", "VO error"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let change = |before: usize, after: usize| format!("{before} → {after}");
    for layer in layers {
        rows.push(vec![
            layer.index.to_string(),
            format!("{:.1} %", 100.0 * layer.sparsity),
            change(layer.before.d_ff, layer.after.d_ff),
            change(layer.before.d_qk, layer.after.d_qk),
            change(layer.before.d_v, layer.after.d_v),
            format!("{:.2e}", layer.mlp.relative_error),
            format!("{:.2e}", layer.query_key.relative_error),
            format!("{:.2e}", layer.value_output.relative_error),
        ]);
    }
    printer::table(&rows)
}

/// Ranks of every layer's maps, and errors of what they put out.
fn map_table(layers: &[LayerReport]) -> String {
    let names: Vec<MapName> =
        layers.first().map_or(Vec::new(), |layer| layer.maps.iter().map(|map| map.name).collect());
    let mut header = vec!["layer".to_owned(), "removed".to_owned()];
    header.extend(names.iter().map(ToString::to_string));
    header.extend(["MLP error", "QK error", "VO error"].map(str::to_owned));
    let mut rows = vec![header];
    for layer in layers {
        let mut row = vec![layer.index.to_string(), format!("{:.1} %", 100.0 * layer.sparsity)];
        row.extend(layer.maps.iter().map(|map| map.rank.map_or("dense".to_owned(), |rank| rank.to_string())));
        let modules = [layer.mlp, layer.query_key, layer.value_output];
        row.extend(modules.map(|module| format!("{:.2e}", module.relative_error)));
        rows.push(row);
    }
    let maps = || layers.iter().flat_map(|layer| &layer.maps);
    let (dense, all) = (maps().filter(|map| map.rank.is_none()).count(), maps().count());
    format!("{}\n\nranks; {dense} of {all} maps stay dense. Errors in the metric of the method", printer::table(&rows))
}

/// Sizes before and after.
pub(crate) fn size_table(summary: &Summary) -> String {
    let row = |name: &str, before: u64, after: u64, show: fn(u64) -> String| {
        let removed = 100.0 * (1.0 - after as f64 / before as f64);
        vec![name.to_owned(), show(before), show(after), format!("{removed:.2} %")]
    };
    let header = ["", "before", "after", "removed"].map(str::to_owned).to_vec();
    printer::table(&[
        header,
        row("block weights", summary.block_params_before, summary.block_params_after, printer::grouped),
        row("all parameters", summary.params_before, summary.params_after, printer::grouped),
        row("bytes", summary.bytes_before, summary.bytes_after, printer::bytes),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_stage_are_told_together() {
        let stages = [("calibrate", 2.0), ("gradients: loss", 0.5), ("gradients: backward", 1.25), ("survey", 0.125)];
        let stages = stages.map(|(name, secs)| StageTime { name: name.to_owned(), secs });
        assert_eq!(stage_list(&stages), "calibrate 2.0, gradients 1.8, survey 0.1");
    }
}
