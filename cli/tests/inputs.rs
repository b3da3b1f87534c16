//! The same model in every form that models are published in gives the same numbers.

mod harness;
#[path = "inputs/torch.rs"]
mod torch;

use std::fs;

use harness::tensors::{self, Tensors};
use harness::{Desk, SAMPLES};
use serde_json::{Value, json};

const MODELS: [&str; 3] = ["opt", "llama", "gpt2"];

fn eval(desk: &Desk, folder: &str) -> Value {
    desk.run(&format!("eval {folder} --text test.txt --seq-len 64 --max-windows 8 --device cpu --json")).json()
}

/// Both folders hold the same model: it scores a text alike, and becomes the same smaller model.
#[track_caller]
fn assert_same_model(desk: &Desk, left: &str, right: &str) {
    let (a, b) = (eval(desk, left), eval(desk, right));
    for name in ["perplexity", "token_hash", "n_tokens", "params", "bytes", "special_tokens"] {
        assert_eq!(a[name], b[name], "{name} of {left} and {right}");
    }
    let compress = |folder: &str| {
        desk.run(&format!("compress {folder} --sparsity 0.3 {SAMPLES} -o {folder}-small --force")).ok();
        tensors::of_folder(desk, &format!("{folder}-small"))
    };
    assert!(compress(left) == compress(right), "{left} and {right} become different models");
}

/// The model of `from` in the folder `to`, whose weights `store` writes.
fn convert(desk: &Desk, from: &str, to: &str, store: impl Fn(&Tensors)) {
    desk.copy(from, to);
    fs::remove_file(desk.path(to).join("model.safetensors")).expect("removed");
    store(&tensors::of_folder(desk, from));
}

/// Writes `tensors` into three files with an index; `write` gives the content of one.
fn write_shards(desk: &Desk, folder: &str, stem: &str, tensors: &Tensors, write: fn(&Tensors) -> Vec<u8>) {
    let mut weight_map = serde_json::Map::new();
    let (stem, ending) = stem.split_once('.').expect("an ending");
    for shard in 0..3 {
        let name = format!("{stem}-0000{}-of-00003.{ending}", shard + 1);
        let part: Tensors = tensors
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 3 == shard)
            .map(|(_, (n, t))| (n.clone(), t.clone()))
            .collect();
        weight_map.extend(part.keys().map(|key| (key.clone(), json!(name))));
        desk.write(&format!("{folder}/{name}"), write(&part));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
    desk.write_json(&format!("{folder}/{stem}.{ending}.index.json"), &index);
}

fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let (header, data) = tensors::encode(tensors);
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

#[test]
fn sharded_safetensors() {
    let desk = Desk::new();
    for model in MODELS {
        let sharded = format!("{model}-sharded");
        convert(&desk, model, &sharded, |all| write_shards(&desk, &sharded, "model.safetensors", all, safetensors));
        assert_same_model(&desk, model, &sharded);
    }
}

#[test]
fn pytorch_files() {
    let desk = Desk::new();
    for model in MODELS {
        for (name, write) in [("zip", torch::zip as fn(&Tensors) -> Vec<u8>), ("legacy", torch::legacy)] {
            let folder = format!("{model}-{name}");
            convert(&desk, model, &folder, |all| desk.write(&format!("{folder}/pytorch_model.bin"), write(all)));
            assert_same_model(&desk, model, &folder);
        }
    }
}

#[test]
fn sharded_pytorch_files() {
    let desk = Desk::new();
    convert(&desk, "opt", "sharded", |all| write_shards(&desk, "sharded", "pytorch_model.bin", all, torch::zip));
    assert_same_model(&desk, "opt", "sharded");
}

#[test]
fn safetensors_come_before_pytorch_files() {
    let desk = Desk::new();
    desk.copy("opt", "both");
    desk.write("both/pytorch_model.bin", "not read");
    assert_same_model(&desk, "opt", "both");
}

