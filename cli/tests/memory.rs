//! Memory is promised: a checkpoint larger than what is allowed compresses within it, and as planned.

mod harness;

use std::fs::File;
use std::io::BufWriter;

use harness::Desk;
use modegpt::architecture::{DType, ModelConfig, family};
use modegpt::checkpoint::{ShardWriter, layer_tensors, outer_tensors};
use serde_json::{Value, json};

const LAYERS: usize = 64;
const ALLOWED: u64 = 160 << 20;

/// A Llama of 64 layers with the tokenizer of the small one: random weights, 390 MB in f32.
fn write_model(desk: &Desk, folder: &str) -> u64 {
    desk.copy("llama", folder);
    let mut json = desk.json("llama/config.json");
    for (name, value) in [
        ("num_hidden_layers", LAYERS),
        ("hidden_size", 320),
        ("intermediate_size", 1280),
        ("num_attention_heads", 10),
        ("num_key_value_heads", 5),
        ("vocab_size", 512),
    ] {
        json[name] = json!(value);
    }
    desk.write_json(&format!("{folder}/config.json"), &json);
    let config = ModelConfig::from_json(&json).expect("a valid configuration");
    let keys = family::keys(&config);
    let mut specs = outer_tensors(&config, &keys, keys.roots[0]);
    for (index, shape) in config.layers.iter().enumerate() {
        specs.extend(layer_tensors(&config, &keys, keys.roots[0], index, shape));
    }
    let path = desk.path(folder).join("model.safetensors");
    let file = BufWriter::new(File::create(&path).expect("a file"));
    let mut shard = ShardWriter::begin(file, specs.clone(), DType::F32).expect("a header");
    let mut state = 1_u32;
    for spec in specs {
        let is_norm = spec.shape.len() == 1;
        let values: Vec<f32> = (0..spec.n_elements())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if is_norm { 1.0 } else { ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.1 }
            })
            .collect();
        shard.put(&values).expect("written");
    }
    shard.finish().expect("complete");
    std::fs::metadata(path).expect("there").len()
}

#[test]
fn a_checkpoint_larger_than_the_memory_allowed_compresses_within_it() {
    let desk = Desk::new();
    let bytes = write_model(&desk, "large");
    assert!(bytes > 2 * ALLOWED, "{bytes} bytes are not large");
    let line = format!(
        "compress large --sparsity 0.3 --calibration train.txt --samples 16 --seq-len 64 --batch-tokens 256 --device cpu \
         --max-ram {ALLOWED} --json -o out"
    );
    let summary: Value = desk.run(&line).json();
    let number = |name: &str| summary[name].as_u64().unwrap_or_else(|| panic!("{name} of {summary}"));
    let (planned, peak) = (number("planned_host_bytes"), number("peak_host_bytes"));
    assert!(peak <= ALLOWED, "{peak} bytes were taken, {ALLOWED} allowed");
    assert!(planned <= ALLOWED, "{planned} bytes were planned, {ALLOWED} allowed");
    assert!(peak <= planned, "{peak} bytes were taken, {planned} planned");
    assert_eq!(summary["layers"].as_array().map(Vec::len), Some(LAYERS));
}
