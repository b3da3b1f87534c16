//! `modegpt compare`

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use modegpt::report::{CompareReport, Spread};
use modegpt::run::{CompareRun, NamedMethod, NamedText, SeededDraw, compare};
use modegpt::text_tools::Corpus;
use modegpt::{Calibration, EvaluationOptions, Model};

use crate::args::{CompareArgs, QuestionArgs, SampleArgs};
use crate::commands::compress::announce;
use crate::commands::{speed, tasks};
use crate::failure::Failure;
use crate::progress::Bars;
use crate::{device, inputs, printer};

/// Runs the command.
pub(crate) fn run(args: &CompareArgs) -> Result<(), Failure> {
    let parse = |name: &String| NamedMethod::parse(name).map_err(|error| Failure::Usage(error.to_string()));
    let methods: Vec<NamedMethod> = args.methods.iter().map(parse).collect::<Result<_, _>>()?;
    device::set_threads(args.common.threads);
    let found = device::open(args.common.device)?;
    let model = inputs::open_model(&args.model.model)?;
    // Everything is read before anything is computed.
    let texts = texts(args)?;
    let tasks = tasks::read(&model, &questions(args))?;
    let corpora = inputs::read_texts(&args.samples.calibration, &args.samples.reading)?;
    let draws = draws(&model, &corpora, &args.samples, &args.seeds)?;
    let seq_len = inputs::seq_len(&model, args.text_seq_len);
    let (begin, bars, command) = (Instant::now(), Bars::default(), command_line());
    let name = model_name(&args.model.model);
    let reading = how_reading_is_measured();
    let speed = |model: &Model| {
        speed::read_prompts(model, &found).map(|readings| readings.map(|reading| reading.tokens_per_sec))
    };
    let sparsities: Vec<f64> = args.sparsity.iter().flat_map(|shares| shares.0.iter().copied()).collect();
    let run = CompareRun {
        model: &model,
        model_name: &name,
        methods: &methods,
        sparsities: &sparsities,
        draws: &draws,
        calibration_texts: args.samples.calibration.iter().map(|path| file_name(path)).collect(),
        texts: &texts,
        evaluation: EvaluationOptions {
            seq_len,
            stride: seq_len,
            max_windows: args.max_windows,
            batch_tokens: args.common.batch_tokens,
        },
        tasks: &tasks,
        against_dense: args.against_dense,
        ablate: args.ablate,
        prompt: &args.prompt,
        sample_tokens: args.new_tokens,
        compute: &found.compute,
        device: &found.name,
        gram_path: found.gram_path,
        batch_tokens: args.common.batch_tokens,
        gradient_tokens: args.samples.fisher_tokens,
        max_host_bytes: args.samples.max_ram,
        command: &command,
        keep: args.keep,
        existing: inputs::existing(args.force, args.resume),
        clock: &|| begin.elapsed().as_secs_f64(),
        reading: Some((&speed, &reading)),
        reporter: &bars,
    };
    let memory = run.memory_plan()?;
    if let Some(draw) = draws.first() {
        announce(&model, &draw.calibration, &found, memory);
    }
    let report = pollster::block_on(compare(&run, &args.output))?;
    if args.common.json { printer::json(&report) } else { print(&report, &args.output) }
}

fn how_reading_is_measured() -> String {
    let [alone, many] = speed::BATCHES;
    format!("{alone} and {many} prompts of up to {} tokens at once, median of several runs", speed::PROMPT_TOKENS)
}

/// Each path is a text of its own.
fn texts(args: &CompareArgs) -> Result<Vec<NamedText>, Failure> {
    let read = |path: &std::path::PathBuf| {
        let corpora = inputs::read_texts(std::slice::from_ref(path), &args.samples.reading)?;
        Ok(NamedText { name: file_name(path), corpora })
    };
    args.text.iter().map(read).collect()
}

fn questions(args: &CompareArgs) -> QuestionArgs {
    let (tasks, tasks_dir, limit) = (args.tasks.clone(), args.tasks_dir.clone(), args.limit);
    QuestionArgs { tasks, tasks_dir, limit, resume: None }
}

/// Samples for each seed.
fn draws(model: &Model, corpora: &[Corpus], args: &SampleArgs, seeds: &[u64]) -> Result<Vec<SeededDraw>, Failure> {
    let draw = |&seed| {
        let options = inputs::draw_options(model, &args.draw, seed);
        let (calibration, held_out) = Calibration::draw_and_hold_out(model, corpora, options, args.held_out)?;
        Ok(SeededDraw { seed, calibration, held_out })
    };
    seeds.iter().map(draw).collect()
}

/// The last part of a path or of a hub id.
fn model_name(given: &str) -> String {
    let full = std::fs::canonicalize(given).ok();
    let name = full.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| given.to_owned())
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The words of this run, as they would be typed.
fn command_line() -> String {
    let word = |word: OsString| {
        let word = word.to_string_lossy().into_owned();
        let plain = |c: char| c.is_alphanumeric() || "-_./,=:+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    let words: Vec<String> = std::env::args_os().skip(1).map(word).collect();
    format!("modegpt {}", words.join(" "))
}

fn print(report: &CompareReport, folder: &Path) -> Result<(), Failure> {
    printer::line(&table(report))?;
    printer::line(&format!("\nwritten      {}", folder.join("report.html").display()))
}

/// Perplexity on the first text, and its rise as a share of the better paper recipe's.
pub(crate) fn table(report: &CompareReport) -> String {
    let mut header = vec!["method".to_owned()];
    for sparsity in &report.sparsities {
        header.extend([format!("{:.4} %", 100.0 * sparsity).replace(".0000", ""), "rise".to_owned()]);
    }
    let mut rows = vec![header];
    let dense = report.dense.texts.first().map_or(f64::NAN, |text| text.perplexity);
    rows.push(vec!["dense".to_owned(), format!("{dense:.3}")]);
    for method in &report.methods {
        let mut row = vec![method.name.clone()];
        for &sparsity in &report.sparsities {
            let perplexity = report.perplexity(&method.name, sparsity, 0).map_or("-".to_owned(), show);
            let share = report.share_of_paper(&method.name, sparsity, 0);
            row.extend([perplexity, share.map_or("-".to_owned(), |share| format!("{share:.2}"))]);
        }
        rows.push(row);
    }
    printer::table(&rows)
}

fn show(spread: Spread) -> String {
    match spread.deviation {
        Some(deviation) => format!("{:.3} ± {deviation:.3}", spread.mean),
        None => format!("{:.3}", spread.mean),
    }
}
