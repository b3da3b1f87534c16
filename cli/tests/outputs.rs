//! What runs leave behind: whole folders or none, the same bytes every time, by whichever way they were made.

mod harness;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use harness::tensors::{self, Tensors};
use harness::{Desk, Outcome, SAMPLES};
use serde_json::{Value, json};

/// A calibration that takes long enough to be interrupted.
const MANY: &str = "--calibration train.txt --samples 40 --seq-len 256 --batch-tokens 512 --device cpu";

fn weights(desk: &Desk, folder: &str) -> Tensors {
    tensors::of_folder(desk, folder)
}

#[test]
fn an_output_is_replaced_only_by_force() {
    let desk = Desk::new();
    let line = format!("compress opt --sparsity 0.3 {SAMPLES} -o out");
    desk.run(&line).ok();
    desk.copy("out", "first");
    for flag in ["", "--resume"] {
        desk.run(&format!("{line} {flag}")).refused(1, &["`out` exists and is not empty", "--force"]);
        desk.assert_same("out", "first");
    }
    let other = line.replace("0.3", "0.5");
    desk.run(&format!("{other} --force")).ok();
    assert_ne!(weights(&desk, "out"), weights(&desk, "first"));
    desk.run(&format!("{line} --force")).ok();
    desk.assert_same("out", "first");
    assert!(!desk.exists("out.partial") && !desk.exists("out.old"));
    // A folder without content, or one that is named as folders may be, is as good as none.
    std::fs::create_dir(desk.path("empty")).expect("a folder");
    desk.run(&format!("compress opt --sparsity 0.3 {SAMPLES} -o ./empty/")).ok();
    desk.assert_same("empty", "first");
}

#[test]
fn an_unfinished_run_is_continued_or_replaced_only_when_asked() {
    let desk = Desk::new();
    let line = |out: &str| format!("compress opt --sparsity 0.3 {MANY} -o {out}");
    desk.run(&line("whole")).ok();
    interrupt(&desk, &line("out"), "statistics/layer-00001.safetensors");
    desk.run(&line("out")).refused(1, &["`out.partial` holds an unfinished run", "--resume", "--force"]);
    for (change, with, named) in [
        ("--sparsity 0.3", "--sparsity 0.4", "differently: --sparsity was 0.3, now 0.4\n"),
        (
            "--sparsity 0.3",
            "--target-params 600K",
            "differently: --sparsity was 0.3, now not given; --target-params was not given, now 600000\n",
        ),
        ("--sparsity 0.3", "--sparsity 0.3 --mode paper", "--mode was best, now paper"),
        ("--sparsity 0.3", "--sparsity 0.3 --mlp leverage", "differently: --mlp was not given, now leverage\n"),
        ("--sparsity 0.3", "--sparsity 0.3 --allocation uniform", "--allocation was not given, now uniform\n"),
        ("--samples 40", "--samples 39", "--samples was 40, now 39"),
        ("--samples 40", "--samples 40 --seed 1", "calibration tokens was"),
        ("--samples 40", "--samples 40 --fisher", "--fisher was not given, now 2048"),
        ("--device cpu", "--device cpu --dtype f32", "--dtype was f16, now f32"),
        ("--device cpu", "--device cpu --ridge 0.1", "--ridge was 0.001, now 0.1"),
        ("--device cpu", "--device cpu --shards 2", "--shards was 1, now 2"),
        ("compress opt", "compress gpt2", "model was"),
    ] {
        let other = line("out").replace(change, with);
        let expected = ["cannot resume `out.partial`, which was begun differently", named];
        let told = desk.run(&format!("{other} --resume")).refused(1, &expected);
        assert!(!told.stderr.contains('{'), "{}", told.stderr);
    }
    assert!(!desk.exists("out"));
    desk.run(&format!("{} --resume", line("out"))).ok();
    desk.assert_same("out", "whole");

    interrupt(&desk, &line("again"), "statistics/layer-00001.safetensors");
    desk.run(&format!("{} --force", line("again").replace("0.3", "0.5"))).ok();
    assert!(!desk.exists("again.partial"));
    assert_ne!(weights(&desk, "again"), weights(&desk, "whole"));
    // To resume what was never begun is to begin.
    desk.run(&format!("{} --resume", line("fresh"))).ok();
    desk.assert_same("fresh", "whole");
}

