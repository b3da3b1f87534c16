//! `modegpt doctor`: what there is to compute with, and whether it computes correctly.

mod host;
mod self_test;

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::args::{DeviceName, DoctorArgs};
use crate::failure::Failure;
use crate::{device, panics, printer};
use host::Host;
use self_test::{Check, Precision, Speed};

/// What is looked for without `--device`.
const DEVICES: [DeviceName; 4] = [DeviceName::Cpu, DeviceName::Vulkan, DeviceName::Gl, DeviceName::Cuda];

/// A driver that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_mins(2);

/// What `--json` prints; scripts rely on these names.
#[derive(Debug, Serialize)]
struct Summary {
    version: &'static str,
    features: Vec<&'static str>,
    host: Host,
    devices: Vec<DeviceReport>,
    /// The device that was asked for, or that `auto` takes.
    chosen: Option<String>,
    /// Whether that one computes f32 correctly.
    ok: bool,
}

/// What was found of one device.
#[derive(Debug, Serialize, Deserialize)]
struct DeviceReport {
    /// As `--device` takes it.
    device: String,
    /// What it is, if it is there.
    name: Option<String>,
    /// Why it is not there, or what ended its test.
    problem: Option<String>,
    /// The most bytes of one tensor.
    binding_limit: Option<u64>,
    /// What f32 products are computed in.
    precision: Option<Precision>,
    checks: Vec<Check>,
    speed: Option<Speed>,
}

/// Runs the command.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    device::set_threads(None);
    let (devices, chosen) = if let Some(name) = args.device {
        let report = examine(name);
        let chosen = report.name.clone();
        (vec![report], chosen)
    } else {
        let auto = panics::caught(|| device::open(DeviceName::Auto)).ok().and_then(Result::ok);
        (DEVICES.into_iter().map(examine_apart).collect(), auto.map(|found| found.name))
    };
    let verdict = judge(&devices, chosen.as_deref());
    let summary = Summary {
        version: env!("CARGO_PKG_VERSION"),
        features: features(),
        host: Host::look(),
        devices,
        chosen,
        ok: verdict.is_ok(),
    };
    let printed = if args.json { printer::json(&summary) } else { print(&summary, args.device) };
    printed.and(verdict)
}

/// Whether the chosen device is there and passed.
fn judge(devices: &[DeviceReport], chosen: Option<&str>) -> Result<(), Failure> {
    let missing = || {
        let problems: Vec<&str> = devices.iter().filter_map(|report| report.problem.as_deref()).collect();
        Failure::request(format!("no device can be used: {}", problems.join("; ")))
    };
    let name = chosen.ok_or_else(missing)?;
    let report = devices.iter().find(|report| report.name.as_deref() == Some(name)).ok_or_else(missing)?;
    match &report.problem {
        Some(problem) => Err(Failure::request(format!("`{name}`: {problem}"))),
        None => self_test::require(report.precision, &report.checks, name),
    }
}

/// Opens a device and tests it.
fn examine(name: DeviceName) -> DeviceReport {
    let device = word(name);
    let found = match panics::caught(|| device::open(name)) {
        Ok(Ok(found)) => found,
        Ok(Err(absent)) => return DeviceReport::without(device, absent.to_string()),
        Err(message) => return DeviceReport::without(device, format!("the driver panicked: {message}")),
    };
    let result = self_test::run(&found);
    DeviceReport {
        device,
        name: Some(found.name),
        problem: None,
        binding_limit: found.binding_limit,
        precision: result.precision,
        checks: result.checks,
        speed: result.speed,
    }
}

/// The same in a process of its own: a bad driver may bring its process down, or never return.
fn examine_apart(name: DeviceName) -> DeviceReport {
    let device = word(name);
    match examine_in_child(&device) {
        Ok(report) => report,
        Err(problem) => DeviceReport::without(device, problem),
    }
}

fn examine_in_child(device: &str) -> Result<DeviceReport, String> {
    let program = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let mut child = Command::new(program)
        .args(["doctor", "--json", "--device", device])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot start the test: {e}"))?;
    let ended = wait(&mut child, PATIENCE)?;
    let mut output = String::new();
    let mut stdout = child.stdout.take().ok_or("the test has no output")?;
    stdout.read_to_string(&mut output).map_err(|e| format!("cannot read the test's result: {e}"))?;
    parse_report(&output).ok_or_else(|| format!("the driver ended its test ({ended})"))
}

/// How the child ended. It is killed if it takes too long; its output is smaller than what a pipe holds.
fn wait(child: &mut Child, patience: Duration) -> Result<std::process::ExitStatus, String> {
    let begin = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if begin.elapsed() < patience => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                drop(child.kill());
                drop(child.wait());
                return Err(format!("the driver did not finish its test in {} s", patience.as_secs()));
            }
            Err(error) => return Err(format!("the test was lost: {error}")),
        }
    }
}

