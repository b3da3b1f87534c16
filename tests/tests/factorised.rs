//! Maps that are held as products: the same function, counted and stored as what they are, refused where they cannot be.

#![expect(clippy::print_stdout, reason = "what was measured is worth reading")]

use std::path::Path;
use std::sync::Arc;

use modegpt::Model;
use modegpt::architecture::{DType, FactorRanks, MapName, ModelConfig, WeightProvider, family};
use modegpt::calibration::{Collect, GramPath};
use modegpt::checkpoint::{Existing, MemorySource, SaveError, layer_tensors, shard_name, write_layer};
use modegpt::compress::{Mode, Target};
use modegpt::model_runtime::{Compute, Decoder};
use modegpt::run::{
    CalibrationRun, CompressionOptions, PlanRequest, PlanSource, StatisticsFolder, calibrate, compress,
};
use modegpt_tests::{
    differences, factorised, logits, logits_of, multiplied_out, open, open_folder, stories, uneven_rank,
};
use serde_json::{Value, json};

const MODELS: [&str; 3] = ["opt-tiny-stories", "stories260k", "gpt2-tiny-stories"];
/// The same sums in another order, and factors rounded to f32; logits are of order 10.
const MOST: f32 = 1e-4;

fn ids() -> Vec<u32> {
    (3..60).collect()
}

fn check_close(name: &str, found: &[f32], expected: &[f32], most: f32) {
    let (largest, _) = differences(found, expected);
    println!("{name}: largest difference {largest:.2e}");
    assert!(largest <= most, "{name}: {largest} > {most}");
}

#[test]
fn full_rank_gives_the_logits_of_the_dense_model() {
    let compute = Compute::host();
    for name in MODELS {
        let model = open(name);
        let full = factorised(&model, |_, map| Some(map.full_rank()));
        assert!(full.config().layers.iter().all(|shape| {
            MapName::ALL.iter().all(|name| *name == MapName::Gate || shape.ranks.get(*name).is_some())
        }));
        check_close(name, &logits_of(&full, &ids(), &compute), &logits(&model, &ids(), &compute), MOST);
    }
}

#[test]
fn factors_of_any_ranks_give_the_logits_of_their_products_from_memory_from_a_folder_and_from_a_cache() {
    let (compute, folder) = (Compute::host(), tempfile::tempdir().expect("a temporary folder"));
    for name in MODELS {
        let model = open(name);
        let made = factorised(&model, uneven_rank);
        let expected = logits_of(&multiplied_out(&made), &ids(), &compute);
        let (moved, _) = differences(&expected, &logits(&model, &ids(), &compute));
        assert!(moved > 100.0 * MOST, "{name}: nothing was truncated: {moved}");
        check_close(name, &logits_of(&made, &ids(), &compute), &expected, MOST);

        let target = folder.path().join(name);
        made.write(&target).expect("no map grows");
        let stored = open_folder(&target);
        assert_eq!(stored.config(), made.config());
        // Models in f16 keep their factors in f16; measured were 4e-3.
        let rounded = if stored.checkpoint.dtype() == DType::F32 { MOST } else { 2e-2 };
        let from_folder = logits(&stored, &ids(), &compute);
        check_close(&format!("{name}, stored"), &from_folder, &expected, rounded);

        let mut decoder = Decoder::new(&stored.checkpoint, ids().len(), &compute).expect("fits");
        let vocab = stored.config().vocab;
        let text = ids();
        let (prompt, rest) = text.split_at(40);
        let mut last = pollster::block_on(decoder.next_logits(prompt)).expect("finite");
        for next in rest.chunks(1) {
            last = pollster::block_on(decoder.next_logits(next)).expect("finite");
        }
        check_close(&format!("{name}, cached"), &last, &from_folder[from_folder.len() - vocab..], MOST);
    }
}

/// Calls `check` with the name of every model, a stored one with some maps as products, and its folder.
fn for_each_stored(check: impl Fn(&str, &Model, &Path)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in MODELS {
        let target = folder.path().join(name);
        factorised(&open(name), uneven_rank).write(&target).expect("no map grows");
        check(name, &open_folder(&target), &target);
    }
}

