//! `modegpt generate`

use std::time::Instant;

use modegpt::evaluation::{Sampler, SamplerOptions, Stop};
use modegpt::model_runtime::Compute;
use modegpt::{Model, WriteError};
use serde_json::json;

use crate::args::GenerateArgs;
use crate::failure::Failure;
use crate::{device, inputs, printer};

/// A text that a model wrote.
pub(crate) struct Written {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    stop: Stop,
    /// From the first new token to the last.
    pub(crate) tokens_per_sec: f64,
}

/// Runs the command.
pub(crate) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    device::set_threads(args.common.threads);
    let found = device::open(args.common.device)?;
    let model = inputs::open_model(&args.model.model)?;
    let options =
        SamplerOptions { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    // Refused before anything is printed.
    Sampler::new(options)?;
    let stream = !args.common.json;
    if stream {
        printer::piece(&args.prompt)?;
    }
    let mut show = |piece: &str| if stream { printer::piece(piece) } else { Ok(()) };
    let written = write(&model, &args.prompt, args.max_new_tokens, options, &found.compute, &mut show)?;
    if stream {
        printer::line("")?;
        printer::remark(&format!("{:.1} tokens/s on {}", written.tokens_per_sec, found.name));
        return Ok(());
    }
    printer::json(&json!({
        "prompt": args.prompt,
        "text": written.text,
        "ids": written.ids,
        "stop": match written.stop { Stop::EndOfText => "end of text", Stop::Length => "length", Stop::Caller => "caller" },
        "tokens_per_sec": written.tokens_per_sec,
        "device": found.name,
    }))
}

/// Continues `prompt`; `show` is given each piece of text as it comes.
pub(crate) fn write(
    model: &Model,
    prompt: &str,
    max_new_tokens: usize,
    options: SamplerOptions,
    compute: &Compute,
    show: &mut dyn FnMut(&str) -> Result<(), Failure>,
) -> Result<Written, Failure> {
    let mut failure = None;
    let mut first: Option<Instant> = None;
    let written = pollster::block_on(modegpt::write(model, prompt, max_new_tokens, options, compute, |piece| {
        first.get_or_insert_with(Instant::now);
        failure = show(piece).err();
        failure.is_none()
    }));
    if let Some(failure) = failure {
        return Err(failure);
    }
    let modegpt::Written { text, ids, stop } = written.map_err(|error| match error {
        WriteError::NoPrompt => {
            Failure::Usage("this model needs a --prompt: it has no token to begin a text with".to_owned())
        }
        WriteError::Sampler(error) => error.into(),
        WriteError::Text(error) => error.into(),
        WriteError::Compute(error) => error.into(),
    })?;
    let secs = first.map_or(f64::INFINITY, |first| first.elapsed().as_secs_f64());
    let tokens_per_sec = ids.len().saturating_sub(1) as f64 / secs;
    Ok(Written { text, ids, stop, tokens_per_sec })
}
