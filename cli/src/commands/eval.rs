//! `modegpt eval`

use std::time::Instant;

use modegpt::text_tools::Corpus;
use modegpt::{Comparison, Evaluation, EvaluationOptions, Model, TaskScore, evaluate, evaluate_against};
use serde::Serialize;

use crate::args::EvalArgs;
use crate::commands::speed::{self, Reading};
use crate::commands::tasks;
use crate::device::FoundDevice;
use crate::failure::Failure;
use crate::progress::Bars;
use crate::{device, inputs, printer, process_memory};

/// What `--json` prints; scripts rely on these names.
#[derive(Debug, Serialize)]
struct Summary {
    #[serde(flatten)]
    evaluation: Option<Evaluation>,
    #[serde(flatten)]
    comparison: Option<Comparison>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tasks: Vec<TaskScore>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reading: Vec<Reading>,
    special_tokens: String,
    /// Tokens that the model read, by the time that took; `None` if nothing, or another model beside it, was computed.
    tokens_per_sec: Option<f64>,
    secs: f64,
    program: &'static str,
    device: String,
    fingerprint: String,
    params: u64,
    bytes: u64,
    peak_host_bytes: Option<u64>,
}

/// Runs the command.
pub(crate) fn run(args: &EvalArgs) -> Result<(), Failure> {
    device::set_threads(args.common.threads);
    let found = device::open(args.common.device)?;
    let model = inputs::open_model(&args.model.model)?;
    let dense = args.against.as_deref().map(inputs::open_model).transpose()?;
    // Everything is read before anything is computed.
    let corpora = inputs::read_texts(&args.text, &args.reading)?;
    let questions = tasks::read(&model, &args.questions)?;
    let begin = Instant::now();
    let (evaluation, comparison) = match (&dense, corpora.as_slice()) {
        (_, []) => (None, None),
        (None, _) => (Some(timed(&model, &corpora, options(args, &model), &found)?.0), None),
        (Some(dense), _) => {
            let (evaluation, comparison) = against(&model, dense, &corpora, options(args, &model), &found)?;
            (Some(evaluation), Some(comparison))
        }
    };
    let answered = tasks::answer(&model, &questions, &args.questions, args.common.batch_tokens, &found)?;
    let secs = begin.elapsed().as_secs_f64();
    let reading = if args.speed { speed::read_prompts(&model, &found)?.into() } else { Vec::new() };
    let n_tokens = evaluation.as_ref().map_or(0, |e| e.n_windows * e.seq_len) + answered.n_tokens;
    let summary = Summary {
        tokens_per_sec: (comparison.is_none() && n_tokens > 0).then(|| n_tokens as f64 / secs),
        evaluation,
        comparison,
        tasks: answered.scores,
        reading,
        special_tokens: model.tokenizer.special_tokens_note().to_owned(),
        secs,
        program: modegpt::PROGRAM,
        device: found.name.clone(),
        fingerprint: model.fingerprint().to_owned(),
        params: model.params(),
        bytes: model.checkpoint.bytes(),
        peak_host_bytes: process_memory::peak_host_bytes(),
    };
    if args.common.json { printer::json(&summary) } else { print(&summary) }
}

fn options(args: &EvalArgs, model: &Model) -> EvaluationOptions {
    let seq_len = inputs::seq_len(model, args.seq_len);
    EvaluationOptions {
        seq_len,
        stride: args.stride.unwrap_or(seq_len),
        max_windows: args.max_windows,
        batch_tokens: args.common.batch_tokens,
    }
}

fn against(
    model: &Model,
    dense: &Model,
    corpora: &[Corpus],
    options: EvaluationOptions,
    found: &FoundDevice,
) -> Result<(Evaluation, Comparison), Failure> {
    let bars = Bars::default();
    Ok(pollster::block_on(evaluate_against(model, dense, corpora, options, &found.compute, &bars))?)
}

/// Evaluates with a progress bar and a clock.
pub(crate) fn timed(
    model: &Model,
    corpora: &[Corpus],
    options: EvaluationOptions,
    found: &FoundDevice,
) -> Result<(Evaluation, f64), Failure> {
    let begin = Instant::now();
    let evaluation = pollster::block_on(evaluate(model, corpora, options, &found.compute, &Bars::default()))?;
    Ok((evaluation, begin.elapsed().as_secs_f64()))
}

fn print(summary: &Summary) -> Result<(), Failure> {
    if let Some(evaluation) = &summary.evaluation {
        print_perplexity(evaluation, summary.comparison.as_ref())?;
    }
    if !summary.tasks.is_empty() {
        tasks::print(&summary.tasks)?;
    }
    speed::print(&summary.reading)?;
    printer::line(&format!("tokenizer   {}", summary.special_tokens))?;
    let speed = match summary.tokens_per_sec {
        Some(speed) => format!("{speed:.0} tokens/s"),
        None => format!("{:.1} s", summary.secs),
    };
    printer::line(&format!("speed       {speed} on {}", summary.device))
}

fn print_perplexity(e: &Evaluation, comparison: Option<&Comparison>) -> Result<(), Failure> {
    printer::line(&format!("perplexity  {:.4}", e.perplexity))?;
    if let Some(comparison) = comparison {
        let Comparison { kl_divergence, top1_agreement, dense_perplexity, .. } = comparison;
        printer::line(&format!("dense       {dense_perplexity:.4}, {:.3} times", e.perplexity / dense_perplexity))?;
        printer::line(&format!("divergence  {kl_divergence:.5} nats a token from the dense model (KL)"))?;
        printer::line(&format!("agreement   {:.2} % of first choices are the dense model's", 100.0 * top1_agreement))?;
    }
    printer::line(&format!(
        "protocol    {} windows of {} tokens, stride {}, {} tokens scored",
        e.n_windows,
        e.seq_len,
        e.stride,
        printer::grouped(e.n_tokens)
    ))?;
    printer::line(&format!("token hash  {}", e.token_hash))?;
    printer::line(&format!("likeliest   {:.2} % of tokens were the model's first choice", 100.0 * e.top1_accuracy))
}
