//! What scripts rely on: names and meaning of the JSON that commands print, where texts go, exit codes, help.

mod harness;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use harness::tensors::{self, Tensors};
use harness::{Desk, SAMPLES};
use serde_json::Value;

/// The object has these names and no others.
#[track_caller]
fn assert_names(object: &Value, expected: &str) {
    let mut found: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut expected: Vec<&str> = expected.split_whitespace().collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

/// The numbers are there and positive.
#[track_caller]
fn assert_positive(object: &Value, names: &str) {
    for name in names.split_whitespace() {
        assert!(object[name].as_f64().is_some_and(|number| number > 0.0), "`{name}` is {}", object[name]);
    }
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("expected a count, found {value}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

fn n_elements(tensors: &Tensors) -> u64 {
    tensors.values().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
}

fn n_bytes(tensors: &Tensors) -> u64 {
    tensors.values().map(|tensor| tensor.data.len() as u64).sum()
}

const COMPRESS_NAMES: &str = "output mode methods allocation unit tried params_before params_after block_params_before block_params_after sparsity \
    sparsity_of_all_params bytes_before bytes_after dtype device special_tokens calibration_token_hash \
    calibration_samples calibration_seq_len seed fallbacks planned_host_bytes peak_host_bytes secs stages layers";

#[test]
fn compress_tells_what_it_did() {
    let desk = Desk::new();
    for (model, dtype, n_layers, d_ff, special_tokens) in
        [("opt", "f16", 4, 384, "</s>"), ("llama", "f32", 5, 172, "<s>"), ("gpt2", "f16", 4, 384, "</s>")]
    {
        let out = format!("{model}-small");
        let summary = desk.run(&format!("compress {model} --sparsity 0.3 {SAMPLES} -o {out} --json")).json();
        assert_names(&summary, COMPRESS_NAMES);
        assert_positive(&summary, "planned_host_bytes peak_host_bytes secs");
        assert_eq!(summary["output"], out.as_str());
        assert_eq!(summary["mode"], "best");
        assert_eq!(summary["dtype"], dtype);
        assert!(summary["device"].as_str().expect("a device").starts_with("cpu ("), "{}", summary["device"]);
        assert!(summary["special_tokens"].as_str().expect("a text").contains(special_tokens), "{model}");
        assert_eq!(summary["calibration_token_hash"].as_str().expect("a hash").len(), 64);
        assert_eq!((&summary["calibration_samples"], &summary["calibration_seq_len"]), (&16.into(), &64.into()));
        assert_eq!((&summary["seed"], &summary["fallbacks"]), (&0.into(), &0.into()));

        let (before, after) = (tensors::of_folder(&desk, model), tensors::of_folder(&desk, &out));
        assert_eq!(count(&summary["params_before"]), n_elements(&before));
        assert_eq!(count(&summary["params_after"]), n_elements(&after));
        assert_eq!(count(&summary["bytes_before"]), n_bytes(&before));
        assert_eq!(count(&summary["bytes_after"]), n_bytes(&after));
        let index = desk.json(&format!("{out}/model.safetensors.index.json"));
        assert_eq!(index["metadata"]["total_size"], summary["bytes_after"]);
        check_stages(&summary);
        check_shares(&summary);
        check_layers(&summary, n_layers, d_ff);
    }
}

/// What was done, in its order, within the time that all of it took.
fn check_stages(summary: &Value) {
    let stages = summary["stages"].as_array().expect("stages");
    let names: Vec<_> = stages.iter().map(|stage| stage["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["calibrate", "survey", "compress"]);
    let secs: f64 = stages.iter().map(|stage| number(&stage["secs"])).sum();
    assert!(secs > 0.0 && secs <= number(&summary["secs"]), "{secs} s of {} s", summary["secs"]);
}

fn check_shares(summary: &Value) {
    let removed = |before: &str, after: &str| 1.0 - number(&summary[after]) / number(&summary[before]);
    let sparsity = number(&summary["sparsity"]);
    // One rounding step of the widest layer of these models is 0.7 % of all block weights.
    assert!((sparsity - 0.3).abs() < 0.007, "sparsity {sparsity}");
    assert!((sparsity - removed("block_params_before", "block_params_after")).abs() < 1e-12);
    let of_all = number(&summary["sparsity_of_all_params"]);
    assert!((of_all - removed("params_before", "params_after")).abs() < 1e-12);
    assert!(0.0 < of_all && of_all < sparsity);
}

fn check_layers(summary: &Value, n_layers: usize, d_ff: u64) {
    let layers = summary["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), n_layers);
    for (index, layer) in layers.iter().enumerate() {
        assert_names(layer, "index sparsity before after mlp query_key value_output");
        assert_eq!(count(&layer["index"]), index as u64);
        assert_eq!(count(&layer["before"]["d_ff"]), d_ff);
        for width in ["d_ff", "d_qk", "d_v"] {
            let (before, after) = (count(&layer["before"][width]), count(&layer["after"][width]));
            assert!(0 < after && after <= before, "layer {index}: {width} {before} to {after}");
        }
        // Least squares and truncated SVD are never worse than nothing. Columns that are only selected can be: what was to
        // cancel them may be gone.
        for (part, most) in [("mlp", 1.0), ("query_key", f64::MAX), ("value_output", 1.0)] {
            assert_names(&layer[part], "relative_error condition fallbacks");
            let error = number(&layer[part]["relative_error"]);
            assert!((0.0..=most).contains(&error), "layer {index}: {part} {error}");
        }
    }
    assert!(layers.iter().any(|layer| layer["before"] != layer["after"]));
}

#[test]
fn calibrate_tells_the_influence_of_every_layer() {
    let desk = Desk::new();
    let summary = desk.run(&format!("calibrate opt {SAMPLES} -o statistics --json")).json();
    assert_names(&summary, "output token_hash n_samples seq_len block_influence peak_host_bytes secs");
    assert_positive(&summary, "peak_host_bytes secs");
    assert_eq!((&summary["n_samples"], &summary["seq_len"]), (&16.into(), &64.into()));
    assert_eq!(summary["token_hash"].as_str().expect("a hash").len(), 64);
    let influences = summary["block_influence"].as_array().expect("influences");
    assert_eq!(influences.len(), 4);
    assert!(influences.iter().all(|influence| (0.0..2.0).contains(&number(influence))), "{influences:?}");
    assert_eq!(desk.files("statistics").len(), 4);
}

#[test]
fn eval_tells_perplexity_and_protocol() {
    let desk = Desk::new();
    let line = "eval opt --text test.txt --seq-len 64 --stride 64 --max-windows 6 --device cpu --json";
    let summary = desk.run(line).json();
    assert_names(
        &summary,
        "perplexity n_tokens n_windows seq_len stride top1_accuracy token_hash special_tokens tokens_per_sec secs program \
         device fingerprint params bytes peak_host_bytes",
    );
    assert_positive(&summary, "tokens_per_sec secs peak_host_bytes");
    // A model trained on such text: far from one in 2048.
    let perplexity = number(&summary["perplexity"]);
    assert!((2.0..30.0).contains(&perplexity), "{perplexity}");
    assert!((0.2..0.9).contains(&number(&summary["top1_accuracy"])));
    assert_eq!((count(&summary["n_windows"]), count(&summary["seq_len"]), count(&summary["stride"])), (6, 64, 64));
    assert_eq!(count(&summary["n_tokens"]), 6 * 63);
    assert_eq!((count(&summary["params"]), count(&summary["bytes"])), (668_928, 1_337_856));
    let again = desk.run(line).json();
    assert_eq!((&again["perplexity"], &again["token_hash"]), (&summary["perplexity"], &summary["token_hash"]));
}

#[test]
fn generate_tells_text_and_ids() {
    let desk = Desk::new();
    let line = "generate opt --prompt Once --max-new-tokens 12 --device cpu";
    let summary = desk.run(&format!("{line} --json")).json();
    assert_names(&summary, "prompt text ids stop tokens_per_sec device");
    assert_positive(&summary, "tokens_per_sec");
    assert_eq!((&summary["prompt"], &summary["stop"]), (&"Once".into(), &"length".into()));
    let ids = summary["ids"].as_array().expect("ids");
    assert!(ids.len() == 12 && ids.iter().all(|id| count(id) < 2048), "{ids:?}");
    let text = summary["text"].as_str().expect("a text");
    assert!(text.starts_with(" upon a time"), "{text}");
    // Without --json stdout is the text, and nothing else.
    let plain = desk.run(line).ok();
    assert_eq!(plain.stdout, format!("Once{text}\n"));
    assert!(plain.stderr.contains("tokens/s"), "{}", plain.stderr);
    // A seed names a text.
    let draw = |seed: u32| desk.run(&format!("{line} --temperature 1 --seed {seed}")).ok().stdout;
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn demo_compares_before_and_after() {
    let desk = Desk::new();
    let summary = desk.run("demo --device cpu --json -o kept").json();
    assert_names(&summary, "before after sparsity device compress_secs secs peak_host_bytes output");
    assert_positive(&summary, "compress_secs secs peak_host_bytes");
    let (before, after) = (&summary["before"], &summary["after"]);
    for side in [before, after] {
        assert_names(side, "perplexity params block_params bytes tokens_per_sec decode_tokens_per_sec sample");
        assert_positive(side, "perplexity params block_params bytes tokens_per_sec decode_tokens_per_sec");
        assert!(!side["sample"].as_str().expect("a text").is_empty());
    }
    let ratio = number(&after["perplexity"]) / number(&before["perplexity"]);
    assert!((1.0..1.6).contains(&ratio), "perplexity grows by a factor of {ratio}");
    assert!((number(&summary["sparsity"]) - 0.3).abs() < 0.007);
    assert_eq!(count(&after["bytes"]), n_bytes(&tensors::of_folder(&desk, "kept")));
}

/// What few tokens change is told, once; where there are enough, or nothing is refitted, there is nothing to tell.
#[test]
fn few_tokens_are_told() {
    let desk = Desk::new();
    let told = |arguments: &str| {
        let line =
            format!("compress opt --sparsity 0.3 --calibration train.txt --device cpu -o out --force {arguments}");
        desk.run(&line).ok().stderr.matches("down maps are held to the weights that are there").count()
    };
    assert_eq!(told("--samples 4 --seq-len 64"), 1);
    assert_eq!(told("--samples 4 --seq-len 64 --mode paper"), 1);
    assert_eq!(told("--samples 4 --seq-len 64 --mode sliced"), 0);
    assert_eq!(told("--samples 24 --seq-len 256"), 0);
}

#[test]
fn the_memory_plan_comes_before_work() {
    let desk = Desk::new();
    let told = desk.run(&format!("compress opt --sparsity 0.3 {SAMPLES} --max-ram 1MiB -o out"));
    let told = told.refused(1, &["host memory", "--max-ram allows 1 MiB"]);
    let plan = told.stderr.find("memory plan  host ").expect("a plan");
    assert!(plan < told.stderr.find("error: ").expect("an error"));
    assert!(!desk.exists("out") && !desk.exists("out.partial"));
    // Found at the first sign of work, without waiting for the end.
    let mut command = desk.command(&format!("compress opt --sparsity 0.3 {SAMPLES} -o out"));
    let log = fs::File::create(desk.path("log")).expect("a file");
    let mut child = command.stdout(Stdio::null()).stderr(log).spawn().expect("the command starts");
    while !desk.exists("out.partial") && !desk.exists("out") {
        assert!(child.try_wait().expect("a state").is_none_or(|status| status.success()));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let told = fs::read_to_string(desk.path("log")).expect("text");
    assert!(told.contains("memory plan  host ") && told.contains("calibration  16 samples of 64 tokens"), "{told}");
    assert!(child.wait().expect("an end").success());
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let desk = Desk::new();
    for line in [
        &format!("compress opt --sparsity 0.3 {SAMPLES} -o out --json"),
        &format!("calibrate opt {SAMPLES} -o statistics"),
        "eval opt --text test.txt --seq-len 64 --max-windows 2 --device cpu",
        "generate opt --prompt Once --max-new-tokens 8 --device cpu",
        "inspect opt",
        "completions bash",
        "compress --help",
        "--version",
    ] {
        let mut command = desk.command(line);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("an end");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "modegpt {line}\n{told}");
        assert!(!told.contains("error:"), "modegpt {line}\n{told}");
    }
    assert!(desk.exists("out/config.json") && desk.exists("statistics"));
}

const COMMANDS: &str =
    "demo compress calibrate plan eval compare reproduce generate inspect doctor bench studio completions";

#[test]
fn every_command_has_help() {
    let desk = Desk::new();
    let short = desk.run("-h").ok().stdout;
    for command in COMMANDS.split(' ') {
        assert!(short.contains(&format!("\n  {command} ")), "`{command}` is missing in\n{short}");
        for flag in ["-h", "--help"] {
            let told = desk.run(&format!("{command} {flag}")).ok();
            assert!(told.stdout.contains(&format!("Usage: modegpt {command}")), "{}", told.stdout);
            assert_eq!(told.stderr, "");
        }
    }
    let listed = short.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    assert_eq!(listed.filter(|line| !line.starts_with("  help ")).count(), COMMANDS.split(' ').count(), "{short}");
    assert!(desk.run("--version").ok().stdout.starts_with("modegpt "));
}

/// Both helps of the program and of every command, each in a file that reads as a terminal shows it.
#[test]
fn helps_are_as_kept() {
    let desk = Desk::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let update = std::env::var_os("UPDATE_SNAPSHOTS").is_some();
    let (mut expected, mut changed) = (Vec::new(), Vec::new());
    for command in COMMANDS.split(' ').chain([""]) {
        for flag in ["-h", "--help"] {
            let told = desk.run(&format!("{command} {flag}")).ok().stdout;
            let program = if command.is_empty() { "modegpt" } else { command };
            let name = format!("{program}-{}.txt", flag.trim_start_matches('-'));
            if update {
                fs::write(folder.join(&name), &told).expect("the snapshot is written");
            }
            if fs::read_to_string(folder.join(&name)).ok().as_ref() != Some(&told) {
                changed.push(format!("{name}\n{told}"));
            }
            assert!(told.lines().all(|line| line.chars().count() <= 100), "{name} is too wide\n{told}");
            expected.push(name);
        }
    }
    assert!(changed.is_empty(), "UPDATE_SNAPSHOTS=1 keeps the new texts of\n{}", changed.join("\n"));
    expected.sort();
    let mut found: Vec<String> = fs::read_dir(folder)
        .expect("snapshots")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, expected, "every snapshot belongs to a command");
}

#[test]
fn completions_name_every_command() {
    let desk = Desk::new();
    let script = desk.run("completions bash").ok().stdout;
    assert!(script.contains("complete -F _modegpt"), "{script}");
    for word in COMMANDS.split(' ').chain(["--sparsity", "--calibration", "--target-bytes"]) {
        assert!(script.contains(word), "`{word}` is missing");
    }
    assert!(desk.run("completions zsh").ok().stdout.starts_with("#compdef modegpt"));
}

#[test]
fn wrong_use_ends_with_two() {
    let desk = Desk::new();
    for (line, expected) in [
        (format!("compress opt {SAMPLES} -o out"), "--sparsity"),
        ("compress opt --sparsity 0.3 --device cpu -o out".to_owned(), "--calibration"),
        (format!("compress opt --sparsity 0.3 {SAMPLES}"), "--output"),
        (format!("compress opt --sparsity 0.3 {SAMPLES} -o out --force --resume"), "'--force' cannot be used with"),
        (format!("compress opt --sparsity 0.3 --target-params 1M {SAMPLES} -o out"), "cannot be used with"),
        (format!("compress opt --sparsity 0.3 --plan p {SAMPLES} -o out"), "cannot be used with"),
        ("compress opt --sparsity 0.3 --statistics s --prefix --device cpu -o out".to_owned(), "--calibration"),
        (format!("compress opt --sparsity many {SAMPLES} -o out"), "invalid value 'many'"),
        (format!("compress opt --target-bytes 4GiBB {SAMPLES} -o out"), "expected a number of bytes such as 8GiB"),
        (format!("compress opt --target-params x {SAMPLES} -o out"), "expected a number such as 100M"),
        (
            format!("compress opt --sparsity 0.3 --allocation uniform --epsilon 1 {SAMPLES} -o out"),
            "--epsilon belongs to --allocation block-influence",
        ),
        ("calibrate opt -o out --device cpu".to_owned(), "--calibration"),
        ("plan opt --sparsity 0.3".to_owned(), "--statistics"),
        ("eval opt --device cpu".to_owned(), "--text"),
        ("squeeze opt".to_owned(), "unrecognized subcommand 'squeeze'"),
        ("eval opt --text test.txt --device tpu".to_owned(), "invalid value 'tpu'"),
    ] {
        desk.run(&line).refused(2, &[expected]);
    }
    assert!(!desk.exists("out") && !desk.exists("out.partial"));
}

#[test]
fn a_count_of_zero_is_wrong_use() {
    let desk = Desk::new();
    let compress = format!("compress opt --sparsity 0.3 {SAMPLES} -o out");
    let bench = "bench opt --device cpu".to_owned();
    let eval = "eval opt --text test.txt --device cpu".to_owned();
    let plan = "plan opt --sparsity 0.3 --statistics none".to_owned();
    // These are given by SAMPLES already, and may be given once.
    let bare = "calibrate opt --calibration train.txt --device cpu -o out".to_owned();
    let common = ["--batch-tokens", "--threads"];
    for (line, options) in [
        (&compress, [&common[..], &["--shards", "--fisher", "--round-ff", "--round-head"]].concat()),
        (&bare, [&common[..], &["--shards", "--fisher", "--samples", "--seq-len"]].concat()),
        (&plan, vec!["--round-ff", "--round-head"]),
        (&eval, [&common[..], &["--seq-len", "--stride", "--max-windows"]].concat()),
        (&bench, [&common[..], &["--seq-len"]].concat()),
        (&"generate opt --prompt Once --device cpu".to_owned(), common.to_vec()),
        (&"demo --device cpu".to_owned(), common.to_vec()),
    ] {
        for option in options {
            let told = desk.run(&format!("{line} {option} 0"));
            let told = told.refused(2, &[&format!("invalid value '0' for '{option} "), "a whole number of at least 1"]);
            assert!(!told.stderr.contains('{'), "{}", told.stderr);
        }
    }
    assert!(!desk.exists("out") && !desk.exists("out.partial"));
}

#[test]
fn a_folder_is_preferred_to_a_model_of_the_hub_and_that_is_said() {
    let desk = Desk::new();
    let told = desk.run("inspect opt").ok();
    assert!(told.stderr.contains("`opt` is the one here, not the hub's\n"), "{}", told.stderr);
    let told = desk.run("inspect gpt3").refused(1, &["offline", "`gpt3`"]);
    assert!(told.stderr.contains("`gpt3` is the hub's: there is none of that name here\n"), "{}", told.stderr);
    // Nothing to be mistaken about.
    assert_eq!(desk.run("inspect ./opt").ok().stderr, "");
}
