//! The cells as a table for other programs.

use std::fmt::Write;

use crate::{CalibrationFacts, Cell, CompareReport, TaskAccuracy};

/// A row for each cell of the grid and of the ablation, and one for the dense model; a header first. Fields as in
/// [RFC 4180](https://www.rfc-editor.org/rfc/rfc4180), numbers in full; what was not measured is empty.
pub fn csv(report: &CompareReport) -> String {
    let mut out = row(&header(report));
    out += &row(&dense_row(report));
    for cell in &report.cells {
        out += &row(&cell_row(report, "grid", "", cell));
    }
    let ablation = report.ablation.iter();
    let parts = ablation.flat_map(|a| [("added", &a.added), ("left out", &a.left_out)]);
    for (part, steps) in parts {
        for step in steps {
            for cell in &step.cells {
                out += &row(&cell_row(report, part, &step.label, cell));
            }
        }
    }
    out
}

fn header(report: &CompareReport) -> Vec<String> {
    let fixed = ["part", "label", "method", "sparsity", "seed", "removed", "params", "bytes"];
    let mut names: Vec<String> = fixed.map(str::to_owned).to_vec();
    names.extend(["tokens_per_sec_alone", "tokens_per_sec", "secs"].map(str::to_owned));
    names.extend(["predicted_error", "predicted_unit", "fallbacks"].map(str::to_owned));
    for text in &report.protocol.texts {
        for what in ["perplexity", "ln_rise", "share_of_paper", "kl_divergence", "top1_agreement"] {
            names.push(format!("{what}: {}", text.name));
        }
    }
    for task in &report.protocol.tasks {
        let scores = ["acc", "acc_stderr", "acc_norm", "acc_norm_stderr"];
        names.extend(scores.map(|what| format!("{what}: {}", task.name)));
    }
    names.push("sample".to_owned());
    let measured = ["model", "weights", "calibration_samples", "calibration_seq_len", "calibration_tokens"];
    names.extend(measured.map(str::to_owned));
    names.extend(["gradient_tokens", "reading", "program", "device"].map(str::to_owned));
    for text in &report.protocol.texts {
        names.extend(["tokens", "seq_len", "windows"].map(|what| format!("{what}: {}", text.name)));
    }
    names.extend(report.protocol.tasks.iter().map(|task| format!("tokens: {}", task.name)));
    names
}

/// How the numbers of a row were measured, in every row, so that rows of several reports can stand in one table.
fn protocol(report: &CompareReport, seed: Option<u64>) -> Vec<String> {
    let protocol = &report.protocol;
    let draw = protocol.calibration.draws.iter().find(|draw| Some(draw.seed) == seed);
    let drawn = draw.map_or_else(String::new, |draw| draw.token_hash.clone());
    let CalibrationFacts { n_samples, seq_len, gradient_tokens, .. } = &protocol.calibration;
    let mut fields = vec![protocol.model.name.clone(), protocol.model.fingerprint.clone()];
    fields.extend([n_samples.to_string(), seq_len.to_string(), drawn]);
    fields.push(gradient_tokens.map_or_else(String::new, |n| n.to_string()));
    fields.extend([protocol.reading.clone().unwrap_or_default(), protocol.program.clone(), protocol.device.clone()]);
    for text in &protocol.texts {
        fields.extend([text.token_hash.clone(), text.seq_len.to_string(), text.n_windows.to_string()]);
    }
    fields.extend(protocol.tasks.iter().map(|task| task.token_hash.clone()));
    fields
}

fn dense_row(report: &CompareReport) -> Vec<String> {
    let dense = &report.dense;
    let mut fields: Vec<String> = ["dense", "", "dense", "0", "", "0"].map(str::to_owned).to_vec();
    fields.extend([dense.params.to_string(), dense.bytes.to_string()]);
    fields.extend([dense.tokens_per_sec_alone, dense.tokens_per_sec].map(number));
    fields.extend(["", "", "", ""].map(str::to_owned));
    for text in &dense.texts {
        fields.extend([text.perplexity.to_string(), "0".to_owned()]);
        fields.extend(["", "", ""].map(str::to_owned));
    }
    for task in &dense.tasks {
        fields.extend(accuracy(task));
    }
    fields.push(dense.sample.clone());
    fields.extend(protocol(report, None));
    fields
}

