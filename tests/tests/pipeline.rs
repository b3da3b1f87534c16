//! The stages together, on real models.

#![expect(clippy::print_stdout, reason = "what was measured is worth reading")]

use std::path::Path;

use modegpt::architecture::WeightProvider;
use modegpt::calibration::{Collect, GramPath};
use modegpt::checkpoint::Existing;
use modegpt::compress::{ErrorUnit, Methods, Mode, PrefixRefit, Target};
use modegpt::model_runtime::Compute;
use modegpt::run::{
    AllocationChoice, CalibrationRun, CompressionOptions, CompressionResult, PlanRequest, PlanSource, StatisticsFolder,
    calibrate, compress, merge_statistics,
};
use modegpt::{Calibration, Model};
use modegpt_tests::{differences, logits, open, open_folder, stories, stories_after};

fn run<'a>(model: &'a Model, calibration: &'a Calibration, compute: &'a Compute) -> CalibrationRun<'a> {
    CalibrationRun {
        collect: Collect { logits: true, inputs: true, magnitudes: true },
        batch_tokens: 1024,
        ..CalibrationRun::new(model, calibration, compute, GramPath::Host)
    }
}

fn options(sparsity: f64, allocation: AllocationChoice) -> CompressionOptions {
    let request = PlanRequest { allocation, ..PlanRequest::new(Target::Sparsity(sparsity), Mode::Paper) };
    CompressionOptions { strict: true, ..CompressionOptions::new(PlanSource::Make(request)) }
}

fn shrink(model: &Model, n_samples: usize, options: &CompressionOptions, target: &Path) -> CompressionResult {
    // As long as what is scored below: a learned position that calibration never saw is not protected.
    let calibration = stories(model, n_samples, 256);
    let compute = Compute::host();
    pollster::block_on(compress(&run(model, &calibration, &compute), options, target)).expect("compresses")
}

fn perplexity(model: &Model) -> f64 {
    modegpt_tests::perplexity(model, 100_000)
}

#[test]
fn sparsity_zero_changes_no_logit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["opt-tiny-stories", "stories260k", "gpt2-tiny-stories"] {
        let model = open(name);
        let target = folder.path().join(name);
        let result = shrink(&model, 4, &options(0.0, AllocationChoice::Paper), &target);
        assert_eq!(result.params.0, result.params.1);
        let ids: Vec<u32> = (3..60).collect();
        let compute = Compute::host();
        let same = logits(&open_folder(&target), &ids, &compute) == logits(&model, &ids, &compute);
        assert!(same, "{name}: logits differ");
    }
}

/// The bounds are 10 % above what was measured with this protocol, and far below what a fault gives: dropping the refit of
/// the MLP alone costs half of the perplexity again.
#[test]
fn compression_meets_the_target_and_keeps_the_model_useful() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, sparsity, most) in
        [("opt-tiny-stories", 0.3, 1.16), ("gpt2-tiny-stories", 0.3, 1.16), ("stories260k", 0.1, 2.0)]
    {
        let model = open(name);
        let target = folder.path().join(name);
        let result = shrink(&model, 64, &options(sparsity, AllocationChoice::Uniform), &target);
        let totals = result.report.totals;
        assert!((totals.sparsity - sparsity).abs() < 0.01, "{name}: {} removed", totals.sparsity);
        let small = open_folder(&target);
        assert_eq!(small.params(), result.params.1);
        assert_eq!(small.config().block_params() as u64, totals.block_params_after);
        assert_eq!(small.checkpoint.bytes(), result.bytes.1);
        let ratio = perplexity(&small) / perplexity(&model);
        println!("{name} at {sparsity}: perplexity x {ratio:.4}");
        assert!((1.0..most).contains(&ratio), "{name}: perplexity x {ratio}");
    }
}

