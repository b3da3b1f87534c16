//! The methods that a user would otherwise try: every map by itself, and plain slices, on real models.

#![expect(clippy::print_stdout, reason = "what was measured is worth reading")]

use std::path::Path;

use modegpt::architecture::{MapName, WeightProvider};
use modegpt::calibration::{Collect, GramPath};
use modegpt::checkpoint::Existing;
use modegpt::compress::{ErrorUnit, MapMetric, Methods, Mode, Plan, Target};
use modegpt::model_runtime::Compute;
use modegpt::run::{
    AllocationChoice, CalibrationRun, CompressionOptions, CompressionResult, PlanRequest, PlanSource, RunError,
    StatisticsFolder, calibrate, compress,
};
use modegpt::statistics::RowFisher;
use modegpt::text_tools::Corpus;
use modegpt::{Calibration, EvaluationOptions, Model, Silent, evaluate};
use modegpt_tests::{open, open_folder, read_text, stories};

/// Enough where no perplexity is asked for.
const SMALL: [usize; 2] = [16, 64];

const MODES: [Mode; 5] = [Mode::Svd, Mode::Fwsvd, Mode::Asvd, Mode::SvdLlm, Mode::Sliced];

fn run<'a>(model: &'a Model, calibration: &'a Calibration, compute: &'a Compute) -> CalibrationRun<'a> {
    CalibrationRun {
        collect: Collect { logits: true, inputs: true, magnitudes: true },
        gradient_tokens: Some(1024),
        row_fisher: Some(RowFisher::PerExample),
        batch_tokens: 1024,
        ..CalibrationRun::new(model, calibration, compute, GramPath::Host)
    }
}

/// A model with all that any mode needs to know of it.
struct Known {
    model: Model,
    calibration: Calibration,
    statistics: StatisticsFolder,
    compute: Compute,
}

impl Known {
    fn new(name: &str, [n_samples, seq_len]: [usize; 2], folder: &Path) -> Self {
        let (model, compute) = (open(name), Compute::host());
        let calibration = stories(&model, n_samples, seq_len);
        let target = folder.join(format!("{name}-statistics"));
        let folder = pollster::block_on(calibrate(&run(&model, &calibration, &compute), &target, Existing::Refuse));
        let statistics = StatisticsFolder::new(folder.expect("calibrates"));
        Self { model, calibration, statistics, compute }
    }

    fn try_compress(&self, plan: PlanSource, target: &Path) -> Result<CompressionResult, RunError> {
        let statistics = Some(self.statistics.clone());
        let options = CompressionOptions { statistics, ..CompressionOptions::new(plan) };
        pollster::block_on(compress(&run(&self.model, &self.calibration, &self.compute), &options, target))
    }

    fn compress(&self, request: PlanRequest, target: &Path) -> CompressionResult {
        self.try_compress(PlanSource::Make(request), target).expect("compresses")
    }
}

fn perplexity(model: &Model) -> f64 {
    let stories: String = read_text("text/tinystories/test.txt").chars().take(40_000).collect();
    let corpus = Corpus::from_plain("test.txt", &stories).expect("stories");
    let options = EvaluationOptions { seq_len: 256, stride: 256, max_windows: None, batch_tokens: 2048 };
    let compute = Compute::host();
    pollster::block_on(evaluate(model, &[corpus], options, &compute, &Silent)).expect("evaluates").perplexity
}

fn file(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).expect("a file of the output")
}

