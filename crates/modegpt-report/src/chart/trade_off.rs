//! Quality against what it costs to keep and to run a model.

use super::Look;
use super::lines::{Lines, Point, Reference, Series};
use crate::summary::{Spread, is_paper};
use crate::{Cell, CompareReport, number};

const MIB: f64 = 1_048_576.0;

/// Perplexity on a text against the bytes of the weights: a line for each method, the dense model dashed.
pub(crate) fn against_bytes(report: &CompareReport, text: usize) -> Option<String> {
    // In the unit in which the dense model is a readable number.
    let (unit, name) = if report.dense.bytes as f64 >= 10.0 * MIB { (MIB, "MiB") } else { (1024.0, "KiB") };
    let bytes = |cell: &Cell| Some(cell.measured.bytes as f64 / unit);
    let title = format!("weights, {name} (smaller to the right)");
    chart(report, text, &title, true, Some(report.dense.bytes as f64 / unit), bytes)
}

/// Perplexity on a text against the speed of reading.
pub(crate) fn against_speed(report: &CompareReport, text: usize) -> Option<String> {
    let speed = |cell: &Cell| cell.measured.tokens_per_sec;
    chart(report, text, "reading, tokens per second", false, report.dense.tokens_per_sec, speed)
}

fn chart(
    report: &CompareReport,
    text: usize,
    x_title: &str,
    x_backwards: bool,
    dense_x: Option<f64>,
    x: impl Fn(&Cell) -> Option<f64> + Copy,
) -> Option<String> {
    let dense = report.dense.texts.get(text)?;
    let name = &report.protocol.texts.get(text)?.name;
    let series: Vec<Series> = report
        .methods
        .iter()
        .map(|method| {
            let points = report.sparsities.iter().filter_map(|&s| point(report, &method.name, s, text, x)).collect();
            Series { name: Some(method.name.clone()), look: Look::of(report, &method.name), points }
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.is_empty() {
        return None;
    }
    let lines = Lines {
        alt: format!("Perplexity on {name} against {x_title}, a line for each method"),
        x_title: x_title.to_owned(),
        y_title: "perplexity (log)".to_owned(),
        x_backwards,
        markers: true,
        series,
        reference: Some(Reference {
            label: format!("dense {}", number::plain(dense.perplexity)),
            y: dense.perplexity,
            x: dense_x,
        }),
        ceiling: ceiling(report, text),
    };
    lines.draw()
}

fn point(
    report: &CompareReport,
    method: &str,
    sparsity: f64,
    text: usize,
    x: impl Fn(&Cell) -> Option<f64>,
) -> Option<Point> {
    let Spread { mean, deviation, .. } = report.perplexity(method, sparsity, text)?;
    Some(Point { x: report.spread(method, sparsity, x)?.mean, y: mean, spread: deviation })
}

/// Where the axis of perplexity ends: well above the paper's recipes, so that methods that destroy a model do not flatten
/// the lines of those that do not. `None` if there is no such recipe, or nothing beyond.
pub(crate) fn ceiling(report: &CompareReport, text: usize) -> Option<f64> {
    let rises = |of: &dyn Fn(&str) -> bool| {
        let methods = report.methods.iter().filter(|method| of(&method.name));
        let all = methods.flat_map(|m| report.sparsities.iter().filter_map(|&s| report.rise(&m.name, s, text)));
        all.map(|rise| rise.mean).fold(0.0, f64::max)
    };
    let most = 1.6 * rises(&is_paper);
    let dense = report.dense.texts.get(text)?.perplexity;
    (most > 0.0 && rises(&|_| true) > most).then(|| dense * most.exp())
}
