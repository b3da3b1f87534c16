//! `modegpt generate`

use std::time::Instant;

use modegpt::Model;
use modegpt::evaluation::{Sampler, SamplerOptions, Stop, generate};
use modegpt::model_runtime::{Compute, Decoder};
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
    // Found out before anything is printed: options that cannot be.
    Sampler::new(options)?;
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
    let mut ids = model.tokenizer.prefix_ids().to_vec();
    ids.extend(model.tokenizer.encode(prompt)?);
    if ids.is_empty() {
        ids.extend(model.config().special_tokens.bos);
    }
    if ids.is_empty() {
        return Err(Failure::Usage("this model needs a --prompt: it has no token to begin a text with".to_owned()));
    }
    let room = model.config().max_positions.saturating_sub(ids.len());
    let max_new_tokens = max_new_tokens.min(room);
    let mut decoder = Decoder::new(&model.checkpoint, ids.len() + max_new_tokens, compute)?;
    let mut sampler = Sampler::new(options)?;
    let mut stream = model.tokenizer.decode_stream();
    let mut written = Written { text: String::new(), ids: Vec::new(), stop: Stop::Length, tokens_per_sec: 0.0 };
    let mut failure = None;
    let mut first: Option<Instant> = None;
    let stops = model.stop_tokens();
    written.stop = pollster::block_on(generate(&mut decoder, &ids, max_new_tokens, &stops, &mut sampler, |id| {
        first.get_or_insert_with(Instant::now);
        written.ids.push(id);
        let shown = stream.push(id).map_err(Failure::from).and_then(|piece| {
            written.text.push_str(&piece);
            show(&piece)
        });
        failure = shown.err();
        failure.is_none()
    }))?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let rest = stream.finish()?;
    written.text.push_str(&rest);
    show(&rest)?;
    if let Some(first) = first {
        written.tokens_per_sec = (written.ids.len().saturating_sub(1)) as f64 / first.elapsed().as_secs_f64();
    }
    Ok(written)
}