fn cell_row(report: &CompareReport, part: &str, label: &str, cell: &Cell) -> Vec<String> {
    let measured = &cell.measured;
    let mut fields = vec![part.to_owned(), label.to_owned(), cell.method.clone()];
    fields.extend([cell.sparsity.to_string(), cell.seed.to_string(), cell.removed.to_string()]);
    fields.extend([measured.params.to_string(), measured.bytes.to_string()]);
    fields.extend([measured.tokens_per_sec_alone, measured.tokens_per_sec].map(number));
    fields.push(cell.secs.to_string());
    fields.push(number(cell.predicted.as_ref().map(|predicted| predicted.error)));
    fields.push(cell.predicted.as_ref().map(|predicted| predicted.unit.clone()).unwrap_or_default());
    fields.push(cell.fallbacks.to_string());
    for (index, text) in measured.texts.iter().enumerate() {
        let rise = report.rise_of(cell, index);
        let share = rise.zip(report.paper_rise(cell.sparsity, index)).map(|(rise, paper)| rise / paper);
        fields.push(text.perplexity.to_string());
        fields.extend([rise, share, text.kl_divergence, text.top1_agreement].map(number));
    }
    for task in &measured.tasks {
        fields.extend(accuracy(task));
    }
    fields.push(measured.sample.clone());
    fields.extend(protocol(report, Some(cell.seed)));
    fields
}

fn accuracy(task: &TaskAccuracy) -> [String; 4] {
    [Some(task.acc), task.acc_stderr, task.acc_norm, task.acc_norm_stderr].map(number)
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn row(fields: &[String]) -> String {
    let mut line = String::new();
    for (index, field) in fields.iter().enumerate() {
        if index > 0 {
            line.push(',');
        }
        if field.contains(['"', ',', '\n', '\r']) {
            let _ = write!(line, "\"{}\"", field.replace('"', "\"\""));
        } else {
            line.push_str(field);
        }
    }
    line + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{parse_csv, report};

    #[test]
    fn every_cell_is_a_row_of_as_many_fields() {
        let report = report();
        let rows = parse_csv(&csv(&report));
        let ablation = report.ablation.as_ref().expect("an ablation");
        let steps = ablation.added.iter().chain(&ablation.left_out);
        let n_cells = report.cells.len() + steps.map(|step| step.cells.len()).sum::<usize>();
        assert_eq!(rows.len(), 2 + n_cells);
        assert!(rows.iter().all(|row| row.len() == rows[0].len()));
        let column = |name: &str| rows[0].iter().position(|other| other == name).expect("a column");
        let perplexity = column("perplexity: wiki.test.raw");
        for (row, cell) in rows[2..].iter().zip(&report.cells) {
            assert_eq!((row[0].as_str(), row[2].as_str()), ("grid", cell.method.as_str()));
            assert_eq!(row[perplexity].parse(), Ok(cell.measured.texts[0].perplexity));
            // Every number with its protocol.
            let draw = report.protocol.calibration.draws.iter().find(|draw| draw.seed == cell.seed).expect("drawn");
            assert_eq!(row[column("calibration_tokens")], draw.token_hash);
            assert_eq!(row[column("weights")], report.protocol.model.fingerprint);
            assert_eq!(row[column("tokens: wiki.test.raw")], report.protocol.texts[0].token_hash);
            assert_eq!(row[column("seq_len: wiki.test.raw")], report.protocol.texts[0].seq_len.to_string());
            assert_eq!(row[column("program")], report.protocol.program);
        }
    }

    #[test]
    fn quotes_and_lines_inside_a_field_survive() {
        let mut report = report();
        report.cells[0].measured.sample = "she said \"yes, 1\"\r\nand left".to_owned();
        let rows = parse_csv(&csv(&report));
        let sample = rows[0].iter().position(|name| name == "sample").expect("a column");
        assert_eq!(rows[2][sample], "she said \"yes, 1\"\r\nand left");
    }
}
