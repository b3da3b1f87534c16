//! Broken, foreign and impossible input: each case ends with a message that names what is wrong, and leaves nothing.

mod harness;

use harness::tensors::{self, Tensors};
use harness::{Desk, SAMPLES};
use serde_json::{Value, json};

/// `compress` of `model` refuses with all of `expected`, and leaves neither output nor an unfinished one.
#[track_caller]
fn check_compress(desk: &Desk, model: &str, expected: &[&str]) {
    check_line(desk, &format!("compress {model} --sparsity 0.3 {SAMPLES} -o out"), expected);
}

#[track_caller]
fn check_line(desk: &Desk, line: &str, expected: &[&str]) {
    desk.run(line).refused(1, expected);
    assert!(!desk.exists("out"), "modegpt {line}");
    // What is found out in the middle of a run leaves what was done until then.
    if desk.exists("out.partial") {
        desk.remove("out.partial");
    }
}

/// As [`check_line`], for what is found out before any work.
#[track_caller]
fn check_early(desk: &Desk, line: &str, expected: &[&str]) {
    desk.run(line).refused(1, expected);
    assert!(!desk.exists("out") && !desk.exists("out.partial"), "modegpt {line}");
}

/// Changes the tensors of `opt`, and expects to be told.
#[track_caller]
fn check_tensors(change: impl Fn(&mut Tensors), expected: &[&str]) {
    let desk = Desk::new();
    let file = desk.path("opt/model.safetensors");
    let mut all = tensors::read_file(&file);
    change(&mut all);
    tensors::write_file(&file, &all);
    check_compress(&desk, "opt", expected);
}

/// Changes `config.json` of `opt`, and expects to be told.
#[track_caller]
fn check_config(field: &str, value: Value, expected: &[&str]) {
    let desk = Desk::new();
    let mut config = desk.json("opt/config.json");
    config[field] = value;
    desk.write_json("opt/config.json", &config);
    check_compress(&desk, "opt", expected);
}

const UP: &str = "model.decoder.layers.2.fc1.weight";

#[test]
fn missing_and_extra_tensors() {
    check_tensors(|all| drop(all.remove(UP)), &["tensor", UP, "is missing", "[384, 96]"]);
    let extra = |all: &mut Tensors| {
        let copy = all[UP].clone();
        all.insert("model.decoder.layers.9.fc1.weight".to_owned(), copy);
    };
    check_tensors(extra, &["`model.decoder.layers.9.fc1.weight` of `model.safetensors`", "does not fit `config.json`"]);
    let embedding = |all: &mut Tensors| drop(all.remove("model.decoder.embed_tokens.weight"));
    check_tensors(embedding, &["no embedding found", "`model.decoder.embed_tokens.weight`"]);
}

#[test]
fn tensors_of_other_shapes_and_types() {
    let transposed = |all: &mut Tensors| all.get_mut(UP).expect(UP).shape.reverse();
    check_tensors(transposed, &[UP, "`model.safetensors`", "expected shape [384, 96]", "found [96, 384]"]);
    let integers = |all: &mut Tensors| "I16".clone_into(&mut all.get_mut(UP).expect(UP).dtype);
    check_tensors(integers, &[UP, "`model.safetensors`", "expected F32, F16 or BF16, found I16"]);
}

#[test]
fn weights_that_are_not_finite() {
    for (bits, shown) in [(0x7E00_u16, "NaN"), (0x7C00, "inf"), (0xFC00, "-inf")] {
        let poison = |name: &'static str| {
            move |all: &mut Tensors| {
                all.get_mut(name).expect(name).data[200..202].copy_from_slice(&bits.to_le_bytes());
            }
        };
        let at = format!("holds {shown} at element 100");
        for name in [UP, "model.decoder.layers.1.self_attn.q_proj.weight"] {
            check_tensors(poison(name), &[name, "`model.safetensors`", &at, "expected finite weights"]);
        }
        let expected = ["model.decoder.embed_positions.weight", &format!("holds {shown}"), "expected finite weights"];
        check_tensors(poison("model.decoder.embed_positions.weight"), &expected);
    }
}

