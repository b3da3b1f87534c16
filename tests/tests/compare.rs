//! A comparison on a real model: computed once, resumed, and refused where it would mix what was computed differently.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use modegpt::calibration::GramPath;
use modegpt::checkpoint::Existing;
use modegpt::model_runtime::Compute;
use modegpt::report::CompareReport;
use modegpt::run::{CompareError, CompareRun, NamedMethod, NamedText, SeededDraw, compare};
use modegpt::text_tools::{Corpus, Strategy};
use modegpt::{Calibration, CalibrationOptions, EvaluationOptions, Model, Reporter};
use modegpt_tests::{open, read_text};

/// Keeps what was computed, cell by cell, and counts surveys.
#[derive(Default)]
struct Cells(RefCell<Vec<String>>, Cell<usize>);

impl Reporter for Cells {
    fn begin(&self, stage: &str, _total: u64) {
        self.1.set(self.1.get() + usize::from(stage == "survey"));
    }
    fn advance(&self, _done: u64) {}
    fn end(&self) {}
    fn note(&self, remark: &str) {
        if remark.starts_with("cell ") {
            self.0.borrow_mut().push(remark.to_owned());
        }
    }
}

/// What is compared, on the smallest model.
struct Request {
    model: Model,
    methods: Vec<&'static str>,
    sparsities: Vec<f64>,
    seeds: Vec<u64>,
    n_samples: usize,
    max_windows: usize,
    ablate: bool,
    existing: Existing,
}

impl Request {
    fn new() -> Self {
        Self {
            model: open("stories260k"),
            methods: vec!["paper", "best"],
            sparsities: vec![0.3],
            seeds: vec![0, 1],
            n_samples: 16,
            max_windows: 3,
            ablate: false,
            existing: Existing::Refuse,
        }
    }

    /// The report, and the cells that were computed for it.
    fn run(&self, target: &Path) -> Result<(CompareReport, Vec<String>), CompareError> {
        self.run_and_count_surveys(target).map(|(report, cells, _)| (report, cells))
    }

    fn run_and_count_surveys(&self, target: &Path) -> Result<(CompareReport, Vec<String>, usize), CompareError> {
        let text = |file: &str, n: usize| -> Vec<Corpus> {
            let text: String = read_text(file).chars().take(n).collect();
            vec![Corpus::from_plain(file, &text).expect("stories")]
        };
        let train = text("text/tinystories/train.txt", 60_000);
        let texts = [NamedText { name: "test.txt".to_owned(), corpora: text("text/tinystories/test.txt", 20_000) }];
        let draw = |&seed: &u64| {
            let options =
                CalibrationOptions { n_samples: self.n_samples, seq_len: 64, seed, strategy: Strategy::Random };
            let (calibration, held_out) =
                Calibration::draw_and_hold_out(&self.model, &train, options, 2).expect("enough stories");
            SeededDraw { seed, calibration, held_out }
        };
        let draws: Vec<SeededDraw> = self.seeds.iter().map(draw).collect();
        let methods: Vec<NamedMethod> =
            self.methods.iter().map(|name| NamedMethod::parse(name).expect("a method")).collect();
        let (compute, cells, secs) = (Compute::host(), Cells::default(), Cell::new(0.0));
        let run = CompareRun {
            model: &self.model,
            model_name: "stories260k",
            methods: &methods,
            sparsities: &self.sparsities,
            draws: &draws,
            calibration_texts: vec!["train.txt".to_owned()],
            texts: &texts,
            evaluation: EvaluationOptions {
                seq_len: 128,
                stride: 128,
                max_windows: Some(self.max_windows),
                batch_tokens: 512,
            },
            tasks: &[],
            against_dense: true,
            ablate: self.ablate,
            prompt: "Once upon a time",
            sample_tokens: 8,
            compute: &compute,
            device: "cpu",
            gram_path: GramPath::Host,
            batch_tokens: 512,
            gradient_tokens: 256,
            max_host_bytes: None,
            command: "modegpt compare",
            keep: false,
            existing: self.existing,
            // Every look at the clock takes a second.
            clock: &|| {
                secs.set(secs.get() + 1.0);
                secs.get()
            },
            reading: Some((&|_| Ok([500.0, 1000.0]), "not really")),
            reporter: &cells,
        };
        let report = pollster::block_on(compare(&run, target))?;
        Ok((report, cells.0.into_inner(), cells.1.get()))
    }
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

fn perplexities(report: &CompareReport) -> Vec<f64> {
    report.cells.iter().map(|cell| cell.measured.texts[0].perplexity).collect()
}

#[test]
fn a_comparison_computes_only_what_is_missing_and_mixes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("report");
    let (report, cells) = Request::new().run(&target).expect("a report");
    assert_eq!((report.cells.len(), cells.len()), (4, 4), "{cells:?}");
    check_report(&report);
    let files = ["cells", "report.csv", "report.html", "report.json"].map(str::to_owned);
    assert_eq!(names(&target), files.into());
    let stored: CompareReport =
        serde_json::from_slice(&fs::read(target.join("report.json")).expect("a file")).expect("a report");
    assert_eq!(stored, report);
    assert_eq!(fs::read_to_string(target.join("report.csv")).expect("a file").matches("\r\n").count(), 2 + 4);