#[test]
fn a_stored_model_reads_back_and_is_written_again_byte_for_byte() {
    for_each_stored(|name, stored, target| {
        let (config, dtype) = (stored.config(), stored.checkpoint.dtype());
        let ranks: std::collections::BTreeSet<_> = config.layers.iter().map(|shape| shape.ranks.up).collect();
        assert!(ranks.len() > 2, "{name}: ranks are the same everywhere");
        for (index, shape) in config.layers.iter().enumerate() {
            let layer = stored.checkpoint.layer(index).expect("readable");
            assert_eq!(layer.ranks(), shape.ranks);
            let mut bytes = Vec::new();
            write_layer(config, index, shape, &layer, dtype, &mut bytes).expect("fits");
            let file = target.join(shard_name(index + 1, config.layers.len()));
            assert!(std::fs::read(&file).expect("there") == bytes, "{}", file.display());
        }
        let json = family::to_json(config, stored.checkpoint.config_json(), dtype);
        assert_eq!(&json, stored.checkpoint.config_json());
    });
}

#[test]
fn parameters_are_the_numbers_that_are_stored() {
    for_each_stored(|name, stored, _| {
        let model = open(name);
        let tensors = stored.checkpoint.index().entries();
        let numbers: usize = tensors.values().map(|entry| entry.shape.iter().product::<usize>()).sum();
        assert_eq!(stored.params(), numbers as u64, "{name}");
        assert_eq!(stored.checkpoint.bytes(), (numbers * stored.checkpoint.dtype().size()) as u64);
        assert!(stored.params() < model.params());
        // What is gone is gone from the linear maps.
        let gone = model.config().block_params() - stored.config().block_params();
        assert_eq!(model.params() - stored.params(), gone as u64);
        let factors = |part: &str| tensors.keys().filter(|key| key.ends_with(part)).count();
        let products: usize =
            stored.config().layers.iter().flat_map(|shape| MapName::ALL.map(|m| shape.ranks.get(m))).flatten().count();
        assert_eq!((factors(".a.weight"), factors(".b.weight"), factors(".a.bias")), (products, products, 0));
    });
}

#[test]
fn query_key_and_value_of_gpt2_are_apart_only_where_one_of_them_is_a_product() {
    let names = |ranks: FactorRanks| {
        let mut config = open("gpt2-tiny-stories").config().clone();
        config.layers[0].ranks = ranks;
        let specs = layer_tensors(&config, &family::keys(&config), "", 0, &config.layers[0]);
        let ours = specs
            .into_iter()
            .filter_map(|spec| Some((spec.name.strip_prefix("h.0.attn.c_attn.")?.to_owned(), spec.shape)));
        ours.collect::<Vec<_>>()
    };
    let own = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
    let down = FactorRanks { down: Some(5), ..FactorRanks::default() };
    assert_eq!(names(down), [own("weight", &[96, 288]), own("bias", &[288])]);
    let key = [own("key.a.weight", &[7, 96]), own("key.b.weight", &[96, 7]), own("key.b.bias", &[96])];
    let [query, value] =
        ["query", "value"].map(|name| [own(&format!("{name}.weight"), &[96, 96]), own(&format!("{name}.bias"), &[96])]);
    let apart = names(FactorRanks { key: Some(7), ..FactorRanks::default() });
    assert_eq!(apart, [&query[..], &key[..], &value[..]].concat());
}