#[test]
fn broken_weight_files() {
    let desk = Desk::new();
    let file = desk.path("opt/model.safetensors");
    let whole = harness::read(&file);
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).expect("written");
        check_compress(&desk, "opt", &["model.safetensors"]);
    }
    std::fs::write(&file, [&whole[..], b"x"].concat()).expect("written");
    check_compress(&desk, "opt", &["model.safetensors"]);
    std::fs::write(&file, [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat()).expect("written");
    check_compress(&desk, "opt", &["model.safetensors"]);
    std::fs::remove_file(&file).expect("removed");
    check_compress(&desk, "opt", &["safetensors"]);
}

#[test]
fn offsets_that_lie() {
    let desk = Desk::new();
    let file = desk.path("opt/model.safetensors");
    let (header, data) = tensors::encode(&tensors::read_file(&file));
    let [from, to]: [u64; 2] = serde_json::from_value(header[UP]["data_offsets"].clone()).expect("offsets");
    for offsets in [[from, to + 2], [from + 2, to + 2], [to, from], [from, u64::MAX], [u64::MAX - 1, u64::MAX]] {
        let mut header = header.clone();
        header[UP]["data_offsets"] = json!(offsets);
        tensors::write_raw(&file, &header, &data);
        check_compress(&desk, "opt", &["model.safetensors"]);
    }
    let mut header = header.clone();
    header[UP]["shape"] = json!([u64::MAX, 2]);
    tensors::write_raw(&file, &header, &data);
    check_compress(&desk, "opt", &["model.safetensors"]);
}

#[test]
fn configurations_that_do_not_fit() {
    check_config("model_type", json!("mamba"), &["`config.json`", "mamba"]);
    check_config("ffn_dim", json!(400), &["fc1", "expected shape [400", "by `config.json`, found [384"]);
    check_config("num_hidden_layers", json!(3), &["`model.decoder.layers.3.", "does not fit `config.json`"]);
    check_config("num_hidden_layers", json!(5), &["`model.decoder.layers.4.", "is missing"]);
    check_config("hidden_size", json!("wide"), &["`config.json`", "hidden_size"]);
    check_config("num_attention_heads", json!(0), &["`config.json`", "num_attention_heads"]);
    check_config("num_attention_heads", json!(7), &["`config.json`"]);
    check_config("vocab_size", json!(u64::MAX), &["config.json"]);
    check_config("activation_function", json!("swish9"), &["`config.json`", "activation_function", "swish9"]);
}

#[test]
fn folders_that_are_no_models() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("empty")).expect("a folder");
    check_compress(&desk, "empty", &["`empty`", "config.json"]);
    check_compress(&desk, "nowhere", &["offline (HF_HUB_OFFLINE is set)", "`nowhere`"]);
    check_compress(
        &desk,
        "./nowhere/at/all",
        &["`./nowhere/at/all` is neither an existing folder nor an id of the hub"],
    );
    check_compress(&desk, "facebok/opt-125m", &["offline (HF_HUB_OFFLINE is set)", "`facebok/opt-125m`"]);
    check_compress(&desk, "train.txt", &["`train.txt`"]);
    desk.write("opt/config.json", "{");
    check_compress(&desk, "opt", &["`config.json` is not valid JSON"]);
    desk.write("opt/config.json", "[]");
    check_compress(&desk, "opt", &["`config.json`"]);
}

#[test]
fn tokenizers_that_do_not_fit() {
    let desk = Desk::new();
    desk.copy("opt", "mixed");
    // One more token than the embedding has rows.
    let mut tokenizer = desk.json("mixed/tokenizer.json");
    tokenizer["model"]["vocab"]["zzzyx"] = json!(2048);
    desk.write_json("mixed/tokenizer.json", &tokenizer);
    check_compress(&desk, "mixed", &["the tokenizer has 2049 tokens", "only 2048"]);
    std::fs::copy(desk.path("opt/tokenizer.json"), desk.path("llama/tokenizer.json")).expect("copied");
    check_compress(&desk, "llama", &["the tokenizer has 2048 tokens", "only 512"]);
    desk.write("mixed/tokenizer.json", "{}");
    check_compress(&desk, "mixed", &["tokenizer.json"]);
    std::fs::remove_file(desk.path("mixed/tokenizer.json")).expect("removed");
    check_compress(&desk, "mixed", &["`mixed`", "no tokenizer", "`vocab.json` with `merges.txt`"]);
    desk.write("mixed/vocab.json", "{}");
    check_compress(&desk, "mixed", &["no tokenizer"]);
    desk.write("mixed/merges.txt", "#version: 0.2\na b\n");
    check_compress(&desk, "mixed", &[]);
}

