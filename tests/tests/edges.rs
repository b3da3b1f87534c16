//! Models and calibrations at the edge of what a decomposition can use: each is compressed to something sane.

#![expect(clippy::print_stdout, reason = "what was measured is worth reading")]

use modegpt::architecture::LayerWeights;
use modegpt::calibration::GramPath;
use modegpt::compress::{ErrorUnit, LayerReport, Methods, Mode, PrefixRefit, Report, Rounding, Target};
use modegpt::model_runtime::Compute;
use modegpt::run::{CalibrationRun, CompressionOptions, PlanRequest, PlanSource, RunError, compress};
use modegpt::text_tools::{Windows, token_hash};
use modegpt::{Calibration, Model};
use modegpt_tests::{Replaced, differences, files_of, logits, open, open_folder, stories};
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
    /// Errors weighed with gradients of the loss.
    fisher: bool,
}

impl Way {
    const fn new(mode: Mode, prefix: PrefixRefit) -> Self {
        Self { mode, prefix, fisher: false }
    }

    fn request(self, sparsity: f64) -> PlanRequest {
        let usual = PlanRequest::new(Target::Sparsity(sparsity), self.mode);
        let unit = if self.fisher { ErrorUnit::Nats } else { usual.unit };
        PlanRequest { methods: Methods { prefix: self.prefix, ..usual.methods }, unit, ..usual }
    }
}

/// What takes whole modules.
const WAYS: [Way; 4] = [
    Way::new(Mode::Paper, PrefixRefit::None),
    Way::new(Mode::Best, PrefixRefit::None),
    Way::new(Mode::Best, PrefixRefit::All),
    Way { fisher: true, ..Way::new(Mode::Best, PrefixRefit::All) },
];

/// What is weighed by statistics, map by map, or only cut.
const OTHERS: [Way; 4] = [
    Way::new(Mode::Fwsvd, PrefixRefit::None),
    Way::new(Mode::Asvd, PrefixRefit::None),
    Way::new(Mode::SvdLlm, PrefixRefit::None),
    Way::new(Mode::Sliced, PrefixRefit::None),
];

/// Compresses, and tells what it cost.
fn shrink(model: &Model, calibration: &Calibration, way: Way, sparsity: f64) -> (Stored, Report) {
    shrink_as_asked(model, calibration, way.request(sparsity)).unwrap_or_else(|error| panic!("{way:?}: {error}"))
}

fn shrink_as_asked(
    model: &Model,
    calibration: &Calibration,
    request: PlanRequest,
) -> Result<(Stored, Report), RunError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let compute = Compute::host();
    let run = CalibrationRun {
        collect: request.collect(),
        gradient_tokens: (request.unit == ErrorUnit::Nats).then_some(512),
        ..CalibrationRun::new(model, calibration, &compute, GramPath::Host)
    };
    let options = CompressionOptions::new(PlanSource::Make(request));
    let result = pollster::block_on(compress(&run, &options, &folder.path().join("small")))?;
    Ok((Stored { model: open_folder(result.folder), _folder: folder }, result.report))
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

/// A model with a layer whose hidden units are zero for every token, or constant if `biases` stay.
fn without_hidden_units(name: &str, biases: bool) -> Stored {
    edited(&open(name), |weights| {
        weights.up.weight.data.fill(0.0);
        if let Some(bias) = weights.up.bias.as_mut().filter(|_| !biases) {
            bias.fill(0.0);
        }
    })
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
/// 1.02 and 1.01 by the paper, 1.01 and 1.00 in mode best; stories260k 1.61 and 1.33 by the paper, 1.56 and 1.16 in mode best,
/// and with gradients of these 64 tokens, untried on others, 1.99 and 1.16.
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
            assert!(few < 1.8 * plenty, "{name}, {way:?}: {few} and {plenty}");
        }
    }
}

/// Where biases stay, every hidden unit is constant instead: that is for the output bias to carry.
#[test]
fn a_layer_whose_hidden_units_are_all_dead_gives_what_it_can() {
    for (name, biases) in [("opt-tiny-stories", false), ("opt-tiny-stories", true), ("stories260k", false)] {
        let dead = without_hidden_units(name, biases);
        let calibration = stories(&dead.model, 16, 128);
        for way in WAYS {
            let (small, report) = shrink(&dead.model, &calibration, way, 0.1);
            let growth = growth(&format!("{name}, {way:?}"), &small.model, &dead.model);
            assert!(growth < 2.0, "{name}, {way:?}: {growth}");
            let layer = &report.layers[EDITED];
            assert!(layer.after.d_ff < layer.before.d_ff, "{layer:?}");
            // The paper's refit has no bias to carry what is constant.
            let most = if biases { 1e-6 } else { 0.0 };
            assert!(layer.mlp.relative_error <= most, "{name}, {way:?}: {layer:?}");
            assert_eq!(layer.mlp.fallbacks, 0, "{name}, {way:?}");
            if way.mode == Mode::Best {
                let least = report.layers.iter().map(|layer| layer.after.d_ff).min();
                assert_eq!(Some(layer.after.d_ff), least, "what costs nothing goes first");
            }
        }
    }
}