/// Mode best against the paper's methods at the same size, with and without what it may use beside. The rise of the logarithm
/// of the perplexity, measured:
///
/// | | paper, the better | best | with prefix | with gradients |
/// | --- | ---: | ---: | ---: | ---: |
/// | opt-tiny-stories, gpt2-tiny-stories | 0.087 | 0.041 | 0.037 | 0.009 |
/// | stories260k | 1.38 | 1.04 | 0.98 | 1.31 |
///
/// Errors of the last are far from small, so that gradients, which tell of small ones, gain little: a trial on held-out text
/// tells, and leaves them out. Bounds are the measured shares and a tenth.
#[test]
fn mode_best_loses_far_less_than_the_paper() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, most) in [
        ("opt-tiny-stories", [0.53, 0.47, 0.115]),
        ("stories260k", [0.83, 0.78, 1.0]),
        ("gpt2-tiny-stories", [0.53, 0.47, 0.115]),
    ] {
        let model = open(name);
        let dense = perplexity(&model).ln();
        let calibration = stories(&model, 64, 256);
        let compute = Compute::host();
        let held_out = stories_after(&model, 4, 256);
        let rise = |label: &str, request: PlanRequest, held_out: Option<&Calibration>| {
            let gradient_tokens = (request.unit == ErrorUnit::Nats).then_some(2048);
            let run = CalibrationRun { gradient_tokens, ..run(&model, &calibration, &compute) };
            let plan = PlanSource::Make(request);
            let held_out = held_out.cloned();
            let options = CompressionOptions { plan, held_out, strict: false, ..options(0.3, AllocationChoice::Paper) };
            let target = folder.path().join(format!("{name}-{label}"));
            let result = pollster::block_on(compress(&run, &options, &target)).expect("compresses");
            assert!((result.report.totals.sparsity - 0.3).abs() < 0.01, "{}", result.report.totals.sparsity);
            assert!(request.allocation != AllocationChoice::ErrorCurves || result.plan.predicted_error().is_some());
            let rise = perplexity(&open_folder(&target)).ln() - dense;
            println!("{name}, {label}: {rise:.4}");
            rise
        };
        let best = PlanRequest::new(Target::Sparsity(0.3), Mode::Best);
        let paper = PlanRequest::new(Target::Sparsity(0.3), Mode::Paper);
        let uniform = PlanRequest { allocation: AllocationChoice::Uniform, ..paper };
        let papers = rise("uniform", uniform, None).min(rise("paper", paper, None));
        let plain = rise("best", best, None);
        let refitted = PlanRequest { methods: Methods { prefix: PrefixRefit::All, ..best.methods }, ..best };
        let prefix = rise("prefix", refitted, None);
        let nats = PlanRequest { unit: ErrorUnit::Nats, ..best };
        let fisher = rise("fisher", nats, None);
        // One of the two, to the bit, and the better.
        let chosen = rise("chosen", nats, Some(&held_out));
        assert!(chosen.total_cmp(&plain.min(fisher)).is_eq(), "{name}: {chosen}, from {plain} and {fisher}");
        let shares = [plain, prefix, fisher].map(|rise| rise / papers);
        assert!(shares.iter().zip(&most).all(|(share, most)| share < most), "{name}: {shares:?}, at most {most:?}");
    }
}

#[test]
fn layers_may_be_uneven_and_a_compressed_model_compresses_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["opt-tiny-stories", "stories260k"] {
        let model = open(name);
        let once = folder.path().join(format!("{name}-once"));
        shrink(&model, 16, &options(0.2, AllocationChoice::Paper), &once);
        let small = open_folder(&once);
        let widths: std::collections::BTreeSet<usize> = small.config().layers.iter().map(|l| l.d_ff).collect();
        assert!(widths.len() > 1, "{name}: all layers have the same width");
        let twice = folder.path().join(format!("{name}-twice"));
        let result = shrink(&small, 16, &options(0.2, AllocationChoice::Paper), &twice);
        let smaller = open_folder(&twice);
        assert!(smaller.params() < small.params());
        assert_eq!(smaller.config().d_head, model.config().d_head);
        assert!(result.report.totals.sparsity > 0.15);
        assert!(perplexity(&smaller).is_finite());
    }
}

