//! Models and calibrations at the edge of what a decomposition can use: each is compressed to something sane.

#![expect(clippy::print_stdout, reason = "what was measured is worth reading")]

use modegpt::architecture::LayerWeights;
use modegpt::calibration::GramPath;
use modegpt::compress::{Methods, Mode, PrefixRefit, Report, Target};
use modegpt::model_runtime::Compute;
use modegpt::run::{CalibrationRun, CompressionOptions, PlanRequest, PlanSource, compress};
use modegpt::text_tools::{Windows, token_hash};
use modegpt::{Calibration, Model};
use modegpt_tests::{Replaced, differences, logits, open, open_folder, stories};
use tempfile::TempDir;

const MODELS: [&str; 2] = ["opt-tiny-stories", "stories260k"];

/// Of the layer that is edited.
const EDITED: usize = 1;

/// A model in a folder that goes with it.
struct Stored {
    model: Model,
    _folder: TempDir,
}

/// The way a model is compressed.
#[derive(Clone, Copy, Debug)]
struct Way {
    mode: Mode,
    prefix: PrefixRefit,
}

const WAYS: [Way; 3] = [
    Way { mode: Mode::Paper, prefix: PrefixRefit::None },
    Way { mode: Mode::Best, prefix: PrefixRefit::None },
    Way { mode: Mode::Best, prefix: PrefixRefit::All },
];

/// Compresses, and tells what it cost.
fn shrink(model: &Model, calibration: &Calibration, way: Way, sparsity: f64) -> (Stored, Report) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (compute, usual) = (Compute::host(), PlanRequest::new(Target::Sparsity(sparsity), way.mode));
    let request = PlanRequest { methods: Methods { prefix: way.prefix, ..usual.methods }, ..usual };
    let run = CalibrationRun {
        collect: request.collect(),
        ..CalibrationRun::new(model, calibration, &compute, GramPath::Host)
    };
    let options = CompressionOptions::new(PlanSource::Make(request));
    let result = pollster::block_on(compress(&run, &options, &folder.path().join("small")));
    let result = result.unwrap_or_else(|error| panic!("{way:?}: {error}"));
    (Stored { model: open_folder(result.folder), _folder: folder }, result.report)
}

/// `model` with one layer changed.
fn edited(model: &Model, edit: impl Fn(&mut LayerWeights)) -> Stored {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let edit = |layer: usize, weights: &mut LayerWeights| {
        if layer == EDITED {
            edit(weights);
        }
    };
    Replaced::edited(model, edit).write(&folder.path().join("edited")).expect("written");
    Stored { model: open_folder(folder.path().join("edited")), _folder: folder }
}

fn perplexity(model: &Model) -> f64 {
    modegpt_tests::perplexity(model, 8_000)
}

/// By how much the perplexity grows; it is finite.
fn growth(name: &str, small: &Model, model: &Model) -> f64 {
    let growth = perplexity(small) / perplexity(model);
    println!("{name}: perplexity x {growth:.3}");
    assert!(growth.is_finite(), "{name}: {growth}");
    growth
}

/// One sample of 64 tokens for 384 and 172 hidden units. What it does not tell stays as it was, and nothing needs more ridge
/// than is added. Measured at 10 %, perplexity against that of the dense model with 64 and with 8192 tokens: opt-tiny-stories
/// 1.02 and 1.01 by the paper, 1.01 and 1.00 in mode best; stories260k 1.74 and 1.33 by the paper, 1.87 and 1.20 in mode best.
#[test]
fn fewer_tokens_than_hidden_units_leave_a_sane_model() {
    for name in MODELS {
        let model = open(name);
        let (few, plenty) = (stories(&model, 1, 64), stories(&model, 32, 256));
        for way in WAYS {
            let of = |label: &str, calibration| {
                let (small, report) = shrink(&model, calibration, way, 0.1);
                assert_eq!(report.fallbacks, 0, "{name}, {way:?}, {label}");
                growth(&format!("{name}, {way:?}, {label}"), &small.model, &model)
            };
            let (few, plenty) = (of("64 tokens", &few), of("plenty", &plenty));
            assert!(few < 3.0 * plenty, "{name}, {way:?}: {few} and {plenty}");
        }
    }
}

#[test]
fn a_layer_whose_hidden_units_are_all_dead_gives_what_it_can() {
    for name in MODELS {
        let silence = |weights: &mut LayerWeights| {
            weights.up.weight.data.fill(0.0);
            if let Some(bias) = &mut weights.up.bias {
                bias.fill(0.0);
            }
        };
        let dead = edited(&open(name), silence);
        let calibration = stories(&dead.model, 16, 128);
        for way in WAYS {
            let (small, report) = shrink(&dead.model, &calibration, way, 0.1);
            let growth = growth(&format!("{name}, {way:?}"), &small.model, &dead.model);
            assert!(growth < 2.0, "{name}, {way:?}: {growth}");
            let layer = &report.layers[EDITED];
            assert!(layer.after.d_ff < layer.before.d_ff && layer.mlp.relative_error <= 0.0, "{layer:?}");
            assert_eq!(layer.mlp.fallbacks, 0);
            if way.mode == Mode::Best {
                let least = report.layers.iter().map(|layer| layer.after.d_ff).min();
                assert_eq!(Some(layer.after.d_ff), least, "what costs nothing goes first");
            }
        }
    }
}