    // Nothing is missing, then one cell is.
    let resume = || Request { existing: Existing::Resume, ..Request::new() };
    let (again, cells) = resume().run(&target).expect("a report");
    assert_eq!((again, cells.len()), (report.clone(), 0));
    let note = target.join("cells/best-0.3-seed-1.json");
    fs::remove_file(&note).expect("a note");
    let (again, cells) = resume().run(&target).expect("a report");
    assert_eq!(perplexities(&again), perplexities(&report));
    assert_eq!(cells.len(), 1);
    assert!(cells[0].starts_with("cell 4 of 4: best at 30 %, seed 1"), "{cells:?}");
    // More is asked for.
    let more = Request { methods: vec!["paper", "paper-uniform", "best"], seeds: vec![0], ..resume() };
    let (again, cells) = more.run(&target).expect("a report");
    assert_eq!((again.cells.len(), cells.len()), (3, 1));
    assert!(again.share_of_paper("best", 0.3, 0).is_some_and(|share| share < 1.0));

    let refused = |request: Request| request.run(&target).expect_err("something else").to_string();
    for (request, expected) in [
        (Request::new(), "exists and is not empty"),
        (Request { n_samples: 17, ..resume() }, "samples was 16 of 64 tokens, now 17 of 64 tokens"),
        (Request { max_windows: 2, ..resume() }, "text test.txt was "),
        (Request { methods: vec!["best", "best"], ..resume() }, "method `best` is named twice"),
        (Request { methods: vec![], ..resume() }, "no methods"),
        (Request { seeds: vec![3, 3], ..resume() }, "seed 3 is named twice"),
    ] {
        let told = refused(request);
        assert!(told.contains(expected), "{told}");
    }
    fs::write(&note, "{\"computed\": {}, \"found\": 3}").expect("a note");
    let told = refused(resume());
    assert!(told.contains("best-0.3-seed-1.json") && told.contains("is no cell"), "{told}");
    let (anew, cells) = Request { existing: Existing::Replace, ..Request::new() }.run(&target).expect("a report");
    assert_eq!((perplexities(&anew), cells.len()), (perplexities(&report), 4));

    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).expect("a folder");
    fs::write(foreign.join("thesis.txt"), "mine").expect("a file");
    let request = Request { existing: Existing::Replace, ..Request::new() };
    assert!(request.run(&foreign).expect_err("refused").to_string().contains("something else than a comparison"));
    assert_eq!(names(&foreign), ["thesis.txt".to_owned()].into());
}

