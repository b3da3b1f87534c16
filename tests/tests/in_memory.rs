//! The stages in memory do what the runs over a file system do.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use modegpt::calibration::GramPath;
use modegpt::checkpoint::{Existing, MemorySource};
use modegpt::compress::{Ridges, Target};
use modegpt::evaluation::{SamplerOptions, Stop};
use modegpt::in_memory::{self, AllocationRequest, InMemoryError, Observation, PlanRequest};
use modegpt::model_runtime::Compute;
use modegpt::run::{AllocationChoice, CalibrationRun, CompressionOptions, PlanSource};
use modegpt::statistics::LayerStatistics;
use modegpt::{Calibration, Model, Silent, write};
use modegpt_tests::{open, stories};

fn request(sparsity: f64, allocation: AllocationRequest) -> PlanRequest {
    PlanRequest { sparsity, allocation, rounding: None, ridges: Ridges::default() }
}

fn observe(model: &Model, calibration: &Calibration) -> Result<Vec<LayerStatistics>, InMemoryError> {
    let observation = Observation {
        model,
        calibration,
        compute: &Compute::host(),
        gram_path: GramPath::Host,
        batch_tokens: 1024,
        reporter: &Silent,
    };
    pollster::block_on(observation.run())
}

fn compress_to_folder(model: &Model, calibration: &Calibration, sparsity: f64, target: &Path) {
    let compute = Compute::host();
    let run = CalibrationRun {
        model,
        calibration,
        compute: &compute,
        gram_path: GramPath::Host,
        batch_tokens: 1024,
        n_shards: 1,
        max_host_bytes: None,
        reporter: &Silent,
    };
    let plan = PlanSource::Make {
        target: Target::Sparsity(sparsity),
        allocation: AllocationChoice::Paper,
        rounding: None,
        ridges: Ridges::default(),
    };
    let options = CompressionOptions { plan, dtype: None, strict: false, statistics: None, existing: Existing::Refuse };
    pollster::block_on(modegpt::run::compress(&run, &options, target)).expect("compresses");
}

fn files_in(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().expect("a plain name");
            (name, std::fs::read(entry.path()).expect("a file"))
        })
        .collect()
}

#[test]
fn files_are_those_of_a_run_over_a_file_system() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["opt-tiny-stories", "stories260k", "gpt2-tiny-stories"] {
        let model = open(name);
        let calibration = stories(&model, 8, 128);
        let target = folder.path().join(name);
        compress_to_folder(&model, &calibration, 0.3, &target);

        let seen = observe(&model, &calibration).expect("observes");
        let plan = in_memory::plan(&model, &seen, &request(0.3, AllocationRequest::Paper)).expect("reachable");
        let mut n_layers = 0;
        let dtype = model.checkpoint.dtype();
        let result = in_memory::compress(&model, &calibration, &seen, &plan, dtype, |_| n_layers += 1);
        let result = result.expect("compresses");
        let expected = files_in(&target);
        assert_eq!(result.files.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (file, bytes) in &expected {
            assert!(result.files[file] == *bytes, "{name}: {file} differs");
        }
        assert_eq!((n_layers, result.report.layers.len()), (plan.layers.len(), plan.layers.len()));
        Model::open(Arc::new(MemorySource(result.files))).expect("a model again");
    }
}

#[test]
fn requests_are_read_from_json_and_refused_by_name() {
    let parse = |text: &str| serde_json::from_str::<PlanRequest>(text);
    assert_eq!(parse(r#"{"sparsity": 0.2}"#).expect("defaults"), request(0.2, AllocationRequest::Paper));
    let uniform = parse(r#"{"sparsity": 0, "allocation": "uniform"}"#).expect("by name");
    assert_eq!(uniform, request(0.0, AllocationRequest::Uniform));
    let sharp = parse(r#"{"sparsity": 0, "allocation": {"epsilon": 0.1}}"#).expect("with a temperature");
    assert_eq!(sharp, request(0.0, AllocationRequest::Epsilon(0.1)));
    assert!(parse(r#"{"sparsity": 0, "speed": 1}"#).expect_err("unknown").to_string().contains("speed"));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let (opt, llama) = (open("opt-tiny-stories"), open("stories260k"));
    let long = stories(&opt, 1, 257);
    let message = observe(&opt, &long).expect_err("beyond the context").to_string();
    assert_eq!(message, "samples of 257 tokens do not fit the model's context of 256");

    let calibration = stories(&opt, 2, 32);
    let seen = observe(&opt, &calibration).expect("observes");
    let refused = in_memory::plan(&llama, &seen, &request(0.1, AllocationRequest::Uniform));
    let message = refused.expect_err("another model").to_string();
    assert_eq!(message, "statistics of 5 layers are needed, found 4: calibrate first");
    let plan = in_memory::plan(&opt, &seen, &request(0.1, AllocationRequest::Uniform)).expect("reachable");
    let other = observe(&llama, &stories(&llama, 2, 32)).expect("observes");
    let dtype = llama.checkpoint.dtype();
    in_memory::compress(&llama, &calibration, &other, &plan, dtype, |_| {}).expect_err("a plan of another model");
}

#[test]
fn text_ends_when_the_listener_has_enough() {
    let model = open("stories260k");
    let compute = Compute::host();
    let all = |enough: usize| {
        let mut pieces = Vec::new();
        let go_on = |piece: &str| {
            pieces.push(piece.to_owned());
            pieces.len() < enough
        };
        let written = write(&model, "Once upon a time", 12, SamplerOptions::default(), &compute, go_on);
        let written = pollster::block_on(written).expect("writes");
        assert_eq!(pieces.concat(), written.text);
        written
    };
    let (short, long) = (all(3), all(usize::MAX));
    assert_eq!((short.stop, short.ids.len()), (Stop::Caller, 3));
    assert_eq!((long.stop, long.ids.len()), (Stop::Length, 12));
    assert!(long.text.starts_with(&short.text));
}