#[test]
fn a_run_killed_at_any_moment_ends_in_the_same_bytes() {
    let moments = [
        "",
        "journal.json",
        "stream-00001.f32",
        "statistics/layer-00000.safetensors",
        "statistics/layer-00002.safetensors",
        "statistics/layer-00003.safetensors",
        "model-00001-of-00005.safetensors",
        "model-00003-of-00005.safetensors",
        "layers/00001.json",
        "layers/00002.json",
        "modegpt_report.json",
        "config.json",
    ];
    let desk = Desk::new();
    let line = |out: &str| format!("compress opt --sparsity 0.3 {MANY} -o {out}");
    desk.run(&line("whole")).ok();
    for moment in moments {
        interrupt(&desk, &line("out"), moment);
        desk.run(&format!("{} --resume", line("out"))).ok();
        assert!(!desk.exists("out.partial"), "killed at `{moment}`");
        desk.assert_same("out", "whole");
        desk.remove("out");
    }
    // More than once, and with the stream on the disk.
    let on_disk = format!("{} --max-ram {}", line("out"), planned_bytes(&desk, MANY) - 1);
    interrupt(&desk, &on_disk, "statistics/layer-00000.safetensors");
    interrupt(&desk, &format!("{on_disk} --resume"), "statistics/layer-00002.safetensors");
    interrupt(&desk, &format!("{} --resume", line("out")), "layers/00000.json");
    desk.run(&format!("{on_disk} --resume")).ok();
    desk.assert_same("out", "whole");
}