/// Every second unit computes what the one before it does. Elimination sees that; leverage scores, which are taken all at
/// once, find both of a pair easy to replace.
#[test]
fn units_that_are_there_twice_are_no_obstacle() {
    for name in MODELS {
        let model = open(name);
        let double = |weights: &mut LayerWeights| {
            let maps = std::iter::once(&mut weights.up).chain(&mut weights.gate);
            for map in maps {
                let rows = map.weight.data.chunks_exact_mut(map.weight.cols);
                for row in rows.chain(map.bias.as_deref_mut()) {
                    row.chunks_exact_mut(2).for_each(|pair| pair[1] = pair[0]);
                }
            }
        };
        let doubled = edited(&model, double);
        let calibration = stories(&doubled.model, 16, 128);
        for way in &WAYS[..2] {
            let (small, report) = shrink(&doubled.model, &calibration, *way, 0.1);
            let growth = growth(&format!("{name}, {way:?}"), &small.model, &doubled.model);
            let layer = &report.layers[EDITED];
            println!("  {:?} -> {:?}, {:?}", layer.before, layer.after, layer.mlp);
            assert!(growth < 3.0, "{name}, {way:?}: {growth}");
            if way.mode == Mode::Best {
                assert!(layer.after.d_ff < layer.before.d_ff && layer.mlp.relative_error < 0.05, "{layer:?}");
            }
        }
    }
}

/// A unit that is 256 times as large as it was, and counts for as little: its energy is most of that of the layer.
#[test]
fn one_unit_of_enormous_activation_does_not_hide_the_others() {
    for name in MODELS {
        let enlarge = |weights: &mut LayerWeights| {
            let cols = weights.up.weight.cols;
            for row in weights.up.weight.data.chunks_exact_mut(cols).chain(weights.up.bias.as_deref_mut()) {
                row[7] *= 256.0;
            }
            let width = weights.down.weight.cols;
            weights.down.weight.data[7 * width..8 * width].iter_mut().for_each(|value| *value /= 256.0);
        };
        let outlier = edited(&open(name), enlarge);
        let calibration = stories(&outlier.model, 16, 128);
        for way in &WAYS[..2] {
            let (small, _) = shrink(&outlier.model, &calibration, *way, 0.1);
            let growth = growth(&format!("{name}, {way:?}"), &small.model, &outlier.model);
            assert!(growth < 3.0, "{name}, {way:?}: {growth}");
        }
    }
}

/// One token again and again: the hidden units of a rotary model are the same everywhere, and their Gram matrix has rank 1.
/// Nothing can be learnt from it but that text, and of that nothing is lost.
#[test]
fn a_text_of_one_token_is_enough_for_that_text() {
    for name in MODELS {
        let model = open(name);
        let (n, seq_len) = (2, 64);
        let ids = vec![300; n * seq_len];
        let token_hash = token_hash(&ids);
        let calibration = Calibration { windows: Windows { ids, n, seq_len }, token_hash };
        let compute = Compute::host();
        let ids = &calibration.windows.ids[..seq_len];
        let expected = logits(&model, ids, &compute);
        for way in WAYS {
            let (small, report) = shrink(&model, &calibration, way, 0.1);
            let (most, mean) = differences(&logits(&small.model, ids, &compute), &expected);
            println!("{name}, {way:?}: logits {most:.2e}, {mean:.2e}; {} fallbacks", report.fallbacks);
            growth(&format!("{name}, {way:?}"), &small.model, &model);
            assert!(most < 0.1, "{name}, {way:?}: {most}");
        }
    }
}

#[test]
fn a_sparsity_too_small_for_a_single_step_removes_nothing() {
    let ids: Vec<u32> = (3..60).collect();
    let compute = Compute::host();
    for name in MODELS {
        let model = open(name);
        let calibration = stories(&model, 4, 64);
        for way in WAYS {
            let (small, report) = shrink(&model, &calibration, way, 1e-6);
            assert!(report.layers.iter().all(|layer| layer.before == layer.after), "{name}, {way:?}");
            assert_eq!((small.model.params(), report.fallbacks), (model.params(), 0), "{name}, {way:?}");
            let (most, _) = differences(&logits(&small.model, &ids, &compute), &logits(&model, &ids, &compute));
            assert!(most <= 0.0, "{name}, {way:?}: logits differ by {most}");
        }
    }
}