/// The one device in what a child printed.
fn parse_report(output: &str) -> Option<DeviceReport> {
    let mut json: serde_json::Value = serde_json::from_str(output).ok()?;
    serde_json::from_value(json.get_mut("devices")?.get_mut(0)?.take()).ok()
}

impl DeviceReport {
    fn without(device: String, problem: String) -> Self {
        let (name, binding_limit, precision, speed) = (None, None, None, None);
        Self { device, name, problem: Some(problem), binding_limit, precision, checks: Vec::new(), speed }
    }

    fn lines(&self) -> Vec<String> {
        let row = |name: &str, text: &str| format!("  {name:<15} {text}");
        let mut lines = vec![self.name.clone().unwrap_or_else(|| self.device.clone())];
        lines.extend(self.problem.iter().map(|problem| format!("  {problem}")));
        lines.extend(self.binding_limit.map(|limit| row("largest tensor", &printer::bytes(limit))));
        for check in &self.checks {
            lines.push(row(&check.name, &self.result_of(check)));
        }
        lines.extend(self.speed.map(|speed| row("speed", &speed.describe())));
        lines
    }

    fn result_of(&self, check: &Check) -> String {
        let Some(error) = check.error else {
            return format!("failed: {}", check.problem.as_deref().unwrap_or("no result"));
        };
        let verdict = match (check.passed, self.precision) {
            (true, _) => "ok",
            (false, Some(Precision::Reduced)) => "reduced precision (TF32, f16 or bf16)",
            (false, _) => "wrong",
        };
        format!("{verdict}, largest error {error:.1e} of {:.0e} allowed", check.limit)
    }
}

/// A device as the command line calls it.
fn word(name: DeviceName) -> String {
    name.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// What this program was built with, beside the processor and cards through WGSL.
fn features() -> Vec<&'static str> {
    let known = [("vulkan", cfg!(feature = "vulkan")), ("cuda", cfg!(feature = "cuda"))];
    known.into_iter().filter_map(|(name, built)| built.then_some(name)).collect()
}

fn print(summary: &Summary, asked: Option<DeviceName>) -> Result<(), Failure> {
    let features = if summary.features.is_empty() { "none".to_owned() } else { summary.features.join(", ") };
    printer::line(&format!("modegpt  {}, optional features: {features}", summary.version))?;
    summary.host.lines().iter().try_for_each(|line| printer::line(line))?;
    for report in &summary.devices {
        printer::line("")?;
        report.lines().iter().try_for_each(|line| printer::line(line))?;
    }
    let Some(chosen) = &summary.chosen else { return Ok(()) };
    let verdict = if summary.ok { "computes f32 correctly" } else { "does not compute f32 correctly" };
    let chooser = if asked.is_none_or(|name| name == DeviceName::Auto) { "auto takes " } else { "" };
    printer::line(&format!("\n{chooser}{chosen}: {verdict}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(error: f64) -> DeviceReport {
        let check = Check {
            name: "matrix product".to_owned(),
            error: Some(error),
            limit: 1e-4,
            passed: error <= 1e-4,
            problem: None,
        };
        DeviceReport {
            device: "gl".to_owned(),
            name: Some("gl: card".to_owned()),
            problem: None,
            binding_limit: Some(128 << 20),
            precision: Some(if error <= 1e-4 { Precision::F32 } else { Precision::Reduced }),
            checks: vec![check],
            speed: Some(Speed { gflops: 10.0, size: 256 }),
        }
    }

    #[test]
    fn a_report_survives_the_way_from_a_child() {
        let json = serde_json::json!({ "version": "1", "devices": [report(1e-6)] }).to_string();
        assert_eq!(parse_report(&json).expect("a report").lines(), report(1e-6).lines());
        for bad in ["", "{}", "{\"devices\": []}", "{\"devices\": [1]}", &json[1..]] {
            assert!(parse_report(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn only_the_chosen_device_decides() {
        let devices = [report(1e-6), DeviceReport::without("cuda".to_owned(), "no card".to_owned())];
        assert!(judge(&devices, Some("gl: card")).is_ok());
        assert!(judge(&[report(1e-3)], Some("gl: card")).is_err());
        assert!(judge(&devices, Some("another")).is_err());
        assert!(judge(&devices, None).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_test_that_hangs_is_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep is there");
        let message = wait(&mut child, Duration::from_millis(50)).expect_err("too slow");
        assert_eq!(message, "the driver did not finish its test in 0 s");
        assert!(child.try_wait().expect("it can be asked").is_some());
    }
}
