//! The report as one HTML file.

mod cells;
mod figures;
mod protocol;
mod samples;
mod table;

use crate::chart::{Look, swatch};
use crate::svg::escape;
use crate::{CompareReport, number};

const STYLE: &str = include_str!("page/style.css");

/// A page that shows everything in `report`, light or dark as the reader likes, on paper too. It needs no other file and
/// runs nothing. Equal reports give equal pages.
pub fn page(report: &CompareReport) -> String {
    let name = escape(&report.protocol.model.name);
    let mut body = String::new();
    body += &header(report);
    body += &table::main_table(report);
    body += &methods(report);
    body += &figures::figures(report);
    body += &samples::samples(report);
    body += &protocol::protocol(report);
    body += &cells::every_cell(report);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"generator\" content=\"{}\">\n<title>{name}, compressed</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(&report.protocol.program)
    )
}

fn header(report: &CompareReport) -> String {
    let model = &report.protocol.model;
    format!(
        "<header>\n<h1>{}, compressed</h1>\n<p class=\"lede\">{}</p>\n<p class=\"facts\">{} parameters, {} · {} layers · \
         context of {} tokens · {} · {}</p>\n</header>\n",
        escape(&model.name),
        lede(report),
        number::grouped(model.params),
        number::bytes(model.bytes),
        model.n_layers,
        report.protocol.texts.first().map_or_else(|| "no".to_owned(), |text| number::grouped(text.seq_len as u64)),
        escape(&report.protocol.device),
        escape(&report.protocol.program),
    )
}

/// What was found, in two sentences.
fn lede(report: &CompareReport) -> String {
    let sparsities: Vec<String> = report.sparsities.iter().map(|s| number::percent(*s)).collect();
    let n_seeds = report.n_seeds();
    let mut text = format!(
        "{} of the block weights removed by {}, {} of calibration samples each.",
        join(&sparsities),
        count(report.methods.len(), "method"),
        count(n_seeds, "draw"),
    );
    let found = report.shown_sparsity().and_then(|sparsity| finding(report, sparsity));
    if let Some(found) = found {
        text.push(' ');
        text += &found;
    }
    text
}

/// How the best method does against the dense model and the paper.
fn finding(report: &CompareReport, sparsity: f64) -> Option<String> {
    let dense = report.dense.texts.first()?.perplexity;
    let mean = |method: &str| report.perplexity(method, sparsity, 0).map(|spread| spread.mean);
    let means = report.methods.iter().filter_map(|method| Some((method.name.as_str(), mean(&method.name)?)));
    let (method, perplexity) = means.min_by(|a, b| a.1.total_cmp(&b.1))?;
    let mut text = format!(
        "At {} <b>{}</b> does best: perplexity {} where the dense model has {}",
        number::percent(sparsity),
        escape(method),
        number::plain(perplexity),
        number::plain(dense),
    );
    match report.share_of_paper(method, sparsity, 0).filter(|_| !crate::summary::is_paper(method)) {
        Some(share) => {
            text += &format!(
                ". The logarithm rises by {} of what the better of the paper’s two recipes costs.",
                number::percent(share)
            );
        }
        None => text.push('.'),
    }
    Some(text)
}

fn methods(report: &CompareReport) -> String {
    let mut out = "<section class=\"methods\">\n<h2>Methods</h2>\n<dl>\n".to_owned();
    for method in &report.methods {
        out += &format!(
            "<dt>{}{}</dt><dd>{}</dd>\n",
            swatch(Look::of(report, &method.name)),
            escape(&method.name),
            escape(&method.description)
        );
    }
    out + "</dl>\n</section>\n"
}

/// `1 method`, `3 methods`.
fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `a`, `a and b`, `a, b and c`.
fn join(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests;
