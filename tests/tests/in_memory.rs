//! The stages in memory do what the runs over a file system do.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use modegpt::architecture::{ModelConfig, NormPlacement};
use modegpt::calibration::{Collect, GramPath};
use modegpt::checkpoint::MemorySource;
use modegpt::compress::{ErrorUnit, Methods, Mode, Plan, PrefixRefit, Target};
use modegpt::evaluation::{SamplerOptions, Stop};
use modegpt::in_memory::{self, InMemoryError, Observation, Observed, Output, SparsityRequest};
use modegpt::model_runtime::Compute;
use modegpt::run::{CalibrationRun, CompressionOptions, PlanSource};
use modegpt::{AllocationChoice, Calibration, Model, PlanRequest, Silent, write};
use modegpt_tests::{open, stories};

fn request(sparsity: f64, mode: Mode) -> PlanRequest {
    PlanRequest::new(Target::Sparsity(sparsity), mode)
}

fn plan(model: &Model, seen: &Observed, request: &PlanRequest) -> Result<Plan, InMemoryError> {
    let curves = in_memory::curves(model, seen, request, &Silent)?;
    in_memory::plan(model, seen, curves, request)
}

fn observe(model: &Model, calibration: &Calibration, collect: Collect) -> Result<Observed, InMemoryError> {
    observe_with_gradients(model, calibration, collect, None)
}

fn observe_with_gradients(
    model: &Model,
    calibration: &Calibration,
    collect: Collect,
    gradient_tokens: Option<usize>,
) -> Result<Observed, InMemoryError> {
    let observation = Observation {
        model,
        calibration,
        compute: &Compute::host(),
        gram_path: GramPath::Host,
        collect,
        gradient_tokens,
        batch_tokens: 1024,
        reporter: &Silent,
    };
    pollster::block_on(observation.run())
}

fn compress_to_folder(model: &Model, calibration: &Calibration, request: PlanRequest, target: &Path) {
    let compute = Compute::host();
    let run = CalibrationRun {
        collect: request.collect(),
        gradient_tokens: gradient_tokens(&request),
        batch_tokens: 1024,
        ..CalibrationRun::new(model, calibration, &compute, GramPath::Host)
    };
    let options = CompressionOptions::new(PlanSource::Make(request));
    pollster::block_on(modegpt::run::compress(&run, &options, target)).expect("compresses");
}

fn gradient_tokens(request: &PlanRequest) -> Option<usize> {
    (request.unit == ErrorUnit::Nats).then_some(256)
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
    let models = ["opt-tiny-stories", "stories260k", "gpt2-tiny-stories"];
    let of_modules = models.into_iter().flat_map(|name| [(name, Mode::Paper), (name, Mode::Best)]);
    let others = [Mode::Svd, Mode::Fwsvd, Mode::Asvd, Mode::SvdLlm, Mode::Sliced].map(|mode| ("stories260k", mode));
    for (name, mode) in of_modules.chain(others).chain([("opt-tiny-stories", Mode::Fwsvd)]) {
        let (model, request) = (open(name), request(0.3, mode));
        let calibration = stories(&model, 8, 128);
        let target = folder.path().join(format!("{name}-{mode:?}"));
        compress_to_folder(&model, &calibration, request, &target);

        let seen = observe_with_gradients(&model, &calibration, request.collect(), gradient_tokens(&request));
        let seen = seen.expect("observes");
        assert!(seen.serves(mode));
        let plan = plan(&model, &seen, &request).expect("reachable");
        let mut n_layers = 0;
        let dtype = model.checkpoint.dtype();
        let mut files = BTreeMap::new();
        let report = in_memory::compress(&model, &calibration, &seen, &plan, dtype, &mut files, |_| n_layers += 1);
        let report = report.expect("compresses");
        let expected = files_in(&target);
        assert_eq!(files.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}, {mode:?}");
        for (file, bytes) in &expected {
            assert!(files[file] == *bytes, "{name}, {mode:?}: {file} differs");
        }
        assert_eq!((n_layers, report.layers.len()), (plan.layers.len(), plan.layers.len()));
        Model::open(Arc::new(MemorySource(files))).expect("a model again");
    }
}