#[test]
fn a_missing_shard_is_named() {
    let desk = Desk::new();
    convert(&desk, "opt", "sharded", |all| write_shards(&desk, "sharded", "model.safetensors", all, safetensors));
    fs::remove_file(desk.path("sharded/model-00002-of-00003.safetensors")).expect("removed");
    let told = desk.run(&format!("compress sharded --sparsity 0.3 {SAMPLES} -o out"));
    told.refused(1, &["model-00002-of-00003.safetensors"]);
    assert!(!desk.exists("out"));
}

#[test]
fn tensors_published_without_the_outer_prefix() {
    let desk = Desk::new();
    for (model, prefix) in [("opt", "model."), ("gpt2", "transformer.")] {
        let folder = format!("{model}-bare");
        convert(&desk, model, &folder, |all| {
            let bare = |name: &String| name.strip_prefix(prefix).unwrap_or(name).to_owned();
            let renamed: Tensors = all.iter().map(|(name, tensor)| (bare(name), tensor.clone())).collect();
            assert_ne!(renamed.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>(), "{model}");
            tensors::write_file(&desk.path(&folder).join("model.safetensors"), &renamed);
        });
        assert_same_model(&desk, model, &folder);
    }
}

#[test]
fn vocabulary_and_merges_instead_of_a_tokenizer_file() {
    let desk = Desk::new();
    desk.copy("opt", "parts");
    let tokenizer = desk.json("opt/tokenizer.json");
    let merges: Vec<&str> = tokenizer["model"]["merges"].as_array().expect("merges").iter().map(pair).collect();
    desk.write_json("parts/vocab.json", &tokenizer["model"]["vocab"]);
    desk.write("parts/merges.txt", format!("#version: 0.2\n{}\n", merges.join("\n")));
    fs::remove_file(desk.path("parts/tokenizer.json")).expect("removed");

    let (whole, parts) = (eval(&desk, "opt"), eval(&desk, "parts"));
    for name in ["perplexity", "token_hash", "n_tokens"] {
        assert_eq!(whole[name], parts[name], "{name}");
    }
    // The compressed model keeps the form.
    desk.run(&format!("compress parts --sparsity 0.3 {SAMPLES} -o small")).ok();
    desk.run(&format!("compress opt --sparsity 0.3 {SAMPLES} -o opt-small")).ok();
    assert!(desk.exists("small/vocab.json") && desk.exists("small/merges.txt") && !desk.exists("small/tokenizer.json"));
    assert!(tensors::of_folder(&desk, "small") == tensors::of_folder(&desk, "opt-small"));
    assert_eq!(eval(&desk, "small")["perplexity"], eval(&desk, "opt-small")["perplexity"]);
}

fn pair(merge: &Value) -> &str {
    merge.as_str().expect("a merge as one text")
}

#[test]
fn texts_in_other_forms() {
    let desk = Desk::new();
    let text = String::from_utf8(harness::read(&desk.path("test.txt"))).expect("text");
    // One document: in a field there is no separator.
    let text = text.replace("<|endoftext|>", " ");
    desk.write("test.txt", &text);
    let lines = |field: &str| json!({field: text}).to_string();
    desk.write("test.jsonl", lines("text"));
    desk.write("other.jsonl", lines("story"));
    desk.write_json("test.json", &json!([{"text": text}]));
    fs::create_dir(desk.path("folder")).expect("a folder");
    desk.write("folder/a.txt", &text);
    desk.write("folder/b.bin", "not read");
    let perplexity = |text: &str| {
        let line = format!("eval opt --text {text} --seq-len 64 --max-windows 8 --device cpu --json");
        desk.run(&line).json()["perplexity"].clone()
    };
    let plain = perplexity("test.txt");
    for other in ["test.jsonl", "test.json", "folder", "other.jsonl --field story"] {
        assert_eq!(perplexity(other), plain, "{other}");
    }
}