/// Numbers of the right kind, in the right order.
fn check_report(report: &CompareReport) {
    let dense = &report.dense;
    assert!((3.0..8.0).contains(&dense.texts[0].perplexity), "{dense:?}");
    let cells: Vec<(&str, u64)> = report.cells.iter().map(|cell| (cell.method.as_str(), cell.seed)).collect();
    assert_eq!(cells, [("paper", 0), ("best", 0), ("paper", 1), ("best", 1)]);
    for cell in &report.cells {
        assert!((cell.removed - 0.3).abs() < 0.01 && cell.secs >= 1.0, "{cell:?}");
        let text = &cell.measured.texts[0];
        assert!(text.perplexity > dense.texts[0].perplexity);
        assert!(text.kl_divergence.is_some_and(|kl| kl > 0.0) && text.top1_agreement.is_some_and(|share| share < 1.0));
        assert!(cell.measured.params < dense.params && cell.measured.bytes < dense.bytes);
        assert!(!cell.measured.sample.is_empty());
        assert_eq!(cell.layers.len(), 5);
        let last = cell.layers.last().and_then(|layer| layer.incurred);
        assert!(last.is_some_and(|error| error > 0.0), "{last:?}");
        for layer in &cell.layers {
            // Nothing was lost before the first layer that gives anything.
            assert!(layer.incurred.is_some_and(|error| error >= 0.0), "{layer:?}");
            assert!(layer.removed.named().iter().all(|(_, share)| (0.0..1.0).contains(*share)), "{layer:?}");
        }
        assert_eq!(cell.predicted.is_some(), cell.method == "best");
    }
    assert_eq!(report.curves.iter().map(|curves| curves.method.as_str()).collect::<Vec<_>>(), ["best"]);
    assert_eq!(report.protocol.calibration.draws.len(), 2);
    assert_ne!(report.cells[0].measured.texts[0], report.cells[2].measured.texts[0], "seeds draw different samples");
}

/// What layers lose at every width does not depend on how much is removed.
#[test]
fn every_size_of_a_method_shares_one_survey() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let request = |sparsities: &[f64]| Request {
        methods: vec!["best", "best-prefix", "best-fisher", "svd-llm-curves"],
        sparsities: sparsities.to_vec(),
        seeds: vec![0],
        ..Request::new()
    };
    let together = folder.path().join("together");
    let (report, _, n_surveys) = request(&[0.2, 0.3]).run_and_count_surveys(&together).expect("a report");
    // One without gradients, one with them, one of the maps by themselves.
    assert_eq!((report.cells.len(), n_surveys), (8, 3));
    let (alone, _, n_surveys) = request(&[0.3]).run_and_count_surveys(&folder.path().join("alone")).expect("a report");
    assert_eq!(n_surveys, 3);
    assert_eq!(perplexities(&report)[4..], perplexities(&alone));
    // Each look at the clock takes a second: a survey two, which all cells have that would need it by themselves.
    let secs: Vec<f64> = report.cells.iter().map(|cell| cell.secs).collect();
    assert_eq!(secs[..4], secs[4..], "{secs:?}");
    assert!(secs[2] > secs[0], "with gradients two plans are made: {secs:?}");
}

#[test]
fn an_ablation_goes_from_the_paper_to_everything_and_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let request =
        Request { methods: vec!["paper", "best-fisher-prefix"], seeds: vec![0], ablate: true, ..Request::new() };
    let (report, cells) = request.run(&folder.path().join("report")).expect("a report");
    let ablation = report.ablation.expect("an ablation");
    let labels = |steps: &[modegpt::report::AblationStep]| -> Vec<String> {
        steps.iter().map(|step| step.label.clone()).collect()
    };
    assert_eq!(labels(&ablation.added)[0], "paper");
    assert_eq!(labels(&ablation.left_out)[0], "everything");
    assert_eq!((ablation.added.len(), ablation.left_out.len()), (7, 7));
    // Cells that are the same are computed once: the paper; everything, which the grid computes with a choice of plans; and
    // the last decision, which is added to everything but it.
    assert_eq!(cells.len(), 2 + 6 + 5, "{cells:?}");
    let perplexity = |step: &modegpt::report::AblationStep| step.cells[0].measured.texts[0].perplexity;
    let paper = report.cells[0].measured.texts[0].perplexity;
    let everything = perplexity(&ablation.left_out[0]);
    assert_eq!((perplexity(&ablation.added[0]), perplexity(&ablation.added[6])), (paper, everything));
    let before_last = (perplexity(&ablation.added[5]), perplexity(&ablation.left_out[6]));
    assert_eq!(before_last.0.to_bits(), before_last.1.to_bits());
    let distinct: BTreeSet<u64> =
        ablation.added.iter().chain(&ablation.left_out).map(|step| perplexity(step).to_bits()).collect();
    assert_eq!(distinct.len(), 12, "every decision changes something");
    assert!(everything < paper);
    assert!(report.protocol.calibration.gradient_tokens.is_some());
}