#[test]
fn texts_that_cannot_be_used() {
    let desk = Desk::new();
    desk.write("empty.txt", "");
    desk.write("short.txt", "Once upon a time.");
    desk.write("broken.jsonl", "{\"text\": \"Once\"}\n{\"text\": ");
    desk.write("other.jsonl", "{\"words\": \"Once\"}\n");
    std::fs::create_dir(desk.path("folder")).expect("a folder");
    for (text, expected) in [
        ("empty.txt", "empty.txt"),
        ("short.txt", "short.txt"),
        ("nowhere.txt", "cannot read text `nowhere.txt`"),
        ("broken.jsonl", "broken.jsonl"),
        ("other.jsonl", "other.jsonl"),
        ("folder", "folder `folder` has no text"),
    ] {
        let line =
            format!("compress opt --sparsity 0.3 --calibration {text} --samples 4 --seq-len 64 --device cpu -o out");
        // Text that is too short is too short together with other texts: its name would say nothing.
        let expected = if text == "short.txt" { "tokens" } else { expected };
        check_line(&desk, &line, &[expected]);
        let line = format!("eval opt --text {text} --seq-len 64 --device cpu");
        // An evaluation takes any text of two tokens.
        if text != "short.txt" {
            check_line(&desk, &line, &[expected]);
        }
    }
}

#[test]
fn sizes_that_cannot_be_reached() {
    let desk = Desk::new();
    for (size, expected) in [
        ("--sparsity 1.0", "sparsity: expected a number in [0, 1), found 1"),
        ("--sparsity -0.1", "sparsity: expected a number in [0, 1), found -0.1"),
        ("--sparsity nan", "sparsity: expected a number in [0, 1), found NaN"),
        ("--sparsity inf", "sparsity: expected a number in [0, 1), found inf"),
        ("--sparsity 0.99", "sparsity 0.99 cannot be reached"),
        ("--target-bytes 1KB", "bytes 1000 cannot be reached"),
        ("--target-bytes 2GiB", "bytes 2147483648 cannot be reached"),
        ("--target-params 1K", "parameters 1000 cannot be reached"),
        ("--sparsity 0.3 --mode paper --epsilon 0", "epsilon: expected a positive number, found 0"),
        ("--sparsity 0.3 --mode paper --epsilon nan", "epsilon: expected a positive number, found NaN"),
        ("--sparsity 0.3 --ridge -1", "`ridges.leverage`: expected a finite number of at least 0, found -1"),
        ("--sparsity 0.3 --refit-ridge nan", "`ridges.refit`: expected a finite number of at least 0, found NaN"),
    ] {
        check_early(&desk, &format!("compress opt {size} {SAMPLES} -o out"), &[expected]);
    }
}

#[test]
fn lengths_devices_and_memory_that_are_not_there() {
    let desk = Desk::new();
    let compress = "compress opt --sparsity 0.3 --calibration train.txt -o out";
    for (line, expected) in [
        (
            format!("{compress} --seq-len 257 --samples 2 --device cpu"),
            "samples of 257 tokens do not fit the model's context of 256",
        ),
        (format!("{compress} --seq-len 64 --samples 1000000 --device cpu"), "tokens"),
        (format!("{compress} --device cuda"), "no device `cuda`: this program was built without the feature `cuda`"),
        (format!("{compress} --seq-len 64 --samples 2 --device cpu --max-ram 10MiB"), "--max-ram allows 10 MiB"),
        (
            "eval opt --text test.txt --seq-len 257 --device cpu".to_owned(),
            "257 tokens do not fit the model's context of 256",
        ),
        ("eval opt --text test.txt --seq-len 1 --device cpu".to_owned(), "`seq_len` is 1, expected at least 2"),
        (
            "eval opt --text test.txt --seq-len 64 --stride 65 --device cpu".to_owned(),
            "`stride` is 65, expected 1 to 64",
        ),
        ("generate opt --prompt Once --temperature nan --device cpu".to_owned(), "temperature: expected"),
        ("generate opt --prompt Once --temperature -1 --device cpu".to_owned(), "temperature: expected"),
        ("generate opt --prompt Once --top-p 0 --device cpu".to_owned(), "top-p: expected"),
    ] {
        check_early(&desk, &line, &[expected]);
    }
    // A build with the feature says otherwise; this suite builds without it.
}