/// The independent float64 prototype has 1.089 for the plain and 1.053 for the whitened SVD of opt-tiny-stories at 20 %, on a
/// protocol much like this.
#[test]
fn every_mode_meets_its_size_and_is_a_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, sparsity, most) in [("opt-tiny-stories", 0.2, 1.4), ("stories260k", 0.1, 40.0)] {
        let known = Known::new(name, [32, 256], folder.path());
        let dense = perplexity(&known.model);
        let mut ratios = Vec::new();
        for mode in MODES {
            for allocation in [AllocationChoice::Uniform, AllocationChoice::ErrorCurves] {
                let request = PlanRequest { allocation, ..PlanRequest::new(Target::Sparsity(sparsity), mode) };
                let target = folder.path().join(format!("{name}-{mode:?}-{allocation:?}"));
                let result = known.compress(request, &target);
                let totals = result.report.totals;
                assert!((totals.sparsity - sparsity).abs() < 0.005, "{name}, {mode:?}: {} removed", totals.sparsity);
                assert_eq!(result.plan.totals, totals);
                let small = open_folder(&target);
                assert_eq!(small.config().block_params() as u64, totals.block_params_after);
                assert_eq!((small.params(), small.checkpoint.bytes()), (result.params.1, result.bytes.1));
                let ratio = perplexity(&small) / dense;
                println!("{name} at {sparsity}, {mode:?}, {allocation}: perplexity x {ratio:.4}");
                assert!((1.0..most).contains(&ratio), "{name}, {mode:?}: perplexity x {ratio}");
                if allocation == AllocationChoice::Uniform {
                    ratios.push(ratio);
                } else {
                    assert!(result.plan.predicted_error().is_some_and(|error| error > 0.0), "{name}, {mode:?}");
                }
            }
        }
        let [svd, _, asvd, svd_llm, _] = ratios[..] else { panic!("five modes") };
        assert!(svd_llm < asvd && asvd < svd, "{name}: {ratios:?}");
    }
}

#[test]
fn what_is_said_of_maps_is_what_is_stored() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let known = Known::new("stories260k", SMALL, folder.path());
    let target = folder.path().join("small");
    // At 5 % the smallest maps are dense or nearly so.
    let result = known.compress(PlanRequest::new(Target::Sparsity(0.05), Mode::SvdLlm), &target);
    let small = open_folder(&target);
    let card = String::from_utf8(file(&target, "README.md")).expect("text");
    assert!(card.contains("SVD-LLM") && card.contains("low-rank factors of every map"), "{card}");
    let mut n_dense = 0;
    for (layer, shape) in result.report.layers.iter().zip(&small.config().layers) {
        let names: Vec<MapName> = layer.maps.iter().map(|map| map.name).collect();
        assert_eq!(names, MapName::ALL);
        for map in &layer.maps {
            assert_eq!(map.rank, shape.ranks.get(map.name));
            let output = map.output_error.expect("inputs were collected");
            // The metric is that of the outputs, so both errors are one; stored in f32.
            assert!((output - map.relative_error).abs() < 1e-6, "{map:?}");
            assert_eq!(map.rank.is_none(), output == 0.0, "{map:?}");
            n_dense += usize::from(map.rank.is_none());
            let rank = map.rank.map_or("dense".to_owned(), |rank| rank.to_string());
            assert!(
                card.contains(&format!("| {} | {} | {rank} | {:.2e} |", layer.index, map.name, map.relative_error))
            );
        }
    }
    assert!(n_dense < 35, "nothing was factorised");
    let report: modegpt::compress::Report =
        serde_json::from_slice(&file(&target, "modegpt_report.json")).expect("a report");
    assert_eq!(report, result.report);
}

#[test]
fn equal_requests_and_their_plan_give_equal_bytes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let known = Known::new("stories260k", SMALL, folder.path());
    for mode in MODES {
        let request =
            PlanRequest { allocation: AllocationChoice::ErrorCurves, ..PlanRequest::new(Target::Sparsity(0.2), mode) };
        let at = |label: &str| folder.path().join(format!("{mode:?}-{label}"));
        let once = known.compress(request, &at("once"));
        known.compress(request, &at("again"));
        let text = String::from_utf8(file(&at("once"), "modegpt_plan.json")).expect("text");
        let plan = Plan::from_json(&text).expect("valid");
        assert_eq!(plan, once.plan);
        known.try_compress(PlanSource::Given(Box::new(plan)), &at("given")).expect("applies");
        for entry in std::fs::read_dir(at("once")).expect("a folder") {
            let name = entry.expect("an entry").file_name().into_string().expect("text");
            let bytes = file(&at("once"), &name);
            assert!(
                bytes == file(&at("again"), &name) && bytes == file(&at("given"), &name),
                "{mode:?}: {name} differs"
            );
        }
    }
}

