//! `modegpt reproduce`

mod table;

use std::path::{Path, PathBuf};
use std::time::Instant;

use modegpt::checkpoint::Existing;
use modegpt::report::CompareReport;
use modegpt::run::{CompareRun, NamedMethod, NamedText, SeededDraw, compare};
use modegpt::text_tools::{Corpus, Strategy};
use modegpt::{Calibration, CalibrationOptions, CorpusOptions, EvaluationOptions, Model, read_corpus};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::args::ReproduceArgs;
use crate::device::FoundDevice;
use crate::failure::Failure;
use crate::progress::Bars;
use crate::scratch::Scratch;
use crate::{device, inputs, printer};
use table::{TABLES, Table, TextFile};

/// A stored number beside what was measured.
#[derive(Debug, Serialize)]
struct Row {
    table: String,
    method: String,
    sparsity: f64,
    expected: f64,
    found: f64,
    /// Largest relative difference that passes.
    tolerance: f64,
    pass: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary {
    pass: bool,
    rows: Vec<Row>,
    /// Tables whose model or text is not there.
    skipped: Vec<String>,
    program: &'static str,
    device: String,
    secs: f64,
}

/// Runs the command.
pub(crate) fn run(args: &ReproduceArgs) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut tables = tables(args)?;
    device::set_threads(args.common.threads);
    let found = device::open(args.common.device)?;
    let data = args.data.clone().unwrap_or_else(inputs::data_folder);
    if let (Some(folder), 2..) = (&args.model, tables.len()) {
        tables = vec![table_of(folder, tables)?];
    }
    let (mut rows, mut skipped) = (Vec::new(), Vec::new());
    for table in &tables {
        let folder = args.model.clone().unwrap_or_else(|| data.join("models").join(&table.model));
        let is_asked_for = args.only.is_some() || args.table.is_some() || args.model.is_some();
        if !is_asked_for && !folder.join("config.json").is_file() {
            printer::remark(&format!("{}: skipped, since there is no model in `{}`", table.model, folder.display()));
            skipped.push(table.model.clone());
            continue;
        }
        rows.extend(reproduce(table, &folder, &data, &found, args.common.batch_tokens)?);
    }
    if rows.is_empty() {
        return Err(Failure::request(format!("nothing to reproduce: no model in `{}`", data.join("models").display())));
    }
    let n_failed = rows.iter().filter(|row| !row.pass).count();
    let (n_rows, device, secs) = (rows.len(), found.name.clone(), begin.elapsed().as_secs_f64());
    let summary = Summary { pass: n_failed == 0, rows, skipped, program: modegpt::PROGRAM, device, secs };
    if args.common.json {
        printer::json(&summary)?;
    } else {
        print(&summary)?;
    }
    if n_failed > 0 {
        return Err(Failure::request(format!("{n_failed} of {n_rows} numbers differ")));
    }
    Ok(())
}

