//! Logits and losses equal those of the reference implementation.

#![expect(clippy::print_stdout, reason = "what was measured is worth reading")]

use modegpt::checkpoint::{FolderSource, TensorIndex};
use modegpt::model_runtime::{Compute, Decoder};
use modegpt_tests::{data_folder, differences, logits, open, read_text};
use serde_json::Value;

/// Two f32 implementations of the same function; logits are of order 10.
const MOST: f32 = 2e-3;
const MEAN: f32 = 2e-4;

struct Reference {
    ids: Vec<u32>,
    nll: Vec<f64>,
    /// All logits where they are stored, else none.
    logits: Option<Vec<f32>>,
    last_ids: Vec<usize>,
    last_values: Vec<f32>,
}

fn reference(name: &str) -> Reference {
    let json: Value = serde_json::from_str(&read_text(&format!("models/{name}/reference.json"))).expect("JSON");
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
    };
    let source = FolderSource::new(data_folder().join("models").join(name));
    let has_all = data_folder().join("models").join(name).join("reference.safetensors").exists();
    let stored = || {
        let bytes = modegpt::checkpoint::read_file(&source, "reference.safetensors", 1 << 24).expect("readable");
        let memory = modegpt::checkpoint::MemorySource::from_iter([("model.safetensors", bytes)]);
        let index = TensorIndex::open(&memory).expect("a safetensors file");
        index.read_f32(&memory, "logits").expect("readable")
    };
    let top = &json["last_logits_top10"];
    Reference {
        ids: numbers(&json["input_ids"]).into_iter().map(|id| id as u32).collect(),
        nll: numbers(&json["nll"]),
        logits: has_all.then(stored),
        last_ids: numbers(&top["ids"]).into_iter().map(|id| id as usize).collect(),
        last_values: numbers(&top["values"]).into_iter().map(|v| v as f32).collect(),
    }
}

fn nll(logits: &[f32], ids: &[u32], vocab: usize) -> Vec<f64> {
    ids[1..]
        .iter()
        .zip(logits.chunks_exact(vocab))
        .map(|(target, row)| {
            let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            sum.ln() - f64::from(row[*target as usize])
        })
        .collect()
}

fn check(name: &str) {
    let model = open(name);
    let reference = reference(name);
    let vocab = model.config().vocab;
    let found = logits(&model, &reference.ids, &Compute::host());
    if let Some(expected) = &reference.logits {
        let (most, mean) = differences(&found, expected);
        println!("{name}: largest difference {most:.2e}, mean {mean:.2e}");
        assert!(most <= MOST && mean <= MEAN, "{name}: {most} > {MOST} or {mean} > {MEAN}");
    }
    let last = &found[found.len() - vocab..];
    for (id, expected) in reference.last_ids.iter().zip(&reference.last_values) {
        assert!((last[*id] - expected).abs() <= MOST, "{name}: logit of {id} is {}, not {expected}", last[*id]);
    }
    for (place, (found, expected)) in nll(&found, &reference.ids, vocab).iter().zip(&reference.nll).enumerate() {
        assert!((found - expected).abs() <= 1e-3, "{name}: loss of token {} is {found}, not {expected}", place + 1);
    }
}

#[test]
fn opt_agrees_with_the_reference() {
    check("opt-tiny-stories");
    check("opt-small-stories");
}

#[test]
fn llama_agrees_with_the_reference() {
    check("stories260k");
}

#[test]
fn gpt2_agrees_with_the_reference() {
    check("gpt2-tiny-stories");
}

#[test]
fn a_cached_text_gives_the_logits_of_the_whole() {
    for name in ["opt-tiny-stories", "stories260k", "gpt2-tiny-stories"] {
        let model = open(name);
        let compute = Compute::host();
        let ids = reference(name).ids;
        let whole = logits(&model, &ids, &compute);
        let vocab = model.config().vocab;
        let mut decoder = Decoder::new(&model.checkpoint, ids.len(), &compute).expect("fits");
        let (prompt, rest) = ids.split_at(20);
        for (place, next) in (prompt.len() - 1..).zip(std::iter::once(prompt).chain(rest.chunks(1))) {
            let found = pollster::block_on(decoder.next_logits(next)).expect("finite");
            let (most, _) = differences(&found, &whole[place * vocab..(place + 1) * vocab]);
            assert!(most <= MOST, "{name}: {most} at token {place}");
        }
    }
}
