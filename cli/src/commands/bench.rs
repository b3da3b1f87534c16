//! `modegpt bench`: how fast each part runs, beside what a plain matrix product of the same sizes reaches.

pub(crate) mod measure;
mod parts;

use modegpt::Reporter;
use serde::Serialize;

use crate::args::{BenchArgs, DemoModel};
use crate::commands::compress::describe;
use crate::commands::demo;
use crate::failure::Failure;
use crate::progress::Bars;
use crate::{device, inputs, printer};
use measure::Timing;
use parts::Workload;

/// So much of the demo's text is enough for any sensible number of tokens; more is repeated.
const TEXT_BYTES: usize = 64 << 10;

/// What `--json` prints; scripts rely on these names.
#[derive(Debug, Serialize)]
struct Summary {
    model: String,
    device: String,
    seq_len: usize,
    batch_tokens: usize,
    parts: Vec<Part>,
    /// Bytes per second that the device reads from memory.
    bandwidth: f64,
}

/// What was measured of one part.
#[derive(Debug, Serialize)]
struct Part {
    name: &'static str,
    #[serde(flatten)]
    timing: Timing,
    /// Through all layers, for the parts that have tokens.
    tokens_per_sec: Option<f64>,
    gflops: Option<f64>,
    /// What a plain product of f32 matrices of the same sizes reaches.
    reference_gflops: Option<f64>,
    /// Share of the reference; for writing, of the memory's bandwidth.
    share: Option<f64>,
}

impl Part {
    fn new(name: &'static str, timing: Timing) -> Self {
        Self { name, timing, tokens_per_sec: None, gflops: None, reference_gflops: None, share: None }
    }

    fn at(self, tokens_per_sec: f64) -> Self {
        Self { tokens_per_sec: Some(tokens_per_sec), ..self }
    }

    /// `reference` is in operations per second.
    fn with_flops(self, flops: f64, reference: f64) -> Self {
        let rate = flops / self.timing.median_secs;
        Self { gflops: Some(rate / 1e9), reference_gflops: Some(reference / 1e9), ..self }.with_share(rate / reference)
    }

    fn with_share(self, share: f64) -> Self {
        Self { share: Some(share), ..self }
    }
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    device::set_threads(args.common.threads);
    let found = device::open(args.common.device)?;
    let model = match &args.model {
        Some(name) => inputs::open_model(name)?,
        None => demo::bundled_model(DemoModel::Opt)?,
    };
    let seq_len = args.seq_len.min(model.config().max_positions);
    let bars = Bars::default();
    if seq_len < args.seq_len {
        bars.note(&format!("samples have {seq_len} tokens, the model's context"));
    }
    let end = demo::CALIBRATION.floor_char_boundary(TEXT_BYTES);
    let text = &demo::CALIBRATION[..end];
    bars.begin("bench", 6);
    let work = Workload::new(&model, &found, text, seq_len, args.common.batch_tokens)?;
    let measured = measure_all(&work, &bars);
    bars.end();
    let (parts, bandwidth) = measured?;
    let summary = Summary {
        model: describe(model.config(), model.params()),
        device: found.name.clone(),
        seq_len,
        batch_tokens: work.n_samples / 2 * seq_len,
        parts,
        bandwidth,
    };
    if args.common.json { printer::json(&summary) } else { print(&summary) }
}

/// All parts, and the bandwidth of the device's memory.
fn measure_all(work: &Workload<'_>, reporter: &dyn Reporter) -> Result<(Vec<Part>, f64), Failure> {
    let reference = parts::layer_reference(work)?;
    let mut parts = vec![parts::forward(work, reference)?];
    reporter.advance(1);
    let (observed, statistics) = parts::observed(work, reference)?;
    parts.push(observed);
    reporter.advance(2);
    parts.push(parts::gram(work)?);
    reporter.advance(3);
    parts.extend(parts::decompositions(work, &statistics)?);
    reporter.advance(4);
    drop(statistics);
    parts.push(parts::head(work)?);
    reporter.advance(5);
    let (decode, bandwidth) = parts::decode(work)?;
    parts.push(decode);
    reporter.advance(6);
    Ok((parts, bandwidth))
}

fn print(summary: &Summary) -> Result<(), Failure> {
    printer::line(&format!("model   {}", summary.model))?;
    printer::line(&format!("device  {}", summary.device))?;
    printer::line(&format!("tokens  {} to a sample, {} at once\n", summary.seq_len, summary.batch_tokens))?;
    let header = ["", "median", "least … most", "tokens/s", "GFLOP/s", "plain", "share"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(summary.parts.iter().map(row));
    printer::line(&printer::table(&rows))?;
    printer::line(&format!(
        "\nplain  GFLOP/s of an f32 matrix product of the same sizes in the same run; a Gram matrix is counted in full,\n       \
         though only a triangle of it is computed. Writing is compared with reading every weight once for each\n       \
         token, at the {:.1} GB/s measured. Decompositions are of one layer, on the processor, in f64.",
        summary.bandwidth / 1e9
    ))?;
    let unsteady: Vec<&str> = summary.parts.iter().filter(|p| p.timing.is_unsteady()).map(|p| p.name).collect();
    if !unsteady.is_empty() {
        printer::remark(&format!("note: unsteady ({}): is something else running?", unsteady.join("; ")));
    }
    Ok(())
}

fn row(part: &Part) -> Vec<String> {
    let or_empty = |value: Option<f64>, show: &dyn Fn(f64) -> String| value.map(show).unwrap_or_default();
    let timing = &part.timing;
    vec![
        part.name.to_owned(),
        secs(timing.median_secs),
        format!("{} … {}", secs(timing.min_secs), secs(timing.max_secs)),
        or_empty(part.tokens_per_sec, &|rate| printer::grouped(rate as u64)),
        or_empty(part.gflops, &|rate| format!("{rate:.1}")),
        or_empty(part.reference_gflops, &|rate| format!("{rate:.1}")),
        or_empty(part.share, &|share| format!("{:.0} %", 100.0 * share)),
    ]
}

/// Seconds in the unit that suits them.
fn secs(secs: f64) -> String {
    if secs >= 1.0 {
        format!("{secs:.2} s")
    } else if secs >= 1e-3 {
        format!("{:.1} ms", 1e3 * secs)
    } else {
        format!("{:.0} µs", 1e6 * secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!([secs(12.5), secs(0.0123), secs(0.000_045)], ["12.50 s", "12.3 ms", "45 µs"]);
    }

    #[test]
    fn a_share_is_of_the_reference() {
        let part = Part::new("x", Timing::of(vec![2.0])).at(5.0).with_flops(8e9, 16e9);
        assert_eq!((part.gflops, part.reference_gflops, part.share), (Some(4.0), Some(16.0), Some(0.25)));
        assert_eq!(row(&part), ["x", "2.00 s", "2.00 s … 2.00 s", "5", "4.0", "16.0", "25 %"]);
    }
}