/// The tables asked for.
fn tables(args: &ReproduceArgs) -> Result<Vec<Table>, Failure> {
    if let Some(path) = &args.table {
        let fail = |reason: String| Failure::request(format!("cannot read table `{}`: {reason}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        return Ok(vec![Table::parse(&text).map_err(fail)?]);
    }
    let parse = |text: &&str| Table::parse(text).map_err(Failure::Fault);
    let mut tables: Vec<Table> = TABLES.iter().map(parse).collect::<Result<_, _>>()?;
    if let Some(only) = &args.only {
        let names = names(&tables);
        tables.retain(|table| table.model == *only);
        if tables.is_empty() {
            return Err(Failure::Usage(format!("no table `{only}`: expected one of {names}")));
        }
    }
    Ok(tables)
}

/// The one of the weights in `folder`.
fn table_of(folder: &Path, mut tables: Vec<Table>) -> Result<Table, Failure> {
    let model = inputs::open_model(&folder.display().to_string())?;
    let Some(at) = tables.iter().position(|table| table.fingerprint == model.fingerprint()) else {
        let (folder, names) = (folder.display(), names(&tables));
        return Err(Failure::request(format!(
            "no stored numbers of the model in `{folder}`: there are some of {names}"
        )));
    };
    Ok(tables.swap_remove(at))
}

fn names(tables: &[Table]) -> String {
    tables.iter().map(|table| table.model.as_str()).collect::<Vec<_>>().join(", ")
}

/// Measures everything in a table, in a folder that is gone afterwards.
fn reproduce(
    table: &Table,
    folder: &Path,
    data: &Path,
    found: &FoundDevice,
    batch_tokens: usize,
) -> Result<Vec<Row>, Failure> {
    let model = inputs::open_model(&folder.display().to_string())?;
    same(&format!("fingerprint of `{}`", folder.display()), &table.fingerprint, model.fingerprint())?;
    let calibration_text = read(&table.calibration.text, data)?;
    let draws = draws(table, &model, &calibration_text)?;
    let texts = [NamedText { name: table.text.file.clone(), corpora: vec![read(&table.text, data)?] }];
    let methods: Vec<NamedMethod> =
        table.methods().iter().map(|name| NamedMethod::parse(name)).collect::<Result<_, _>>()?;
    let (begin, bars, scratch) = (Instant::now(), Bars::default(), Scratch::new("reproduce")?);
    let run = CompareRun {
        model: &model,
        model_name: &table.model,
        methods: &methods,
        sparsities: &table.sparsities(),
        draws: &draws,
        calibration_texts: vec![table.calibration.text.file.clone()],
        texts: &texts,
        evaluation: EvaluationOptions {
            seq_len: table.seq_len,
            stride: table.seq_len,
            max_windows: table.max_windows,
            batch_tokens,
        },
        tasks: &[],
        against_dense: false,
        ablate: false,
        prompt: "The",
        sample_tokens: 1,
        compute: &found.compute,
        device: &found.name,
        gram_path: found.gram_path,
        batch_tokens,
        gradient_tokens: table.calibration.gradient_tokens,
        max_host_bytes: None,
        command: "modegpt reproduce",
        keep: false,
        existing: Existing::Refuse,
        clock: &|| begin.elapsed().as_secs_f64(),
        reading: None,
        reporter: &bars,
    };
    let report = pollster::block_on(compare(&run, &scratch.path().join(&table.model)))?;
    let tokens = &report.protocol.texts[0].token_hash;
    same(&format!("token hash of `{}`", table.text.file), &table.token_hash, tokens)?;
    Ok(rows(table, &report))
}

fn draws(table: &Table, model: &Model, text: &Corpus) -> Result<Vec<SeededDraw>, Failure> {
    let wanted = &table.calibration;
    let options = CalibrationOptions {
        n_samples: wanted.samples,
        seq_len: wanted.seq_len,
        seed: wanted.seed,
        strategy: Strategy::Random,
    };
    let calibration = Calibration::draw(model, std::slice::from_ref(text), options)?;
    same("token hash of the calibration samples", &wanted.token_hash, &calibration.token_hash)?;
    // Nothing is tried: a trial that is nearly even would make the number depend on the processor.
    Ok(vec![SeededDraw { seed: wanted.seed, calibration, held_out: None }])
}

/// A text of the data folder, if it is the one that the numbers were measured with.
fn read(wanted: &TextFile, data: &Path) -> Result<Corpus, Failure> {
    let path: PathBuf = data.join("text").join(&wanted.file);
    let bytes = std::fs::read(&path)
        .map_err(|error| Failure::request(format!("cannot read text `{}`: {error}", path.display())))?;
    let hash = format!("{:x}", Sha256::digest(&bytes));
    same(&format!("SHA-256 of `{}`", path.display()), &wanted.sha256, &hash)?;
    Ok(read_corpus(&wanted.file, &bytes, &CorpusOptions::default())?)
}

fn same(what: &str, expected: &str, found: &str) -> Result<(), Failure> {
    if expected == found {
        return Ok(());
    }
    Err(Failure::request(format!("cannot reproduce: {what}: expected {expected}, found {found}")))
}

fn rows(table: &Table, report: &CompareReport) -> Vec<Row> {
    let dense = report.dense.texts.first().map(|text| text.perplexity);
    let dense = ("dense", 0.0, table.dense, dense);
    let cells = table.rows.iter().map(|row| {
        let found = report.perplexity(&row.method, row.sparsity, 0).map(|spread| spread.mean);
        (row.method.as_str(), row.sparsity, row.perplexity, found)
    });
    let all = std::iter::once(dense).chain(cells);
    all.map(|(method, sparsity, expected, found)| {
        let (found, tolerance) = (found.unwrap_or(f64::NAN), table.tolerance);
        let pass = (found / expected - 1.0).abs() <= tolerance;
        Row { table: table.model.clone(), method: method.to_owned(), sparsity, expected, found, tolerance, pass }
    })
    .collect()
}

fn print(summary: &Summary) -> Result<(), Failure> {
    let header = ["model", "method", "removed", "expected", "found", "difference", ""];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for row in &summary.rows {
        rows.push(vec![
            row.table.clone(),
            row.method.clone(),
            format!("{:.0} %", 100.0 * row.sparsity),
            format!("{:.4}", row.expected),
            format!("{:.4}", row.found),
            format!("{:+.3} %", 100.0 * (row.found / row.expected - 1.0)),
            if row.pass { "pass" } else { "FAIL" }.to_owned(),
        ]);
    }
    printer::line(&printer::table(&rows))?;
    let tolerance = summary.rows.iter().map(|row| row.tolerance).fold(0.0, f64::max);
    printer::line(&format!(
        "\nup to {:.1} % may differ; {:.1} s on {}",
        100.0 * tolerance,
        summary.secs,
        summary.device
    ))
}