/// The same layer without an MLP to speak of, map by map: the down map never gets an input, so that nothing is lost of it.
#[test]
fn maps_that_never_get_an_input_are_no_obstacle() {
    for name in MODELS {
        let dead = without_hidden_units(name, false);
        let calibration = stories(&dead.model, 16, 128);
        for way in OTHERS {
            let (small, report) = shrink(&dead.model, &calibration, way, 0.3);
            growth(&format!("{name}, {way:?}"), &small.model, &dead.model);
            let layer = &report.layers[EDITED];
            if way.mode == Mode::Sliced {
                assert!(layer.after.d_ff < layer.before.d_ff && layer.mlp.relative_error <= 0.0, "{layer:?}");
            } else {
                let down = layer.maps.iter().find(|map| map.name.as_str() == "down").expect("reported");
                assert!(down.rank.is_some() && down.relative_error <= 0.0, "{name}, {way:?}: {down:?}");
            }
        }
    }
}

/// One kv head whose values, and one whose keys, are zero for every token.
#[test]
fn heads_that_deliver_nothing_give_what_they_can() {
    for name in MODELS {
        let model = open(name);
        let d_head = model.config().layers[EDITED].d_v;
        let silence = |weights: &mut LayerWeights| {
            for (linear, head) in [(&mut weights.value, 0), (&mut weights.key, 1)] {
                let head = head * d_head..(head + 1) * d_head;
                let cols = linear.weight.cols;
                for row in linear.weight.data.chunks_exact_mut(cols).chain(linear.bias.as_deref_mut()) {
                    row[head.clone()].fill(0.0);
                }
            }
        };
        let dead = edited(&model, silence);
        let calibration = stories(&dead.model, 16, 128);
        for way in [WAYS.as_slice(), &OTHERS].concat() {
            let (small, whole) = shrink(&model, &calibration, way, 0.1);
            let intact = growth(&format!("{name}, {way:?}"), &small.model, &model);
            let (small, report) = shrink(&dead.model, &calibration, way, 0.1);
            let growth = growth(&format!("{name} with dead heads, {way:?}"), &small.model, &dead.model);
            assert!(growth < 1.5 * intact, "{name}, {way:?}: {growth}, intact {intact}");
            let LayerReport { query_key, value_output, maps, .. } = &report.layers[EDITED];
            let told = [query_key.relative_error, value_output.relative_error];
            assert!(told.iter().all(|error| (0.0..0.9).contains(error)), "{name}, {way:?}: {told:?}");
            // Where inputs of a map that is weighed by them are zero, that takes jitter.
            assert!(!maps.is_empty() || report.fallbacks <= whole.fallbacks, "{name}, {way:?}: {}", report.fallbacks);
        }
    }
}

/// A model whose final norm is zero says the same whatever it reads. Nothing but gradients can see that, and they do not pass
/// it over.
#[test]
fn gradients_that_are_zero_everywhere_are_refused() {
    let mut files = files_of("stories260k");
    let bytes = files.0.get_mut("model.safetensors").expect("weights");
    let n_header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n_header]).expect("a header");
    let offset = |end: usize| header["model.norm.weight"]["data_offsets"][end].as_u64().expect("an offset") as usize;
    bytes[8 + n_header..][offset(0)..offset(1)].fill(0);
    let mute = Model::open(std::sync::Arc::new(files)).expect("a model");
    let calibration = stories(&mute, 4, 64);
    for way in [WAYS[3], OTHERS[0]] {
        let error = shrink_as_asked(&mute, &calibration, way.request(0.2)).err().expect("refused").to_string();
        assert!(error.contains("the gradient of the loss is zero for all that layer 4 puts out"), "{way:?}: {error}");
    }
    shrink(&mute, &calibration, WAYS[1], 0.2);
}

/// A layer that is narrower than a step of its widths keeps them, and the others give what is asked.
#[test]
fn layers_that_nothing_may_shrink_stay_as_they_are() {
    for name in MODELS {
        let model = open(name);
        let calibration = stories(&model, 16, 128);
        let (small, report) = shrink(&model, &calibration, WAYS[1], 0.3);
        let widths = |report: &Report| report.layers.iter().map(|layer| layer.after).collect::<Vec<_>>();
        let before = widths(&report);
        let least = before.iter().map(|widths| widths.d_ff).min().expect("layers");
        let rounding = Rounding { ff: least + 1, ..Rounding::default_for(model.config()) };
        for way in &WAYS[..2] {
            let request = PlanRequest { rounding: Some(rounding), ..way.request(0.1) };
            let again = shrink_as_asked(&small.model, &calibration, request).expect("the others can give it");
            let after = widths(&again.1);
            println!("{name}, {way:?}: {before:?} {after:?}");
            assert!(before.iter().zip(&after).all(|(before, after)| before.d_ff > least || before.d_ff == after.d_ff));
            assert!(again.1.totals.sparsity > 0.05, "{name}, {way:?}: {:?}", again.1.totals);
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
            assert!(growth < 2.0, "{name}, {way:?}: {growth}");
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
            assert!(growth < 1.5, "{name}, {way:?}: {growth}");
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
            let of = |module: fn(&LayerReport) -> u32| report.layers.iter().map(module).sum::<u32>();
            let [mlp, query_key, value_output] =
                [of(|l| l.mlp.fallbacks), of(|l| l.query_key.fallbacks), of(|l| l.value_output.fallbacks)];
            println!(
                "{name}, {way:?}: logits {most:.2e}, {mean:.2e}; {} fallbacks, {mlp} in the MLP, {query_key} in query and \
                 key, {value_output} in value and output",
                report.fallbacks
            );
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