#[test]
fn requests_are_read_from_json_and_refused_by_name() {
    let parse = |text: &str| serde_json::from_str::<SparsityRequest>(text).map(PlanRequest::from);
    assert_eq!(parse(r#"{"sparsity": 0.2}"#).expect("defaults"), request(0.2, Mode::Paper));
    assert_eq!(parse(r#"{"sparsity": 0.2, "mode": "best"}"#).expect("by name"), request(0.2, Mode::Best));
    let uniform = parse(r#"{"sparsity": 0, "allocation": "uniform"}"#).expect("by name");
    let expected = request(0.0, Mode::Paper);
    assert_eq!(uniform, PlanRequest { allocation: AllocationChoice::Uniform, ..expected });
    let sharp = parse(r#"{"sparsity": 0, "allocation": {"epsilon": 0.1}}"#).expect("with a temperature");
    assert_eq!(sharp, PlanRequest { allocation: AllocationChoice::Epsilon(0.1), ..expected });
    assert!(parse(r#"{"sparsity": 0, "speed": 1}"#).expect_err("unknown").to_string().contains("speed"));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let (opt, llama) = (open("opt-tiny-stories"), open("stories260k"));
    let long = stories(&opt, 1, 257);
    let message = observe(&opt, &long, Collect::default()).expect_err("beyond the context").to_string();
    assert_eq!(message, "samples of 257 tokens do not fit the model's context of 256");

    let calibration = stories(&opt, 2, 32);
    let seen = observe(&opt, &calibration, Collect::default()).expect("observes");
    let uniform = PlanRequest { allocation: AllocationChoice::Uniform, ..request(0.1, Mode::Paper) };
    let message = plan(&llama, &seen, &uniform).expect_err("another model").to_string();
    assert_eq!(message, "statistics of 5 layers are needed, found 4: calibrate first");
    plan(&opt, &seen, &request(0.1, Mode::Best)).expect_err("logits were not collected");
    let plan = plan(&opt, &seen, &uniform).expect("reachable");
    let other = observe(&llama, &stories(&llama, 2, 32), Collect::default()).expect("observes");
    let dtype = llama.checkpoint.dtype();
    let mut files = BTreeMap::new();
    let refused = in_memory::compress(&llama, &calibration, &other, &plan, dtype, &mut files, |_| {});
    refused.expect_err("a plan of another model");
    assert!(files.is_empty());
}

/// Takes so many bytes and no more.
struct Room(usize);

impl Output for Room {
    fn put(&mut self, _file: &str, part: &[u8]) -> io::Result<()> {
        self.0 = self.0.checked_sub(part.len()).ok_or_else(|| io::Error::other("no room is left"))?;
        Ok(())
    }
}

#[test]
fn what_the_output_refuses_ends_the_work() {
    let model = open("stories260k");
    let calibration = stories(&model, 2, 32);
    let seen = observe(&model, &calibration, Collect::default()).expect("observes");
    let uniform = PlanRequest { allocation: AllocationChoice::Uniform, ..request(0.1, Mode::Paper) };
    let plan = plan(&model, &seen, &uniform).expect("reachable");
    let dtype = model.checkpoint.dtype();
    let mut n_layers = 0;
    // The embedding has 131 kB, a layer some 160.
    let bytes = usize::try_from(model.checkpoint.bytes()).expect("small") / 2;
    let refused = in_memory::compress(&model, &calibration, &seen, &plan, dtype, &mut Room(bytes), |_| n_layers += 1);
    assert_eq!(refused.expect_err("a full disk").to_string(), "no room is left");
    assert!((1..5).contains(&n_layers), "{n_layers} layers");
}

#[test]
fn what_was_not_observed_or_takes_a_file_system_is_refused() {
    let model = open("opt-tiny-stories");
    let calibration = stories(&model, 2, 32);
    let best = request(0.1, Mode::Best);
    let seen = observe(&model, &calibration, best.collect()).expect("observes");
    let nats = PlanRequest { unit: ErrorUnit::Nats, ..best };
    let prefix = PlanRequest { methods: Methods { prefix: PrefixRefit::All, ..best.methods }, ..best };
    let served: Vec<_> = Mode::ALL.into_iter().filter(|mode| seen.serves(*mode)).collect();
    assert_eq!(served, [Mode::Paper, Mode::Best]);
    let honest = plan(&model, &seen, &best).expect("reachable");
    let dtype = model.checkpoint.dtype();
    let told = [
        (nats, "gradients of the loss are needed, and none were computed: observe the model with them"),
        (prefix, "a refit on the compressed prefix cannot be done in memory alone: use the command line"),
    ];
    for (request, expected) in told {
        let message = plan(&model, &seen, &request).expect_err("a run").to_string();
        assert_eq!(message, expected);
        let edited = Plan { unit: request.unit, methods: request.methods, ..honest.clone() };
        let mut files = BTreeMap::new();
        in_memory::compress(&model, &calibration, &seen, &edited, dtype, &mut files, |_| {}).expect_err("a run");
    }
}

#[test]
fn what_a_mode_needs_serves_it_and_what_takes_no_more() {
    let model = open("opt-tiny-stories");
    let calibration = stories(&model, 2, 32);
    let with_inputs = [Mode::Paper, Mode::Best, Mode::Svd, Mode::Asvd, Mode::SvdLlm, Mode::Sliced];
    for mode in Mode::ALL {
        let (collect, gradient_tokens) = in_memory::needs(mode);
        let seen = observe_with_gradients(&model, &calibration, collect, gradient_tokens).expect("observes");
        let served: Vec<_> = Mode::ALL.into_iter().filter(|other| seen.serves(*other)).collect();
        match mode {
            Mode::Paper | Mode::Best => assert_eq!(served, [Mode::Paper, Mode::Best]),
            Mode::Fwsvd => assert_eq!(served, Mode::ALL),
            _ => assert_eq!(served, with_inputs),
        }
    }
}

#[test]
fn a_refit_on_the_prefix_takes_many_samples_and_norms_before_modules() {
    let model = open("opt-tiny-stories");
    // 16 tokens for each of 384 hidden units.
    let (few, many) = (stories(&model, 23, 256), stories(&model, 24, 256));
    let plain = request(0.1, Mode::Best);
    let fisher = PlanRequest { unit: ErrorUnit::Nats, ..plain };
    let usual = |request: PlanRequest, samples| request.usual_prefix(model.config(), samples);
    assert_eq!([usual(plain, &many), usual(fisher, &many)], [PrefixRefit::All; 2]);
    assert_eq!([usual(plain, &few), usual(fisher, &few)], [PrefixRefit::None; 2]);
    assert_eq!(usual(request(0.1, Mode::Paper), &many), PrefixRefit::None);
    let post = ModelConfig { norm_placement: NormPlacement::Post, ..model.config().clone() };
    assert_eq!(fisher.usual_prefix(&post, &many), PrefixRefit::None);
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