#[test]
fn statistics_merge_to_the_bits_of_one_go() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let model = open("stories260k");
    let compute = Compute::host();
    let all = stories(&model, 8, 64);
    let half = |range: std::ops::Range<usize>| {
        let ids = all.windows.ids[range.start * 64..range.end * 64].to_vec();
        let token_hash = modegpt::text_tools::token_hash(&ids);
        Calibration { windows: modegpt::text_tools::Windows { ids, n: range.len(), seq_len: 64 }, token_hash }
    };
    let collect = |calibration: &Calibration, n_shards: usize, name: &str| {
        let run = CalibrationRun { n_shards, batch_tokens: 128, ..run(&model, calibration, &compute) };
        pollster::block_on(calibrate(&run, &at(name), Existing::Refuse)).expect("calibrates");
        StatisticsFolder::new(at(name))
    };
    let whole = collect(&all, 2, "whole");
    let parts = [collect(&half(0..4), 1, "first"), collect(&half(4..8), 1, "second")];
    merge_statistics(&model, &parts, &at("merged"), Existing::Refuse).expect("merges");
    let merged = StatisticsFolder::new(at("merged"));
    for layer in 0..model.config().layers.len() {
        let read = |folder: &StatisticsFolder| folder.read(layer, model.fingerprint()).expect("readable").0;
        assert!(read(&whole) == read(&merged), "layer {layer} differs");
    }
}

#[test]
fn a_stream_on_the_disk_gives_the_same_statistics() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = open("opt-tiny-stories");
    let compute = Compute::host();
    let calibration = stories(&model, 64, 128);
    let collect = |max_host_bytes: Option<u64>, name: &str| {
        let run = CalibrationRun { max_host_bytes, ..run(&model, &calibration, &compute) };
        let plan = run.memory_plan(false);
        pollster::block_on(calibrate(&run, &folder.path().join(name), Existing::Refuse)).expect("calibrates");
        (StatisticsFolder::new(folder.path().join(name)), plan)
    };
    let (in_memory, plan) = collect(None, "memory");
    let (on_disk, tight) = collect(Some(plan.host_bytes - 1), "disk");
    assert!(tight.stream_on_disk && !plan.stream_on_disk);
    for layer in 0..model.config().layers.len() {
        let read = |folder: &StatisticsFolder| folder.read(layer, model.fingerprint()).expect("readable").0;
        assert!(read(&in_memory) == read(&on_disk), "layer {layer} differs");
    }
}

#[test]
fn block_influence_and_grams_agree_with_a_direct_computation() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = open("opt-tiny-stories");
    let compute = Compute::host();
    let calibration = stories(&model, 2, 32);
    let run = run(&model, &calibration, &compute);
    pollster::block_on(calibrate(&run, &folder.path().join("s"), Existing::Refuse)).expect("calibrates");
    let (seen, _) = StatisticsFolder::new(folder.path().join("s")).read(0, model.fingerprint()).expect("readable");

    let config = model.config();
    let weights = model.checkpoint.layer(0).expect("readable");
    let block = modegpt::model_runtime::Block::new(weights, &config.layers[0], config, &compute);
    let embedder = modegpt::model_runtime::Embedder::new(&model.checkpoint, &compute).expect("readable");
    let x = embedder.embed(&model.checkpoint, &calibration.windows.ids, 2, 0, &compute).expect("known ids");
    let (_, observed) = block.observe(x);
    let hidden = pollster::block_on(compute.read(observed.hidden)).expect("readable");
    let d_ff = config.layers[0].d_ff;
    for (i, j) in [(0, 0), (5, 3), (100, 7), (383, 200), (383, 383)] {
        let column = |c: usize| hidden.iter().skip(c).step_by(d_ff).map(|v| f64::from(*v));
        let direct: f64 = column(i).zip(column(j)).map(|(a, b)| a * b).sum();
        let scale = (seen.mlp.get(i, i) * seen.mlp.get(j, j)).sqrt().max(1e-12);
        assert!((seen.mlp.get(i, j) - direct).abs() <= 1e-6 * scale, "[{i}, {j}]: {} not {direct}", seen.mlp.get(i, j));
    }
    assert_eq!(seen.n_tokens, 64);
    assert!(seen.block_influence() > 0.0 && seen.block_influence() < 2.0);
}

#[test]
fn logits_do_not_depend_on_the_batch() {
    let model = open("stories260k");
    let compute = Compute::host();
    let ids: Vec<u32> = (10..74).collect();
    let whole = logits(&model, &ids, &compute);
    let prefix = logits(&model, &ids[..32], &compute);
    let (most, _) = differences(&whole[..prefix.len()], &prefix);
    assert!(most < 1e-4, "a token sees later ones: {most}");
}
