//! Whatever a file says, the answer is a model or an error: never a panic.

#![expect(clippy::print_stdout, reason = "what was measured is worth reading")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use modegpt::Model;
use modegpt::architecture::WeightProvider;
use modegpt::checkpoint::MemorySource;
use modegpt_tests::files_of;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Opens a model and reads all of it.
fn read_all(source: MemorySource) -> Result<(), String> {
    let model = Model::open(Arc::new(source)).map_err(|e| e.to_string())?;
    for index in 0..model.config().layers.len() {
        model.checkpoint.layer(index).map_err(|e| e.to_string())?;
    }
    model.checkpoint.outer().map_err(|e| e.to_string())?;
    let last = model.config().vocab as u32 - 1;
    model.checkpoint.embedding_rows(&[0, last]).map_err(|e| e.to_string())?;
    model.tokenizer.encode("Once upon a time").map_err(|e| e.to_string())?;
    Ok(())
}

/// Changes a few bytes, cuts, doubles, or exchanges numbers in text.
fn mutate(bytes: &mut Vec<u8>, within: usize, rng: &mut ChaCha8Rng) {
    let within = within.min(bytes.len()).max(1);
    let mut pick = |below: usize| (rng.next_u64() % below.max(1) as u64) as usize;
    match pick(5) {
        0 => (0..=pick(4)).for_each(|_| {
            let place = pick(within);
            bytes[place] ^= 1 << pick(8);
        }),
        1 => bytes.truncate(pick(bytes.len())),
        2 => {
            let (from, to) = (pick(within), pick(within));
            bytes.drain(from.min(to)..from.max(to));
        }
        3 => {
            let place = pick(within);
            let digits = [b'0', b'9', b'-', b'e', b'"', b'[', b'{', b'n'];
            bytes.splice(place..place, (0..=pick(12)).map(|_| digits[pick(8)]).collect::<Vec<_>>());
        }
        _ => {
            let digits: Vec<usize> = (0..within).filter(|i| bytes[*i].is_ascii_digit()).collect();
            if let Some(place) = digits.get(pick(digits.len())) {
                bytes[*place] = b'0' + pick(10) as u8;
            }
        }
    }
}

#[test]
fn mutated_models_are_refused_or_read_but_never_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(20_241_122);
    let (mut refused, mut read) = (0, 0);
    for name in ["opt-tiny-stories", "stories260k", "gpt2-tiny-stories"] {
        let whole = files_of(name);
        for case in 0..240 {
            let mut source = whole.clone();
            let file = ["config.json", "model.safetensors", "model.safetensors", "tokenizer.json"][case % 4];
            let bytes = source.0.get_mut(file).expect("the file is there");
            // Of the weights mostly the header, which is what can lie.
            let within = if case % 8 == 1 { bytes.len() } else { 6000 };
            mutate(bytes, within, &mut rng);
            let outcome = catch_unwind(AssertUnwindSafe(|| read_all(source)));
            let outcome = outcome.unwrap_or_else(|_| panic!("case {case} of {name}: a panic after changing {file}"));
            if let Err(message) = outcome {
                assert!(message.len() > 10, "case {case} of {name}: `{message}` says nothing");
                refused += 1;
            } else {
                read += 1;
            }
        }
    }
    println!("{refused} refused, {read} read");
    assert!(refused > 300, "only {refused} refused: the mutations are too mild to prove anything");
}

fn error_after(name: &str, change: impl Fn(&mut MemorySource)) -> String {
    let mut source = files_of(name);
    change(&mut source);
    read_all(source).expect_err("the change breaks the model")
}

fn edit_config(source: &mut MemorySource, from: &str, to: &str) {
    let config = source.0.get_mut("config.json").expect("there");
    let text = String::from_utf8(config.clone()).expect("UTF-8");
    assert!(text.contains(from), "{text}");
    *config = text.replace(from, to).into_bytes();
}

#[test]
fn errors_name_file_tensor_expected_and_found() {
    let shape = error_after("opt-tiny-stories", |s| edit_config(s, "\"ffn_dim\": 384", "\"ffn_dim\": 380"));
    assert!(shape.contains("fc1.weight") && shape.contains("[380, 96]") && shape.contains("[384, 96]"), "{shape}");
    let missing = error_after("stories260k", |s| {
        edit_config(s, "\"num_hidden_layers\": 5", "\"num_hidden_layers\": 6");
    });
    assert!(missing.contains("model.layers.5.") && missing.contains("is missing"), "{missing}");
    let extra = error_after("stories260k", |s| {
        edit_config(s, "\"num_hidden_layers\": 5", "\"num_hidden_layers\": 4");
    });
    assert!(extra.contains("have no place") && extra.contains("model.layers.4."), "{extra}");
    let family =
        error_after("opt-tiny-stories", |s| edit_config(s, "\"model_type\": \"opt\"", "\"model_type\": \"bert\""));
    assert!(family.contains("`bert` is not supported"), "{family}");
    let cut = error_after("opt-tiny-stories", |s| {
        s.0.get_mut("model.safetensors").expect("there").truncate(1_000_000);
    });
    assert!(cut.contains("model.safetensors") && cut.contains("1000000"), "{cut}");
    let nan = error_after("stories260k", |s| {
        let bytes = s.0.get_mut("model.safetensors").expect("there");
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(nan.contains("NaN") && nan.contains("tensor `"), "{nan}");
    let none = error_after("opt-tiny-stories", |s| drop(s.0.remove("tokenizer.json")));
    assert!(none.contains("has no tokenizer"), "{none}");
}
