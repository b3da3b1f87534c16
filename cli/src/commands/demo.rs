//! `modegpt demo`: a real model that comes with the program, before and after.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use modegpt::checkpoint::{FolderSource, MemorySource};
use modegpt::compress::{Mode, Target};
use modegpt::evaluation::SamplerOptions;
use modegpt::run::{CalibrationRun, CompressionOptions, PlanRequest, PlanSource, compress};
use modegpt::text_tools::{Corpus, Strategy};
use modegpt::{Calibration, CalibrationOptions, EvaluationOptions, Model};
use serde::Serialize;

use crate::args::{DemoArgs, DemoModel};
use crate::commands::compress::{announce, announce_plan, layer_table};
use crate::commands::{eval, generate};
use crate::device::FoundDevice;
use crate::failure::Failure;
use crate::progress::Bars;
use crate::scratch::Scratch;
use crate::{device, printer, process_memory};

/// Text to calibrate on, of the kind that the bundled models were trained on.
pub(crate) const CALIBRATION: &str = include_str!("../../demo/calibration.txt");
const HELD_OUT: &str = include_str!("../../demo/held-out.txt");
const PROMPT: &str = "Once upon a time, there was a little girl named Lily.";
const NEW_TOKENS: usize = 60;

/// The files of a bundled model.
macro_rules! bundle {
    ($folder:literal) => {
        [
            ("config.json", &include_bytes!(concat!("../../demo/", $folder, "/config.json"))[..]),
            ("generation_config.json", &include_bytes!(concat!("../../demo/", $folder, "/generation_config.json"))[..]),
            ("tokenizer.json", &include_bytes!(concat!("../../demo/", $folder, "/tokenizer.json"))[..]),
            ("tokenizer_config.json", &include_bytes!(concat!("../../demo/", $folder, "/tokenizer_config.json"))[..]),
            ("model.safetensors", &include_bytes!(concat!("../../demo/", $folder, "/model.safetensors"))[..]),
        ]
    };
}

/// A model that comes with the program.
pub(crate) fn bundled_model(name: DemoModel) -> Result<Model, Failure> {
    let files = match name {
        DemoModel::Opt => bundle!("opt-tiny-stories"),
        DemoModel::Llama => bundle!("stories260k"),
    };
    let source = MemorySource::from_iter(files.map(|(name, bytes)| (name, bytes.to_vec())));
    Ok(Model::open(Arc::new(source))?)
}

/// One side of the comparison.
#[derive(Debug, Serialize)]
struct Side {
    perplexity: f64,
    params: u64,
    block_params: u64,
    bytes: u64,
    tokens_per_sec: f64,
    decode_tokens_per_sec: f64,
    sample: String,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary {
    before: Side,
    after: Side,
    sparsity: f64,
    device: String,
    compress_secs: f64,
    secs: f64,
    peak_host_bytes: Option<u64>,
    output: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let begin = Instant::now();
    device::set_threads(args.common.threads);
    let found = device::open(args.common.device)?;
    let model = bundled_model(args.model)?;
    let held_out = [Corpus::from_plain("held-out.txt", HELD_OUT)?];

    let scratch = Scratch::new("demo")?;
    let target = args.output.clone().unwrap_or_else(|| scratch.path().join("compressed"));
    let compress_begin = Instant::now();
    let table = shrink(&model, args, &found, &target)?;
    let compress_secs = compress_begin.elapsed().as_secs_f64();

    let small = Model::open(Arc::new(FolderSource::new(&target)))?;
    let before = look(&model, &held_out, args, &found)?;
    let after = look(&small, &held_out, args, &found)?;
    let summary = Summary {
        sparsity: 1.0 - after.block_params as f64 / before.block_params as f64,
        before,
        after,
        device: found.name.clone(),
        compress_secs,
        secs: begin.elapsed().as_secs_f64(),
        peak_host_bytes: process_memory::peak_host_bytes(),
        output: args.output.as_ref().map(|path| path.display().to_string()),
    };
    if args.common.json { printer::json(&summary) } else { print(&summary, &table) }
}

/// Compresses into `target`; gives the table of layers.
fn shrink(model: &Model, args: &DemoArgs, found: &FoundDevice, target: &Path) -> Result<String, Failure> {
    let options = CalibrationOptions {
        n_samples: 128,
        seq_len: model.config().max_positions.min(256),
        seed: 0,
        strategy: Strategy::Random,
    };
    let calibration = Calibration::draw(model, &[Corpus::from_plain("calibration.txt", CALIBRATION)?], options)?;
    let bars = Bars::default();
    let mut request = PlanRequest::new(Target::Sparsity(args.sparsity), Mode::Best);
    request.methods.prefix = request.usual_prefix(model.config(), &calibration);
    let plan = PlanSource::Make(request);
    let run = CalibrationRun {
        collect: request.collect(),
        batch_tokens: args.common.batch_tokens,
        reporter: &bars,
        ..CalibrationRun::new(model, &calibration, &found.compute, found.gram_path)
    };
    announce(model, &calibration, found, run.memory_plan(request.methods.prefix.is_any()));
    announce_plan(&plan);
    let options = CompressionOptions::new(plan);
    let result = pollster::block_on(compress(&run, &options, target))?;
    Ok(layer_table(&result.report.layers))
}

/// Measures one model.
fn look(model: &Model, text: &[Corpus], args: &DemoArgs, found: &FoundDevice) -> Result<Side, Failure> {
    let seq_len = model.config().max_positions.min(256);
    let options =
        EvaluationOptions { seq_len, stride: seq_len, max_windows: None, batch_tokens: args.common.batch_tokens };
    let (evaluation, secs) = eval::timed(model, text, options, found)?;
    let greedy = SamplerOptions::default();
    let written = generate::write(model, PROMPT, NEW_TOKENS, greedy, &found.compute, &mut |_| Ok(()))?;
    Ok(Side {
        perplexity: evaluation.perplexity,
        params: model.params(),
        block_params: model.config().block_params() as u64,
        bytes: model.checkpoint.bytes(),
        tokens_per_sec: (evaluation.n_windows * evaluation.seq_len) as f64 / secs,
        decode_tokens_per_sec: written.tokens_per_sec,
        sample: written.text.trim().replace('\n', " "),
    })
}

fn print(summary: &Summary, table: &str) -> Result<(), Failure> {
    let (before, after) = (&summary.before, &summary.after);
    let row = |name: &str, show: &dyn Fn(&Side) -> String| vec![name.to_owned(), show(before), show(after)];
    let rows = [
        ["", "before", "after"].map(str::to_owned).to_vec(),
        row("perplexity", &|side| format!("{:.3}", side.perplexity)),
        row("block weights", &|side| printer::grouped(side.block_params)),
        row("all parameters", &|side| printer::grouped(side.params)),
        row("bytes", &|side| printer::bytes(side.bytes)),
        row("tokens/s, reading", &|side| format!("{:.0}", side.tokens_per_sec)),
        row("tokens/s, writing", &|side| format!("{:.0}", side.decode_tokens_per_sec)),
    ];
    printer::line(table)?;
    printer::line("")?;
    printer::line(&printer::table(&rows))?;
    printer::line(&format!("\n{PROMPT} …\n\n  before  {}\n\n  after   {}\n", before.sample, after.sample))?;
    let kept = summary.output.as_ref().map_or(String::new(), |path| format!(", written to {path}"));
    printer::line(&format!(
        "compressed by {:.1} % of the block weights in {:.1} s on {}; {:.1} s in all{kept}",
        100.0 * summary.sparsity,
        summary.compress_secs,
        summary.device,
        summary.secs
    ))
}
