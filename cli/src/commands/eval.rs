//! `modegpt eval`

use std::time::Instant;

use modegpt::text_tools::Corpus;
use modegpt::{Evaluation, EvaluationOptions, Model, evaluate};
use serde::Serialize;

use crate::args::EvalArgs;
use crate::device::FoundDevice;
use crate::failure::Failure;
use crate::progress::Bars;
use crate::{device, inputs, printer, process_memory};

/// What `--json` prints; scripts rely on these names.
#[derive(Debug, Serialize)]
struct Summary {
    #[serde(flatten)]
    evaluation: Evaluation,
    special_tokens: String,
    tokens_per_sec: f64,
    secs: f64,
    device: String,
    params: u64,
    bytes: u64,
    peak_host_bytes: Option<u64>,
}

/// Runs the command.
pub(crate) fn run(args: &EvalArgs) -> Result<(), Failure> {
    device::set_threads(args.common.threads);
    let found = device::open(args.common.device)?;
    let model = inputs::open_model(&args.model.model)?;
    let corpora = inputs::read_texts(&args.text, &args.reading)?;
    let seq_len = inputs::seq_len(&model, args.seq_len);
    let options = EvaluationOptions {
        seq_len,
        stride: args.stride.unwrap_or(seq_len),
        max_windows: args.max_windows,
        batch_tokens: args.common.batch_tokens,
    };
    let (evaluation, secs) = timed(&model, &corpora, options, &found)?;
    let summary = Summary {
        tokens_per_sec: (evaluation.n_windows * evaluation.seq_len) as f64 / secs,
        evaluation,
        special_tokens: model.tokenizer.special_tokens_note().to_owned(),
        secs,
        device: found.name.clone(),
        params: model.params(),
        bytes: model.checkpoint.bytes(),
        peak_host_bytes: process_memory::peak_host_bytes(),
    };
    if args.common.json { printer::json(&summary) } else { print(&summary) }
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
    let e = &summary.evaluation;
    printer::line(&format!("perplexity  {:.4}", e.perplexity))?;
    printer::line(&format!(
        "protocol    {} windows of {} tokens, stride {}, {} tokens scored",
        e.n_windows,
        e.seq_len,
        e.stride,
        printer::grouped(e.n_tokens)
    ))?;
    printer::line(&format!("tokenizer   {}", summary.special_tokens))?;
    printer::line(&format!("token hash  {}", e.token_hash))?;
    printer::line(&format!("likeliest   {:.2} % of tokens were the model's first choice", 100.0 * e.top1_accuracy))?;
    printer::line(&format!("speed       {:.0} tokens/s on {}", summary.tokens_per_sec, summary.device))
}
