//! Every cell by itself.

use crate::svg::escape;
use crate::{Cell, CompareReport, Measured, number};

/// A table with a row for each cell of the grid and of the ablation, folded away.
pub(super) fn every_cell(report: &CompareReport) -> String {
    let mut heads: Vec<String> = ["method", "asked", "removed", "seed", "parameters"].map(str::to_owned).to_vec();
    for text in &report.protocol.texts {
        heads.push(format!("perplexity, {}", escape(&text.name)));
        heads.extend(["KL", "same first choice"].map(str::to_owned));
    }
    for task in &report.protocol.tasks {
        let name = escape(&task.name);
        heads.extend([
            format!("{name} acc"),
            "its error".to_owned(),
            format!("{name} acc_norm"),
            "its error".to_owned(),
        ]);
    }
    heads.extend(["tokens/s alone", "tokens/s", "predicted", "time", "jitter rounds"].map(str::to_owned));
    let mut out =
        "<details>\n<summary>Every cell</summary>\n<div class=\"scroll\" tabindex=\"0\">\n<table class=\"cells\">\n<thead><tr>"
            .to_owned();
    for head in heads {
        out += &format!("<th scope=\"col\">{head}</th>");
    }
    out += "</tr></thead>\n<tbody>\n";
    for cell in &report.cells {
        out += &row(report, &escape(&cell.method), cell);
    }
    let steps = report.ablation.iter().flat_map(|ablation| ablation.added.iter().chain(&ablation.left_out));
    for step in steps {
        for cell in &step.cells {
            out += &row(report, &escape(&step.label), cell);
        }
    }
    out + "</tbody>\n</table>\n</div>\n</details>\n"
}

fn row(report: &CompareReport, name: &str, cell: &Cell) -> String {
    let measured = &cell.measured;
    let mut fields = vec![number::percent(cell.sparsity), format!("{:.2}\u{202f}%", 100.0 * cell.removed)];
    fields.extend([cell.seed.to_string(), number::grouped(measured.params)]);
    fields.extend(scores(report, measured));
    let speeds = [measured.tokens_per_sec_alone, measured.tokens_per_sec];
    fields.extend(speeds.map(|speed| optional(speed, |speed| number::decimals(speed, 0))));
    let predicted = cell.predicted.as_ref();
    fields.push(predicted.map_or_else(dash, |p| format!("{} {}", number::small(p.error), escape(&p.unit))));
    fields.extend([number::duration(cell.secs), cell.fallbacks.to_string()]);
    format!("<tr><th scope=\"row\">{name}</th><td>{}</td></tr>\n", fields.join("</td><td>"))
}

fn scores(report: &CompareReport, measured: &Measured) -> Vec<String> {
    let mut fields = Vec::new();
    for index in 0..report.protocol.texts.len() {
        let text = measured.texts.get(index);
        fields.push(optional(text.map(|text| text.perplexity), number::plain));
        fields.push(optional(text.and_then(|text| text.kl_divergence), number::small));
        fields.push(optional(text.and_then(|text| text.top1_agreement), number::share));
    }
    for index in 0..report.protocol.tasks.len() {
        let task = measured.tasks.get(index);
        let scores = task.map_or([None; 4], |t| [Some(t.acc), t.acc_stderr, t.acc_norm, t.acc_norm_stderr]);
        fields.extend(scores.map(|score| optional(score, number::share)));
    }
    fields
}

fn optional(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.map_or_else(dash, show)
}

fn dash() -> String {
    "–".to_owned()
}