#[test]
fn a_run_killed_when_its_output_has_appeared_leaves_it_clean() {
    let desk = Desk::new();
    let line = |out: &str| format!("compress opt --sparsity 0.3 {SAMPLES} -o {out}");
    desk.run(&line("whole")).ok();
    for attempt in 0..5 {
        let mut child =
            desk.command(&line("out")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a process");
        while !desk.exists("out") {
            assert!(child.try_wait().expect("a state").is_none_or(|status| status.success()), "attempt {attempt}");
        }
        child.kill().expect("killed");
        child.wait().expect("an end");
        desk.assert_same("out", "whole");
        // Whatever it left beside its output is in nobody's way.
        desk.remove("out");
        desk.run(&line("out")).ok();
        desk.assert_same("out", "whole");
        assert!(!desk.exists("out.partial"), "attempt {attempt}");
        desk.remove("out");
    }
}

#[test]
fn a_killed_calibration_ends_in_the_same_bytes() {
    let desk = Desk::new();
    let line = |out: &str| format!("calibrate llama {MANY} -o {out}");
    desk.run(&line("whole")).ok();
    for moment in ["journal.json", "layer-00000.safetensors", "stream-00003.f32", "layer-00003.safetensors"] {
        interrupt(&desk, &line("out"), moment);
        desk.run(&format!("{} --resume", line("out"))).ok();
        desk.assert_same("out", "whole");
        desk.remove("out");
    }
}

#[test]
fn what_a_killed_run_leaves_half_written_does_not_reach_the_output() {
    let desk = Desk::new();
    let line = |out: &str| format!("compress opt --sparsity 0.3 {MANY} -o {out}");
    desk.run(&line("whole")).ok();
    interrupt(&desk, &line("out"), "statistics/layer-00001.safetensors");
    // As after a kill between two steps: streams of layers that are done or begun, files that were being written.
    for name in [
        "stream-00000.f32",
        "stream-00000.tmp",
        "stream-00001.f32",
        "stream-00003.tmp",
        "model-00002-of-00005.safetensors.tmp",
    ] {
        desk.write(&format!("out.partial/output/{name}"), b"half");
    }
    // The stream to resume from is damaged: it is computed anew.
    for name in ["stream-00002.f32", "stream-00003.f32"] {
        desk.write(&format!("out.partial/output/{name}"), b"damaged");
    }
    let told = desk.run(&format!("{} --resume", line("out"))).ok();
    assert!(told.stderr.contains("computing the stream through layer 1 again"), "{}", told.stderr);
    desk.assert_same("out", "whole");
}

/// Everything that mode best may do: gradients, surveys, and the refit on the compressed prefix with its streams.
#[test]
fn mode_best_killed_at_any_stage_resumes_to_the_same_bytes() {
    let desk = Desk::new();
    for (model, maps) in [("opt", "all"), ("llama", "all"), ("llama", "output")] {
        let line = |out: &str| format!("compress {model} --sparsity 0.3 --fisher 512 --prefix {maps} {MANY} -o {out}");
        desk.run(&line("whole")).ok();
        for file in [
            "statistics/gradients-00001.safetensors",
            "surveys/nats-00002-*",
            "surveys/residual-energy-00002-*",
            "surveys/tried.json",
            "prefix/samples/original/stream-00001.f32",
            "layers/00001.json",
            "prefix/openings/compressed/stream-00003.f32",
        ] {
            interrupt(&desk, &line("out"), file);
            desk.run(&format!("{} --resume", line("out"))).ok();
            desk.assert_same("out", "whole");
            desk.remove("out");
        }
        // Without the streams the layers are made anew.
        interrupt(&desk, &line("out"), "layers/00002.json");
        desk.remove("out.partial/output/prefix");
        desk.run(&format!("{} --resume", line("out"))).ok();
        desk.assert_same("out", "whole");
        desk.remove("out");
        // With both streams on the disk.
        let line = format!("compress {model} --sparsity 0.3 --prefix {maps} {MANY}");
        let planned = desk.run(&format!("{line} -o memory --json")).json()["planned_host_bytes"].as_u64();
        let most = planned.expect("bytes") - 1;
        let told = desk.run(&format!("{line} --max-ram {most} -o disk")).ok();
        assert!(told.stderr.contains("on the disk"), "{}", told.stderr);
        desk.assert_same("disk", "memory");
        desk.remove("disk");
        desk.remove("memory");
        desk.remove("whole");
    }
}

/// Maps by themselves: gradients with Fisher information, surveys of maps, layers of products.
#[test]
fn modes_of_maps_killed_at_any_stage_resume_to_the_same_bytes() {
    let desk = Desk::new();
    let curves = "--allocation error-curves --sparsity 0.2";
    for (mode, files) in [
        ("fwsvd", &["statistics/gradients-00001.safetensors", "surveys/nats-00002-*", "layers/00001.json"][..]),
        ("svd-llm", &["statistics/layer-00002.safetensors", "surveys/map-energy-00000-*", "layers/00002.json"]),
    ] {
        let line = |out: &str| format!("compress llama --mode {mode} {curves} {MANY} -o {out}");
        desk.run(&line("whole")).ok();
        for file in files {
            interrupt(&desk, &line("out"), file);
            desk.run(&format!("{} --resume", line("out"))).ok();
            desk.assert_same("out", "whole");
            desk.remove("out");
        }
        interrupt(&desk, &line("out"), files[0]);
        let other = line("out").replace(curves, "--sparsity 0.2");
        desk.run(&format!("{other} --resume")).refused(1, &["begun differently", "--allocation"]);
        desk.remove("out.partial");
        desk.remove("whole");
    }
}

#[test]
fn a_run_in_progress_is_not_disturbed() {
    let desk = Desk::new();
    let line = |out: &str| format!("compress opt --sparsity 0.3 {MANY} -o {out}");
    desk.run(&line("whole")).ok();
    interrupt(&desk, &line("out"), "statistics/layer-00001.safetensors");
    desk.copy("out.partial", "seen");
    // A run that is still alive holds this lock.
    let lock = File::options().write(true).open(desk.path("out.partial/lock")).expect("a file");
    lock.lock().expect("locked");
    desk.run(&line("out")).refused(1, &["`out.partial` holds an unfinished run"]);
    for flag in ["--resume", "--force"] {
        desk.run(&format!("{} {flag}", line("out"))).refused(1, &["`out.partial` is in use by another run"]);
        desk.assert_same("out.partial", "seen");
    }
    drop(lock);
    desk.run(&format!("{} --resume", line("out"))).ok();
    desk.assert_same("out", "whole");
}

#[cfg(unix)]
#[test]
fn a_disk_that_is_full_is_named_and_nothing_is_lost() {
    let desk = Desk::new();
    desk.run(&format!("calibrate opt {SAMPLES} -o of-opt")).ok();
    let opt = format!("compress opt --sparsity 0.3 {SAMPLES}");
    let few =
        "compress llama --sparsity 0.3 --mode paper --calibration train.txt --samples 4 --seq-len 64 --device cpu";
    let on_disk = format!("{opt} --max-ram {}", planned_bytes(&desk, SAMPLES) - 1);
    for (line, kib, file, is_kept) in [
        // The stream between layers has 384 KiB, statistics 632, the first shard 434.
        (opt.as_str(), 200, "stream-00001.f32", false),
        (&on_disk, 200, "stream-00000.tmp", false),
        (&opt, 500, "statistics/layer-00000.safetensors", true),
        (
            "compress opt --sparsity 0.3 --mode paper --statistics of-opt --device cpu",
            200,
            "model-00001-of-00005.safetensors",
            false,
        ),
        // The stream has 64 KiB, statistics 126, the first shard 129, others up to 180.
        (few, 150, "model-0000", true),
        (&format!("calibrate opt {SAMPLES}"), 500, "layer-00000.safetensors", true),
    ] {
        desk.run(&format!("{line} -o whole")).ok();
        let told = limited(&desk, &format!("{line} -o out"), kib);
        let kept = if is_kept { "\nwhat was done is kept in `out.partial`: --resume" } else { "\n" };
        told.refused(1, &[&format!("`out.partial/output/{file}"), "File too large", kept]);
        assert!(!desk.exists("out") && desk.exists("out.partial") == is_kept, "modegpt {line}");
        if is_kept {
            let files = desk.files("out.partial");
            assert!(!files.keys().any(|name| name.contains(".tmp")), "modegpt {line}: {:?}", files.keys());
        }
        // With room again.
        desk.run(&format!("{line} -o out --resume")).ok();
        desk.assert_same("out", "whole");
        desk.remove("out");
        desk.remove("whole");
    }
    desk.write("plan.json", "old");
    let told = limited(&desk, "plan opt --statistics of-opt --sparsity 0.3 -o plan.json", 1);
    told.refused(1, &["cannot write plan `plan.json`: File too large"]);
    assert_eq!(harness::read(&desk.path("plan.json")), b"old");
    assert!(!desk.exists("plan.json.tmp"));
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_printed_are_no_success() {
    let desk = Desk::new();
    for line in ["inspect opt", "inspect opt --json", "generate opt --prompt Once --max-new-tokens 2 --device cpu"] {
        let full = File::options().write(true).open("/dev/full").expect("a device");
        let output = desk.command(line).stdout(full).output().expect("the command starts");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("error: cannot write to stdout: No space left on device"), "{told}");
    }
}

#[test]
fn two_runs_write_the_same_bytes() {
    let desk = Desk::new();
    for model in ["opt", "llama", "gpt2"] {
        for out in ["one", "two"] {
            desk.run(&format!("compress {model} --sparsity 0.4 {SAMPLES} -o {model}-{out}")).ok();
        }
        desk.assert_same(&format!("{model}-one"), &format!("{model}-two"));
    }
}

#[test]
fn statistics_give_what_a_direct_run_gives() {
    let desk = Desk::new();
    for model in ["opt", "llama"] {
        desk.run(&format!("compress {model} --sparsity 0.3 {SAMPLES} -o {model}-direct")).ok();
        desk.run(&format!("calibrate {model} {SAMPLES} -o {model}-statistics")).ok();
        let statistics = desk.files(&format!("{model}-statistics"));
        for sparsity in ["0.5", "0.3"] {
            let out = format!("-o {model}-{sparsity}");
            desk.run(&format!(
                "compress {model} --sparsity {sparsity} --statistics {model}-statistics --device cpu {out}"
            ))
            .ok();
        }
        desk.assert_same(&format!("{model}-direct"), &format!("{model}-0.3"));
        assert_ne!(weights(&desk, &format!("{model}-0.5")), weights(&desk, &format!("{model}-0.3")));
        // They are only read.
        assert!(statistics == desk.files(&format!("{model}-statistics")));
    }
}

#[test]
fn an_edited_plan_is_obeyed() {
    let desk = Desk::new();
    desk.run(&format!("calibrate opt {SAMPLES} -o statistics")).ok();
    let table = desk.run("plan opt --statistics statistics --sparsity 0.3 -o plan.json").ok().stdout;
    assert!(table.contains("block weights 442,368 → "), "{table}");
    let mut plan = desk.run("plan opt --statistics statistics --sparsity 0.3").json();
    assert_eq!(plan, desk.json("plan.json"));
    // The plan that a compression would make itself.
    desk.run("compress opt --statistics statistics --sparsity 0.3 --device cpu -o direct").ok();
    desk.run("compress opt --statistics statistics --plan plan.json --device cpu -o planned").ok();
    desk.assert_same("direct", "planned");

    for (width, value) in [("d_ff", 201), ("d_qk", 13), ("d_v", 7)] {
        plan["layers"][3][width] = json!(value);
    }
    desk.write_json("edited.json", &plan);
    let summary = desk.run(&format!("compress opt --plan edited.json {SAMPLES} -o edited --json")).json();
    assert_eq!(summary["layers"][3]["after"], json!({"d_ff": 201, "d_qk": 13, "d_v": 7}));
    let layer = &desk.json("edited/config.json")["per_layer_config"][3];
    assert_eq!((&layer["intermediate_size"], &layer["query_key_dim"]), (&json!(201), &json!(13)));
    let after = weights(&desk, "edited");
    let shape = |name: &str| {
        let found: Vec<_> = after.iter().filter(|(key, _)| key.ends_with(&format!("layers.3.{name}.weight"))).collect();
        assert_eq!(found.len(), 1, "{name} in {:?}", after.keys());
        found[0].1.shape.clone()
    };
    assert_eq!(shape("fc1"), [201, 96]);
    assert_eq!(shape("self_attn.q_proj"), [3 * 13, 96]);
    assert_eq!(shape("self_attn.v_proj"), [3 * 7, 96]);
    check_works(&desk, "edited");
    // Other layers are as before.
    let others = |all: &Tensors| -> Tensors {
        all.iter().filter(|(name, _)| !name.contains("layers.3.")).map(|(n, t)| (n.clone(), t.clone())).collect()
    };
    assert!(others(&after) == others(&weights(&desk, "direct")));
}

#[test]
fn statistics_of_parts_add_up() {
    let desk = Desk::new();
    let text = String::from_utf8(harness::read(&desk.path("train.txt"))).expect("text");
    let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
    desk.write("first.txt", first);
    desk.write("second.txt", second);
    let half = |name: &str| {
        let line =
            format!("calibrate opt --calibration {name}.txt --samples 8 --seq-len 64 --device cpu -o {name} --json");
        desk.run(&line).json()
    };
    let (first, second) = (half("first"), half("second"));
    let merged = desk.run("calibrate opt --merge first second -o merged --device cpu --json").json();
    assert_eq!((&merged["n_samples"], &merged["seq_len"]), (&json!(16), &json!(64)));
    for layer in 0..4 {
        let influence = |summary: &Value| summary["block_influence"][layer].as_f64().expect("a number");
        // Both halves have equally many tokens.
        let mean = f64::midpoint(influence(&first), influence(&second));
        assert!((influence(&merged) - mean).abs() < 1e-12, "layer {layer}");
    }
    desk.run("calibrate opt --merge first second -o again --device cpu").ok();
    desk.assert_same("merged", "again");
    let line = "compress opt --sparsity 0.3 --statistics merged --device cpu -o out --json";
    assert_eq!(desk.run(line).json()["calibration_samples"], 16);
    check_works(&desk, "out");
}

#[test]
fn the_stream_on_the_disk_changes_nothing() {
    let desk = Desk::new();
    for model in ["opt", "llama"] {
        let line = |out: &str| format!("compress {model} --sparsity 0.3 {SAMPLES} -o {model}-{out} --json");
        let summary = desk.run(&line("memory")).json();
        let most = summary["planned_host_bytes"].as_u64().expect("bytes") - 1;
        let told = desk.run(&format!("{} --max-ram {most}", line("disk"))).ok();
        assert!(told.stderr.contains("on the disk"), "{}", told.stderr);
        desk.assert_same(&format!("{model}-memory"), &format!("{model}-disk"));
        let told = desk.run(&format!("calibrate {model} {SAMPLES} -o {model}-s --max-ram {most}")).ok();
        assert!(told.stderr.contains("on the disk"), "{}", told.stderr);
        assert!(desk.files(&format!("{model}-s")).keys().all(|name| name.starts_with("layer-")));
    }
}

#[test]
fn a_compressed_model_is_a_model() {
    let desk = Desk::new();
    for model in ["opt", "llama", "gpt2"] {
        let (small, smaller) = (format!("{model}-small"), format!("{model}-smaller"));
        let first = desk.run(&format!("compress {model} --sparsity 0.3 {SAMPLES} -o {small} --json")).json();
        let second = desk.run(&format!("compress {small} --sparsity 0.2 {SAMPLES} -o {smaller} --json")).json();
        assert_eq!(first["params_after"], second["params_before"]);
        assert_eq!(first["bytes_after"], second["bytes_before"]);
        let sparsity = second["sparsity"].as_f64().expect("a number");
        assert!((sparsity - 0.2).abs() < 0.01, "{model}: {sparsity}");
        let perplexities = [model, &small, &smaller].map(|folder| check_works(&desk, folder));
        assert!(perplexities[2] < 20.0 * perplexities[0], "{model}: {perplexities:?}");
        let told = desk.run(&format!("inspect {smaller} --json")).json();
        assert_eq!((&told["compressed"], &told["params"]["total"]), (&json!(true), &second["params_after"]));
    }
}

#[test]
fn nothing_removed_is_nothing_changed() {
    let desk = Desk::new();
    for (model, dtype) in [("opt", "f16"), ("llama", "f32"), ("gpt2", "f16")] {
        let out = format!("{model}-same");
        let line = format!("compress {model} --sparsity 0 {SAMPLES} --dtype {dtype} -o {out} --json");
        let summary = desk.run(&line).json();
        assert_eq!(summary["params_before"], summary["params_after"]);
        assert!((check_works(&desk, &out) - check_works(&desk, model)).abs() < 1e-9, "{model}");
    }
}

#[test]
fn rotary_pairs_are_kept_whole() {
    let desk = Desk::new();
    desk.run(&format!("compress llama --sparsity 0.5 {SAMPLES} -o out")).ok();
    let layers = desk.json("out/config.json")["per_layer_config"].clone();
    let layers: Vec<BTreeMap<String, Value>> = serde_json::from_value(layers).expect("layers");
    assert_eq!(layers.len(), 5);
    let mut n_with_pairs = 0;
    for layer in &layers {
        let width = layer["query_key_dim"].as_u64().expect("a width");
        let pairs: Option<Vec<Vec<u64>>> = serde_json::from_value(layer["rotary_pairs"].clone()).expect("pairs");
        let Some(pairs) = pairs else {
            assert_eq!(width, 8, "a layer without pairs has all of them");
            continue;
        };
        n_with_pairs += 1;
        assert_eq!(pairs.len(), 4, "one list for each key head");
        for head in pairs {
            assert_eq!(2 * head.len() as u64, width);
            assert!(head.is_sorted_by(|a, b| a < b) && head.iter().all(|&pair| pair < 4), "{head:?}");
        }
    }
    assert!(n_with_pairs > 0);
    check_works(&desk, "out");
}

#[test]
fn the_element_type_is_that_asked_for() {
    let desk = Desk::new();
    let original = check_works(&desk, "opt");
    for (name, stored, torch, bytes) in
        [("f32", "F32", "float32", 4), ("bf16", "BF16", "bfloat16", 2), ("f16", "F16", "float16", 2)]
    {
        let line = format!("compress opt --sparsity 0.2 {SAMPLES} --dtype {name} -o {name} --json");
        let summary = desk.run(&line).json();
        let all = weights(&desk, name);
        assert!(all.values().all(|tensor| tensor.dtype == stored), "{name}");
        assert_eq!(desk.json(&format!("{name}/config.json"))["torch_dtype"], torch);
        let params = summary["params_after"].as_u64().expect("a count");
        assert_eq!(summary["bytes_after"], bytes * params);
        assert_eq!(summary["dtype"], name);
        assert!(check_works(&desk, name) < 1.5 * original);
    }
    let (single, half, brain) = (check_works(&desk, "f32"), check_works(&desk, "f16"), check_works(&desk, "bf16"));
    assert!((half / single - 1.0).abs() < 0.005 && (brain / single - 1.0).abs() < 0.03, "{single} {half} {brain}");
}

#[test]
fn sizes_are_met() {
    let desk = Desk::new();
    for (model, target, name, asked) in [
        ("opt", "--target-params 550K", "params_after", 550_000.0),
        ("opt", "--target-bytes 1.1MB", "bytes_after", 1_100_000.0),
        ("opt", "--target-bytes 2.2MB --dtype f32", "bytes_after", 2_200_000.0),
        ("llama", "--target-params 200000", "params_after", 200_000.0),
        ("gpt2", "--target-bytes 1MiB", "bytes_after", 1_048_576.0),
    ] {
        let line = format!("compress {model} {target} {SAMPLES} -o out --force --json");
        let found = desk.run(&line).json()[name].as_f64().expect("a number");
        // One rounding step of the widest layer of these models.
        assert!((found / asked - 1.0).abs() < 0.007, "{target}: {found}");
    }
}

/// The perplexity of `folder`, which also generates.
#[track_caller]
fn check_works(desk: &Desk, folder: &str) -> f64 {
    let line = format!("eval {folder} --text test.txt --seq-len 64 --max-windows 8 --device cpu --json");
    let perplexity = desk.run(&line).json()["perplexity"].as_f64().expect("a number");
    assert!(perplexity > 1.0 && perplexity < 2048.0, "{folder}: {perplexity}");
    let line = format!("generate {folder} --prompt Once --max-new-tokens 4 --device cpu --json");
    assert!(!desk.run(&line).json()["ids"].as_array().expect("ids").is_empty(), "{folder}");
    perplexity
}

/// What the memory plan of `opt` says for the given calibration.
fn planned_bytes(desk: &Desk, calibration: &str) -> u64 {
    let summary = desk.run(&format!("compress opt --sparsity 0.3 {calibration} -o planned --json")).json();
    summary["planned_host_bytes"].as_u64().expect("bytes")
}

/// Runs `line` on what is like a disk with little room: no file can grow beyond `kib`.
#[cfg(unix)]
fn limited(desk: &Desk, line: &str, kib: usize) -> Outcome {
    let plain = desk.command(line);
    let mut shell = Command::new("sh");
    // A shell counts in blocks of 512 bytes. The signal would end the program; without it the system call fails.
    shell.arg("-c").arg(format!("trap '' XFSZ && ulimit -f {} && exec \"$0\" \"$@\"", 2 * kib));
    shell.arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
    shell.current_dir(plain.get_current_dir().expect("the desk"));
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    Outcome::of(line, &mut shell)
}

/// Whether there is such a file; a `*` at the end of its name stands for a hash.
fn is_there(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).expect("a name");
    let Some(start) = name.strip_suffix('*') else { return path.exists() };
    let files = path.parent().and_then(|folder| folder.read_dir().ok()).into_iter().flatten().flatten();
    let mut names = files.filter_map(|file| file.file_name().into_string().ok());
    names.any(|name| name.strip_prefix(start).is_some_and(|hash| hash.strip_suffix(".json").is_some()))
}

/// Runs `line` until the unfinished folder has `file`, and kills it there.
#[track_caller]
fn interrupt(desk: &Desk, line: &str, file: &str) {
    // Late moments are short: a run may end before it is killed.
    const ATTEMPTS: usize = 30;
    let out = line.split_whitespace().skip_while(|word| *word != "-o").nth(1).expect("an output");
    let partial = desk.path(&format!("{out}.partial"));
    let path =
        if ["", "journal.json"].contains(&file) { partial.join(file) } else { partial.join("output").join(file) };
    for _ in 0..ATTEMPTS {
        let mut child = desk.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a process");
        while !is_there(&path) && child.try_wait().expect("a state").is_none() {
            sleep(Duration::from_micros(200));
        }
        child.kill().expect("killed");
        let status = child.wait().expect("an end");
        if !status.success() {
            assert!(!cfg!(unix) || status.code().is_none(), "modegpt {line}\nended with {status} before `{file}`");
            assert!(!desk.exists(out), "killed at `{file}`");
            return;
        }
        desk.remove(out);
    }
    panic!("modegpt {line}\nalways ended before it could be killed at `{file}`");
}