#[test]
fn device_memory_for_less_than_a_sample_is_refused_with_what_suffices() {
    let desk = Desk::new();
    for command in ["calibrate opt", "compress opt --sparsity 0.3"] {
        let line = |most: &str| format!("{command} {SAMPLES} --fisher 64 --max-vram {most} -o out");
        let told = desk.run(&line("1KiB"));
        let told = told.refused(1, &["one sample of 64 tokens needs ", "but --max-vram allows 0 MiB", "--seq-len"]);
        assert!(!desk.exists("out") && !desk.exists("out.partial"));
        let suffices = told.stderr.split("allow --max-vram ").nth(1).expect("a size").trim();
        let mib: u64 = suffices.strip_suffix("MiB").and_then(|n| n.parse().ok()).expect("a number of MiB");
        let less = format!("{}MiB", mib - 1);
        desk.run(&line(&less)).refused(1, &[&format!("--max-vram allows {} MiB", mib - 1)]);
        desk.run(&line(suffices)).ok();
        desk.remove("out");
    }
}

#[test]
fn outputs_that_cannot_be_written() {
    let desk = Desk::new();
    desk.write("file", "something");
    let line = |out: &str| format!("compress opt --sparsity 0.3 {SAMPLES} -o {out}");
    desk.run(&line("file")).refused(1, &["`file` exists and is not a folder"]);
    desk.run(&format!("{} --force", line("file"))).refused(1, &["`file` exists and is not a folder"]);
    assert_eq!(harness::read(&desk.path("file")), b"something");
    desk.run(&line("file/below")).refused(1, &["cannot write `file/below.partial`"]);
    desk.run(&format!("calibrate opt {SAMPLES} -o file")).refused(1, &["`file` exists and is not a folder"]);
}

#[test]
fn statistics_that_cannot_be_used() {
    let desk = Desk::new();
    desk.run(&format!("calibrate llama {SAMPLES} -o of-llama")).ok();
    desk.run(&format!("calibrate opt {SAMPLES} -o of-opt")).ok();
    let with = |folder: &str| format!("compress opt --sparsity 0.3 --statistics {folder} --device cpu -o out");
    let file = |folder: &str, layer: usize| format!("{folder}/layer-0000{layer}.safetensors");
    check_early(&desk, &with("nowhere"), &[&file("nowhere", 0)]);
    check_early(&desk, &with("of-llama"), &[&file("of-llama", 0), "expected statistics of the model with fingerprint"]);
    check_line(&desk, "plan opt --sparsity 0.3 --statistics of-llama", &["expected statistics of the model"]);
    check_early(&desk, "calibrate opt --merge of-opt of-llama -o out", &[&file("of-llama", 0), "fingerprint"]);
    check_early(&desk, "calibrate opt --merge of-opt nowhere -o out", &[&file("nowhere", 0)]);
    let whole = harness::read(&desk.path(&file("of-opt", 2)));
    desk.write(&file("of-opt", 2), &whole[..whole.len() - 8]);
    check_line(&desk, &with("of-opt"), &[&file("of-opt", 2)]);
    desk.write(&file("of-opt", 2), harness::read(&desk.path(&file("of-opt", 1))));
    check_line(&desk, &with("of-opt"), &["expected statistics of layer 2, found layer 1"]);
    // Layers that saw different samples do not make one calibration.
    desk.run(&format!("calibrate opt {SAMPLES} --seed 1 -o other")).ok();
    desk.write(&file("of-opt", 2), harness::read(&desk.path(&file("other", 2))));
    check_line(&desk, &with("of-opt"), &[&file("of-opt", 2), "other samples"]);
}

