//! How everything was measured.

use crate::svg::escape;
use crate::{CompareReport, number};

/// Everything that is needed to measure the same again.
pub(super) fn protocol(report: &CompareReport) -> String {
    let protocol = &report.protocol;
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, text: String| rows.push((escape(name), text));
    let model = &protocol.model;
    row(
        "model",
        format!(
            "{}, {} parameters, of which {} in the linear weights of {} decoder blocks; weights {}",
            escape(&model.name),
            number::grouped(model.params),
            number::grouped(model.block_params),
            model.n_layers,
            hash(&model.fingerprint),
        ),
    );
    row("calibration", calibration(report));
    for draw in &protocol.calibration.draws {
        let backward =
            draw.backward_secs.map_or_else(String::new, |secs| format!(", backward {}", number::duration(secs)));
        let forward = number::duration(draw.forward_secs);
        row(&format!("seed {}", draw.seed), format!("tokens {}; forward {forward}{backward}", hash(&draw.token_hash)));
    }
    for text in &protocol.texts {
        row(
            "text",
            format!(
                "{}: {} windows of {} tokens, {} apart, {} tokens scored; tokens {}",
                escape(&text.name),
                number::grouped(text.n_windows as u64),
                number::grouped(text.seq_len as u64),
                number::grouped(text.stride as u64),
                number::grouped(text.n_tokens),
                hash(&text.token_hash),
            ),
        );
    }
    for task in &protocol.tasks {
        let (file, tokens) = (hash(&task.file_hash), hash(&task.token_hash));
        row("task", format!("{}: {} questions; file {file}, tokens {tokens}", escape(&task.name), task.n));
    }
    if let Some(reading) = &protocol.reading {
        row("tokens/s", escape(reading));
    }
    row("device", escape(&protocol.device));
    row("program", escape(&protocol.program));
    let mut out = "<section class=\"protocol\">\n<h2>Protocol</h2>\n<dl>\n".to_owned();
    for (name, text) in rows {
        out += &format!("<dt>{name}</dt><dd>{text}</dd>\n");
    }
    out + &format!("</dl>\n<pre><code>{}</code></pre>\n</section>\n", escape(&protocol.command))
}

fn calibration(report: &CompareReport) -> String {
    let facts = &report.protocol.calibration;
    let gradients = facts.gradient_tokens.map_or_else(String::new, |n| {
        format!("; gradients over about {} of the tokens, labels sampled from the model", number::grouped(n as u64))
    });
    format!(
        "{} samples of {} tokens from {}{gradients}",
        number::grouped(facts.n_samples as u64),
        number::grouped(facts.seq_len as u64),
        escape(&facts.texts.join(", ")),
    )
}

/// A hash of which the beginning is shown.
fn hash(hash: &str) -> String {
    format!("<code title=\"{}\">{}</code>", escape(hash), escape(&number::short_hash(hash)))
}
