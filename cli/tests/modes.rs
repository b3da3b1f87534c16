//! The modes beside best and paper, from the command line: what they say, what they refuse, and that they resume.

mod harness;

use std::fmt::Write;

use harness::{Desk, SAMPLES};
use serde_json::{Value, json};

const MODES: [&str; 5] = ["svd", "fwsvd", "asvd", "svd-llm", "sliced"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

fn maps(layer: &Value) -> &[Value] {
    layer["maps"].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn every_mode_compresses_and_tells_what_it_did() {
    let desk = Desk::new();
    for (model, n_maps) in [("opt", 6), ("llama", 7)] {
        for mode in MODES {
            let out = format!("{model}-{mode}");
            let line = format!("compress {model} --mode {mode} --sparsity 0.2 {SAMPLES} -o {out} --json");
            let summary = desk.run(&line).json();
            assert_eq!(summary["mode"], mode);
            assert!((number(&summary["sparsity"]) - 0.2).abs() < 0.005, "{out}: {}", summary["sparsity"]);
            for layer in summary["layers"].as_array().expect("layers") {
                if mode == "sliced" {
                    assert!(layer.get("maps").is_none(), "{layer}");
                    continue;
                }
                assert_eq!((maps(layer).len(), &layer["before"]), (n_maps, &layer["after"]));
                for map in maps(layer) {
                    assert!(map["rank"].is_null() || map["rank"].as_u64().is_some_and(|rank| rank > 0), "{map}");
                    for error in ["relative_error", "output_error"] {
                        assert!(number(&map[error]) >= 0.0, "{map}");
                    }
                }
            }
            let line = format!("eval {out} --text test.txt --seq-len 64 --max-windows 6 --device cpu --json");
            let perplexity = number(&desk.run(&line).json()["perplexity"]);
            assert!(perplexity.is_finite() && perplexity > 1.0, "{out}: {perplexity}");
        }
    }
    let told = desk.run(&format!("compress llama --mode svd-llm --sparsity 0.05 {SAMPLES} -o told")).ok();
    assert!(told.stdout.contains("gate") && told.stdout.contains("of 35 maps stay dense"), "{}", told.stdout);
    assert!(told.stderr.contains("methods      every map by itself: SVD whitened"), "{}", told.stderr);
}

#[test]
fn options_of_other_modes_are_wrong_use() {
    let desk = Desk::new();
    let refused = |options: &str, expected: &[&str]| {
        desk.run(&format!("compress opt --sparsity 0.2 {SAMPLES} -o out {options}")).refused(2, expected);
    };
    refused("--mode svd --mlp leverage", &["--mlp belongs to the modes best and paper"]);
    refused("--mode sliced --value-output values", &["--value-output belongs to the modes best and paper"]);
    refused("--mode svd-llm --prefix", &["--prefix belongs to the modes best and paper"]);
    refused("--mode svd --alpha 0.5", &["--alpha belongs to --mode asvd"]);
    refused("--score wanda", &["--score belongs to --mode sliced"]);
    refused("--mode svd --fisher", &["--fisher"]);
    refused("--mode asvd --fisher-rows", &["--fisher-rows belongs to --mode fwsvd"]);
    refused("--mode svd --round-rank 0", &["--round-rank"]);
    refused("--mode asvd --alpha -1", &["--alpha", "expected a finite number of at least 0"]);
    // A rank of 64 makes no map of these smaller by as much.
    let told = desk.run(&format!("compress opt --mode svd --round-rank 64 --sparsity 0.5 {SAMPLES} -o out"));
    told.refused(1, &["sparsity 0.5", "the ranks allowed remove at most"]);
    assert!(!desk.exists("out") && !desk.exists("out.partial"));
}

#[test]
fn alpha_and_score_are_obeyed() {
    let desk = Desk::new();
    let layers = |options: &str, out: &str| {
        desk.run(&format!("compress opt --sparsity 0.2 {SAMPLES} -o {out} {options}")).ok();
        desk.files(out).into_iter().filter(|(name, _)| name.starts_with("model-")).collect::<Vec<_>>()
    };
    let svd = layers("--mode svd", "svd");
    assert!(layers("--mode asvd --alpha 0", "asvd-0") == svd && layers("--mode asvd", "asvd") != svd);
    assert!(layers("--mode sliced --score magnitude", "magnitude") != layers("--mode sliced", "wanda"));
    assert!(layers("--mode fwsvd --fisher-rows per-token", "token") != layers("--mode fwsvd", "example"));
}

#[test]
fn a_plan_of_ranks_is_read_edited_and_obeyed() {
    let desk = Desk::new();
    desk.run(&format!("calibrate llama --mode svd-llm {SAMPLES} -o statistics")).ok();
    let table = desk.run("plan llama --mode svd-llm --statistics statistics --sparsity 0.2 -o plan.json").ok();
    assert!(table.stdout.contains("query") && table.stdout.contains("20.00 % asked"), "{}", table.stdout);
    let mut plan = desk.json("plan.json");
    assert_eq!(plan["methods"]["maps"], json!({"metric": "svd-llm"}));
    plan["layers"][1]["ranks"]["down"] = json!(9);
    plan["layers"][2]["ranks"]["key"] = Value::Null;
    desk.write_json("edited.json", &plan);
    let summary = desk.run("compress llama --plan edited.json --statistics statistics -o out --json").json();
    let rank = |layer: usize, name: &str| {
        maps(&summary["layers"][layer]).iter().find(|map| map["name"] == name).expect("a map")["rank"].clone()
    };
    assert_eq!((rank(1, "down"), rank(2, "key")), (json!(9), Value::Null));
    assert_eq!(desk.json("out/config.json")["per_layer_config"][1]["ranks"]["down"], json!(9));
    for (path, value, expected) in [
        ("/layers/0/ranks/up", json!(0), "layers[0].ranks.up"),
        ("/layers/0/ranks/up", json!(64), "layers[0].ranks.up"),
        ("/layers/0/ranks/up", json!(1e30), "plan `bad.json`"),
        ("/layers/0/d_ff", json!(8), "layers[0]"),
        ("/methods/maps/metric", json!("worse"), "unknown variant `worse`"),
        ("/unit", json!("nats"), "field `unit`"),
    ] {
        let mut bad = plan.clone();
        *bad.pointer_mut(path).expect("a field") = value;
        desk.write_json("bad.json", &bad);
        desk.run("compress llama --plan bad.json --statistics statistics -o bad").refused(1, &["bad.json", expected]);
    }
    desk.run("compress llama --plan plan.json --mode svd --statistics statistics -o bad").refused(2, &["--mode"]);
}

#[test]
fn statistics_hold_what_the_mode_needs_or_say_so() {
    let desk = Desk::new();
    for mode in ["fwsvd", "sliced"] {
        desk.run(&format!("calibrate opt --mode {mode} {SAMPLES} -o for-{mode}")).ok();
        let direct = format!("compress opt --mode {mode} --sparsity 0.2 {SAMPLES} -o direct-{mode}");
        desk.run(&direct).ok();
        desk.run(&format!("compress opt --mode {mode} --sparsity 0.2 --statistics for-{mode} -o from-{mode}")).ok();
        desk.assert_same(&format!("direct-{mode}"), &format!("from-{mode}"));
    }
    let curves = "--mode fwsvd --allocation error-curves --sparsity 0.2 --statistics for-fwsvd";
    assert_eq!(desk.run(&format!("plan opt {curves} --json")).json()["unit"], "nats");
    desk.run(&format!("calibrate opt --fisher 256 {SAMPLES} -o usual")).ok();
    let told = desk.run("compress opt --mode fwsvd --sparsity 0.2 --statistics usual -o out");
    told.refused(1, &["tell nothing of rows", "calibrate --mode fwsvd"]);
    let told = desk.run("compress opt --mode svd-llm --sparsity 0.2 --statistics usual -o out --force");
    told.refused(1, &["layer 0", "statistic `inputs`"]);
}

/// Lines of a task: a prompt, and the completion whose loss counts.
fn examples(n: usize) -> String {
    let mut text = String::new();
    for index in 0..n {
        let name = ["Tom", "Lily", "Ben", "Anna"][index % 4];
        let line = json!({"prompt": format!("Once upon a time, there was a child named {name}."),
                          "completion": format!(" {name} was very happy."), "id": index});
        writeln!(text, "{line}").expect("text");
    }
    text
}

#[test]
fn labelled_text_feeds_the_gradients() {
    let desk = Desk::new();
    desk.write("task.jsonl", examples(12));
    let line = |out: &str, more: &str| format!("compress opt --mode fwsvd --sparsity 0.3 {SAMPLES} -o {out} {more}");
    desk.run(&line("usual", "")).ok();
    desk.run(&line("task", "--fisher-data task.jsonl")).ok();
    desk.run(&line("again", "--fisher-data task.jsonl")).ok();
    desk.run(&line("few", "--fisher-data task.jsonl --fisher 60")).ok();
    desk.assert_same("task", "again");
    let shard = |out: &str| desk.files(out)["model-00002-of-00005.safetensors"].clone();
    assert!(shard("task") != shard("usual") && shard("task") != shard("few"));
    // Mode best weighs its errors with them.
    let best = |out: &str, more: &str| format!("compress opt --sparsity 0.3 {SAMPLES} -o {out} --json {more}");
    let summary = desk.run(&best("best", "--fisher-data task.jsonl --held-out 0")).json();
    assert_eq!(summary["unit"], "nats");
    desk.run(&format!("calibrate opt --mode fwsvd --fisher-data task.jsonl {SAMPLES} -o statistics")).ok();
    desk.run("compress opt --mode fwsvd --sparsity 0.3 --statistics statistics -o from").ok();
    desk.assert_same("task", "from");

    for (text, expected) in [
        (
            format!("{}{}", examples(2), "{\"prompt\": \"a\", \"completion\": \" \"}\n"),
            "line 3: the completion is empty",
        ),
        ("{\"prompt\": \"a\"}\n".to_owned(), "line 1: no field `completion`"),
        ("prompt\n".to_owned(), "line 1"),
        (String::new(), "holds no document"),
    ] {
        desk.write("bad.jsonl", text);
        desk.run(&line("out", "--fisher-data bad.jsonl")).refused(1, &["bad.jsonl", expected]);
    }
    desk.run(&line("out", "--fisher-data none.jsonl")).refused(1, &["none.jsonl"]);
    let both = "compress opt --mode fwsvd --sparsity 0.3 --statistics statistics --fisher-data task.jsonl -o out";
    desk.run(both).refused(2, &["--fisher-data"]);
    assert!(!desk.exists("out"));
}
