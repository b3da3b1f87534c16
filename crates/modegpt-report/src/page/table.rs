//! The main table: methods by sparsity.

use crate::chart::{Look, swatch};
use crate::summary::Spread;
use crate::svg::escape;
use crate::{Cell, CompareReport, Measured, Prediction, number};

/// What stands in a column for a method at a sparsity.
type Show<'a> = dyn Fn(&str, f64) -> String + 'a;

/// A column: its head, and what stands in it for the dense model and for a method at a sparsity.
struct Column<'a> {
    head: String,
    dense: String,
    cell: Box<Show<'a>>,
}

/// Perplexity, divergence, speed and size of every method at every sparsity, as mean ± deviation over seeds.
pub(super) fn main_table(report: &CompareReport) -> String {
    let columns = columns(report);
    let mut out = "<section>\n<figure>\n<div class=\"scroll\" tabindex=\"0\">\n<table class=\"main\">\n".to_owned();
    out += "<thead><tr><th scope=\"col\">method</th>";
    for column in &columns {
        out += &format!("<th scope=\"col\">{}</th>", column.head);
    }
    out += "</tr></thead>\n<tbody><tr class=\"dense\"><th scope=\"row\">dense</th>";
    for column in &columns {
        out += &format!("<td>{}</td>", column.dense);
    }
    out += "</tr></tbody>\n";
    for &sparsity in &report.sparsities {
        out += &group(report, sparsity, &columns);
    }
    out + &format!("</table>\n</div>\n<figcaption>{}</figcaption>\n</figure>\n</section>\n", caption(report))
}

fn group(report: &CompareReport, sparsity: f64, columns: &[Column<'_>]) -> String {
    let head = format!("{} of the block weights removed", number::percent(sparsity));
    let span = columns.len() + 1;
    let mut out = format!("<tbody>\n<tr class=\"group\"><th colspan=\"{span}\" scope=\"rowgroup\">{head}</th></tr>\n");
    let best = best_method(report, sparsity);
    for method in &report.methods {
        let class = if best == Some(method.name.as_str()) { " class=\"best\"" } else { "" };
        let mark = swatch(Look::of(report, &method.name));
        out += &format!("<tr{class}><th scope=\"row\">{mark}{}</th>", escape(&method.name));
        for column in columns {
            out += &format!("<td>{}</td>", (column.cell)(&method.name, sparsity));
        }
        out += "</tr>\n";
    }
    out + "</tbody>\n"
}

/// The method with the least mean perplexity on the first text.
fn best_method(report: &CompareReport, sparsity: f64) -> Option<&str> {
    let rises = report
        .methods
        .iter()
        .filter_map(|method| report.rise(&method.name, sparsity, 0).map(|rise| (method.name.as_str(), rise.mean)));
    rises.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(name, _)| name)
}

fn caption(report: &CompareReport) -> String {
    let seeds = report.n_seeds();
    let spread = match seeds {
        0 | 1 => "one draw of calibration samples".to_owned(),
        n => format!("mean ± standard deviation over {n} draws of calibration samples"),
    };
    let share = if has_paper(report) {
        " “Rise” is the rise of ln perplexity over the dense model, as a share of that of the better of <i>paper</i> and \
         <i>paper-uniform</i> at the same size."
    } else {
        ""
    };
    let speed = if report.protocol.reading.is_some() {
        " Prompts are read one alone, and many at once (protocol)."
    } else {
        ""
    };
    format!(
        "<b>Table 1.</b> Quality, speed and size; {spread}.{share} Least perplexity in bold.{speed} Time is that of \
             decomposition, without calibration."
    )
}

fn has_paper(report: &CompareReport) -> bool {
    report.sparsities.iter().any(|&sparsity| report.paper_rise(sparsity, 0).is_some())
}

fn columns(report: &CompareReport) -> Vec<Column<'_>> {
    let mut columns = Vec::new();
    for (index, text) in report.protocol.texts.iter().enumerate() {
        columns.push(perplexity(report, index, &text.name));
        if has_paper(report) {
            let share = move |method: &str, sparsity: f64| {
                report.share_of_paper(method, sparsity, index).map_or_else(none, |share| number::decimals(share, 2))
            };
            columns.push(Column { head: "rise".to_owned(), dense: none(), cell: Box::new(share) });
        }
    }
    let first = |cell: &Cell| cell.measured.texts.first().cloned();
    columns.extend(optional(report, "KL, nats", &|_| None, move |cell| first(cell)?.kl_divergence, number::small));
    let agreement = move |cell: &Cell| first(cell)?.top1_agreement;
    columns.extend(optional(report, "same first choice", &|_| None, agreement, number::share));
    for (index, task) in report.protocol.tasks.iter().enumerate() {
        let accuracy = move |measured: &Measured| measured.tasks.get(index).map(|task| task.acc);
        let head = format!("{} acc", escape(&task.name));
        columns.extend(optional(report, &head, &accuracy, move |cell| accuracy(&cell.measured), number::share));
    }
    let alone = |measured: &Measured| measured.tokens_per_sec_alone;
    let many = |measured: &Measured| measured.tokens_per_sec;
    let rate = |speed| number::decimals(speed, 0);
    columns.extend(optional(report, "tokens/s alone", &alone, move |cell| alone(&cell.measured), rate));
    columns.extend(optional(report, "tokens/s", &many, move |cell| many(&cell.measured), rate));
    let bytes = |measured: &Measured| Some(measured.bytes as f64);
    columns.extend(optional(report, "size", &bytes, move |c| bytes(&c.measured), |b| number::bytes(b as u64)));
    let nats = |cell: &Cell| cell.predicted.as_ref().filter(|p| p.unit == Prediction::NATS).map(|p| p.error);
    columns.extend(optional(report, "predicted, nats", &|_| None, nats, number::small));
    columns.extend(optional(report, "time", &|_| None, |cell| Some(cell.secs), number::duration));
    columns
}

/// Perplexity with its spread.
fn perplexity<'a>(report: &'a CompareReport, text: usize, name: &str) -> Column<'a> {
    let cell =
        move |method: &str, sparsity: f64| report.perplexity(method, sparsity, text).map_or_else(none, with_spread);
    let dense = report.dense.texts.get(text).map_or_else(none, |score| number::plain(score.perplexity));
    Column { head: format!("perplexity, {}", escape(name)), dense, cell: Box::new(cell) }
}

/// A column of means, unless no model has the value.
fn optional<'a>(
    report: &'a CompareReport,
    head: &str,
    dense: &dyn Fn(&Measured) -> Option<f64>,
    value: impl Fn(&Cell) -> Option<f64> + 'a,
    show: impl Fn(f64) -> String + 'a,
) -> Option<Column<'a>> {
    if !report.cells.iter().any(|cell| value(cell).is_some()) {
        return None;
    }
    let dense = dense(&report.dense).map_or_else(none, &show);
    let cell = move |method: &str, sparsity: f64| {
        report.spread(method, sparsity, &value).map_or_else(none, |spread| show(spread.mean))
    };
    Some(Column { head: head.to_owned(), dense, cell: Box::new(cell) })
}

fn with_spread(spread: Spread) -> String {
    match number::spread(spread) {
        (mean, Some(deviation)) => format!("<b>{mean}</b><span class=\"pm\"> ± {deviation}</span>"),
        (mean, None) => format!("<b>{mean}</b>"),
    }
}

fn none() -> String {
    "<span class=\"none\">–</span>".to_owned()
}