#[test]
fn maps_that_would_grow_and_weights_that_do_not_fit_are_not_written() {
    let model = open("opt-tiny-stories");
    let written = |index: usize, rank: usize, change: fn(&mut ModelConfig)| {
        let made = factorised(&model, |_, map| (map.name == MapName::Up).then_some(rank));
        let mut config = made.config().clone();
        change(&mut config);
        let layer = made.layer(index).expect("in memory");
        write_layer(&config, index, &config.layers[index], &layer, DType::F32, &mut std::io::sink())
    };
    // 96 · 384 / (96 + 384) = 76.8
    written(2, 76, |_| ()).expect("does not grow");
    let error = written(2, 77, |_| ()).expect_err("grows");
    assert!(matches!(error, SaveError::Grows { layer: 2, name: MapName::Up, rank: 77, most: 76, .. }));
    assert_eq!(
        error.to_string(),
        "layer 2: the up map would grow: expected a rank of at most 76 for 96 x 384, found 77"
    );
    let error = written(1, 9, |config| config.layers[1].ranks.up = None).expect_err("a product, not a matrix");
    assert_eq!(error.to_string(), "layer 1: the up map expected 96 x 384, found 96 x 384 at rank 9");
    let error = written(1, 9, |config| config.layers[1].ranks.up = Some(8)).expect_err("another rank");
    assert_eq!(error.to_string(), "layer 1: the up map expected 96 x 384 at rank 8, found 96 x 384 at rank 9");
    let error = written(1, 9, |config| config.layers[1].ranks.key = Some(8)).expect_err("a matrix, not a product");
    assert_eq!(error.to_string(), "layer 1: the key map expected 96 x 96 at rank 8, found 96 x 96");
}

#[test]
fn a_factorised_model_calibrates_but_is_not_compressed_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    factorised(&open("stories260k"), uneven_rank).write(&at("model")).expect("no map grows");
    let model = open_folder(at("model"));
    let (calibration, compute) = (stories(&model, 2, 32), Compute::host());
    let run = CalibrationRun {
        collect: Collect { logits: true, inputs: true, magnitudes: true },
        batch_tokens: 64,
        ..CalibrationRun::new(&model, &calibration, &compute, GramPath::Host)
    };
    pollster::block_on(calibrate(&run, &at("statistics"), Existing::Refuse)).expect("calibrates");
    let (seen, _) = StatisticsFolder::new(at("statistics")).read(1, model.fingerprint()).expect("readable");
    assert_eq!(seen.n_tokens, 64);

    let make = PlanSource::Make(PlanRequest::new(Target::Sparsity(0.2), Mode::Best));
    let options = CompressionOptions::new(make);
    let error = pollster::block_on(compress(&run, &options, &at("out"))).expect_err("maps are products").to_string();
    assert!(error.starts_with("layer 1: the query map is a product of rank"), "{error}");
    assert!(!at("out").exists() && !at("out.partial").exists());
}

/// The files of a folder in memory, `config.json` parsed.
fn files_of(folder: &Path) -> (MemorySource, Value) {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("a file").path();
        let name = path.file_name().expect("named").to_string_lossy().into_owned();
        (name, std::fs::read(&path).expect("readable"))
    };
    let source: MemorySource = std::fs::read_dir(folder).expect("a folder").map(read).collect();
    let config = serde_json::from_slice(&source.0["config.json"]).expect("JSON");
    (source, config)
}

#[test]
fn configurations_that_lie_about_ranks_are_refused_by_name() {
    for_each_stored(|name, _, target| {
        let (source, config) = files_of(target);
        let mut tried = 0;
        for layer in 1..config["per_layer_config"].as_array().expect("a list").len() {
            let ranks = config["per_layer_config"][layer]["ranks"].as_object().expect("some are products").clone();
            for (map, rank) in &ranks {
                let rank = rank.as_u64().expect("a rank");
                for lie in [
                    json!(0),
                    json!(rank + 1),
                    json!(rank - 1),
                    json!(null),
                    json!(u64::MAX),
                    json!(1u64 << 40),
                    json!(-3),
                    json!("8"),
                    json!([8]),
                ] {
                    let mut config = config.clone();
                    config["per_layer_config"][layer]["ranks"][map] = lie.clone();
                    let mut changed = source.clone();
                    changed.0.insert("config.json".to_owned(), config.to_string().into_bytes());
                    let error = Model::open(Arc::new(changed)).map(drop).expect_err("a lie").to_string();
                    let names_place = error.contains(map) || error.contains(".weight") || error.contains("`ranks`");
                    assert!(names_place, "{name}, {map} of layer {layer} as {lie}: {error}");
                    tried += 1;
                }
            }
        }
        assert!(tried > 50, "{name}: only {tried}");
    });
}