#[test]
fn a_plan_with_one_rank_changed_changes_that_map_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let known = Known::new("opt-tiny-stories", SMALL, folder.path());
    let made = known.compress(PlanRequest::new(Target::Sparsity(0.3), Mode::Asvd), &folder.path().join("made"));
    let mut plan = made.plan.clone();
    plan.layers[2].ranks.up = Some(7);
    plan.layers[3].ranks.query = None;
    let edited = known.try_compress(PlanSource::Given(Box::new(plan)), &folder.path().join("edited")).expect("applies");
    let (old, new) = (open_folder(folder.path().join("made")), open_folder(folder.path().join("edited")));
    assert_eq!(new.config().layers[2].ranks.up, Some(7));
    for layer in 0..4 {
        let layers = [&old, &new].map(|model| model.checkpoint.layer(layer).expect("readable"));
        for ((name, old), (_, new)) in layers[0].maps().zip(layers[1].maps()) {
            let is_edited = matches!((layer, name), (2, MapName::Up) | (3, MapName::Query));
            assert_eq!(old != new, is_edited, "layer {layer}, {name}");
        }
    }
    let original = known.model.checkpoint.layer(3).expect("readable");
    assert_eq!(new.checkpoint.layer(3).expect("readable").query, original.query);
    let up = edited.report.layers[2].maps.iter().find(|map| map.name == MapName::Up).expect("reported");
    assert_eq!(up.rank, Some(7));
}

#[test]
fn methods_equal_in_theory_are_equal_in_the_pipeline() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let known = Known::new("stories260k", SMALL, folder.path());
    let request = PlanRequest::new(Target::Sparsity(0.2), Mode::Asvd);
    let methods = Methods::of_maps(MapMetric::Asvd { alpha: 0.0 });
    known.compress(PlanRequest { methods, ..request }, &folder.path().join("asvd"));
    known.compress(PlanRequest::new(Target::Sparsity(0.2), Mode::Svd), &folder.path().join("svd"));
    for shard in 0..6 {
        let name = modegpt::checkpoint::shard_name(shard, 5);
        assert!(file(&folder.path().join("asvd"), &name) == file(&folder.path().join("svd"), &name), "{name} differs");
    }
}

#[test]
fn what_a_mode_needs_and_has_not_is_named_before_any_work() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (model, compute) = (open("stories260k"), Compute::host());
    let calibration = stories(&model, 4, 64);
    let collect = |gradient_tokens: Option<usize>, name: &str| {
        let collect = Collect::default();
        let run = CalibrationRun { collect, gradient_tokens, row_fisher: None, ..run(&model, &calibration, &compute) };
        let folder = pollster::block_on(calibrate(&run, &folder.path().join(name), Existing::Refuse));
        StatisticsFolder::new(folder.expect("calibrates"))
    };
    let (usual, with_gradients) = (collect(None, "usual"), collect(Some(128), "gradients"));
    let refused = |mode: Mode, statistics: Option<&StatisticsFolder>| {
        let plan = PlanSource::Make(PlanRequest::new(Target::Sparsity(0.2), mode));
        let statistics = statistics.cloned();
        let existing = Existing::Replace;
        let options = CompressionOptions { statistics, existing, ..CompressionOptions::new(plan) };
        let run = CalibrationRun { gradient_tokens: None, ..run(&model, &calibration, &compute) };
        pollster::block_on(compress(&run, &options, &folder.path().join("out"))).expect_err("refused").to_string()
    };
    assert!(refused(Mode::Fwsvd, None).contains("none are computed"));
    assert!(refused(Mode::Fwsvd, Some(&usual)).contains("has no gradients-00000.safetensors"));
    let told = refused(Mode::Fwsvd, Some(&with_gradients));
    assert!(told.contains("tell nothing of rows: make them with calibrate --mode fwsvd"), "{told}");
    for (mode, missing) in [(Mode::Asvd, "magnitudes"), (Mode::SvdLlm, "inputs"), (Mode::Sliced, "inputs")] {
        let told = refused(mode, Some(&usual));
        assert!(told.contains("layer 0") && told.contains(&format!("statistic `{missing}`")), "{mode:?}: {told}");
    }
    assert_eq!(PlanRequest::new(Target::Sparsity(0.2), Mode::Fwsvd).unit, ErrorUnit::Nats);
    assert!(!folder.path().join("out").exists());
}