#[test]
fn plans_that_cannot_be_applied() {
    let desk = Desk::new();
    desk.run(&format!("calibrate opt {SAMPLES} -o statistics")).ok();
    desk.run("plan opt --statistics statistics --sparsity 0.3 -o plan.json").ok();
    let honest = desk.json("plan.json");
    let check = |expected: &[&str]| {
        check_early(&desk, "compress opt --plan bad.json --statistics statistics --device cpu -o out", expected);
    };
    check(&["plan `bad.json`"]);
    for text in ["", "{", "[]", "{}", "null"] {
        desk.write("bad.json", text);
        check(&["plan `bad.json`"]);
    }
    let edits: [(&str, Value, &str); 9] = [
        ("/version", json!(99), "format version 99"),
        ("/layers/1/d_ff", json!(0), "layers[1].d_ff"),
        ("/layers/1/d_ff", json!(385), "layers[1].d_ff"),
        ("/layers/1/d_qk", json!(-4), "plan"),
        ("/layers/3/d_v", json!(33), "layers[3].d_v"),
        ("/layers/2/index", json!(1), "layers[2].index"),
        ("/ridges/leverage", json!(-1.0), "ridges.leverage"),
        (
            "/rounding/ff",
            json!(0),
            "`rounding`: expected multiples of at least 1, found 0 for d_ff, 4 for heads and 4 for ranks",
        ),
        ("/model_fingerprint", json!("0".repeat(64)), "plan is for another model"),
    ];
    for (place, value, expected) in edits {
        let mut plan = honest.clone();
        *plan.pointer_mut(place).expect(place) = value;
        desk.write_json("bad.json", &plan);
        check(&[expected]);
    }
    let mut plan = honest.clone();
    plan["layers"].as_array_mut().expect("layers").pop();
    desk.write_json("bad.json", &plan);
    check(&["layers"]);
    desk.write_json("bad.json", &honest);
    check_line(&desk, &format!("compress llama --plan bad.json {SAMPLES} -o out"), &["plan is for another model"]);
}

#[test]
fn plans_for_which_something_is_missing() {
    let desk = Desk::new();
    let usage = |line: &str, expected: &[&str]| {
        desk.run(line).refused(2, expected);
        assert!(!desk.exists("out") && !desk.exists("out.partial"), "modegpt {line}");
    };
    let line = format!("compress opt --sparsity 0.3 {SAMPLES} -o out");
    usage(&format!("{line} --fisher 0"), &["--fisher", "at least 1"]);
    usage(
        &format!("{line} --mode paper --fisher"),
        &["--fisher weighs errors, and none of these methods looks at any"],
    );

    desk.run(&format!("calibrate opt {SAMPLES} -o plain")).ok();
    desk.run(&format!("calibrate opt {SAMPLES} --fisher 256 -o full")).ok();
    let with = |statistics: &str| format!("--sparsity 0.3 --statistics {statistics}");
    let missing = ["weighed with gradients", "`plain` has no gradients-00000.safetensors", "calibrate --fisher"];
    check_early(&desk, &format!("compress opt {} --fisher --device cpu -o out", with("plain")), &missing);
    check_line(&desk, &format!("plan opt {} --fisher", with("plain")), &missing);
    desk.run(&format!("plan opt {} --fisher -o nats.json", with("full"))).ok();
    desk.run(&format!("plan opt {} -o shares.json", with("full"))).ok();
    let apply = |plan: &str, more: &str| format!("compress opt --plan {plan} {more} --device cpu -o out");
    check_early(&desk, &apply("nats.json", "--statistics plain"), &missing);
    check_early(
        &desk,
        &apply("nats.json", SAMPLES.trim_end_matches(" --device cpu")),
        &["weighed with gradients", "pass --fisher"],
    );
    usage(&apply("shares.json", "--statistics full --fisher"), &["--fisher", "shares of the residual energy"]);
    for option in ["--mode paper", "--mlp leverage", "--prefix", "--round-ff 8", "--allocation uniform"] {
        usage(&apply("shares.json", &format!("--statistics full {option}")), &["cannot be used with"]);
    }

    let mut refitted = desk.json("shares.json");
    refitted["methods"]["prefix"] = json!("all");
    desk.write_json("refitted.json", &refitted);
    let samples = ["refitted on the compressed prefix", "pass --calibration"];
    check_early(&desk, &apply("refitted.json", "--statistics plain"), &samples);
    // OPT-350m normalises behind each module, and has no norm at the end.
    let mut config = desk.json("opt/config.json");
    config["do_layer_norm_before"] = json!(false);
    desk.write_json("opt/config.json", &config);
    let file = desk.path("opt/model.safetensors");
    let mut all = tensors::read_file(&file);
    all.retain(|name, _| !name.starts_with("model.decoder.final_layer_norm"));
    tensors::write_file(&file, &all);
    check_early(&desk, &format!("{line} --prefix"), &["refitted on the compressed prefix", "no plain sum"]);
    desk.run(&line).ok();
}
