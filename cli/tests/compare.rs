//! `modegpt compare` and `modegpt reproduce`: what they write, what they refuse, and how they end.

mod harness;

use harness::{Desk, Outcome};
use serde_json::{Value, json};

const SAMPLES: &str = "--calibration train.txt --samples 16 --seq-len 64 --device cpu";
const TEXT: &str = "--text test.txt --text-seq-len 64 --max-windows 4 --new-tokens 8";

#[test]
fn a_comparison_is_a_page_a_table_and_an_object() {
    let desk = Desk::new();
    let line = format!("compare llama --methods paper,best --sparsity 0.3..0.3 {SAMPLES} {TEXT} -o report");
    let report = desk.run(&format!("{line} --json")).json();
    assert_eq!(report["cells"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["protocol"]["model"]["name"], "llama");
    assert_eq!(report["protocol"]["command"], format!("modegpt {line} --json"));
    for speed in ["tokens_per_sec", "tokens_per_sec_alone"] {
        assert!(report["dense"][speed].as_f64().is_some_and(|speed| speed > 0.0), "{speed}");
    }
    assert_eq!(desk.json("report/report.json"), report);
    let text = |name: &str| String::from_utf8(harness::read(&desk.path(name))).expect("text");
    assert!(text("report/report.csv").starts_with("part,label,method,sparsity,seed,"));
    let page = text("report/report.html");
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n") && page.contains("<svg "));
    // Asked again, nothing is computed; people see a table and where the page is.
    let told = desk.run(&format!("{line} --resume")).ok();
    assert!(told.stdout.contains("written      report/report.html"), "{}", told.stdout);
    assert!(told.stdout.contains("\npaper") && told.stdout.contains("\ndense"), "{}", told.stdout);
    assert!(told.stderr.contains("memory plan") && told.stderr.contains("2 of 2 cells are kept"), "{}", told.stderr);
    assert!(!told.stderr.contains("cell 1 of"), "{}", told.stderr);

    desk.run(&line).refused(1, &["`report` exists and is not empty", "--resume"]);
    let other = line.replace("--samples 16", "--samples 8");
    desk.run(&format!("{other} --resume"))
        .refused(1, &["was computed differently", "samples was 16 of 64 tokens, now 8"]);
}

#[test]
fn what_cannot_be_compared_is_refused_before_any_work() {
    let desk = Desk::new();
    let refused = |arguments: &str, code: i32, expected: &[&str]| {
        desk.run(&format!("compare llama {SAMPLES} {TEXT} -o report {arguments}")).refused(code, expected);
        assert!(!desk.exists("report"), "{arguments}");
    };
    refused("--methods paper,bset", 2, &["no method `bset`", "expected"]);
    refused("--methods best-unifrom", 2, &["`unifrom` is nothing that can stand behind a mode"]);
    refused("--methods paper-fisher", 2, &["no method `paper-fisher`"]);
    refused("--sparsity 0.3,1.5", 2, &["--sparsity", "expected a number in [0, 1)"]);
    refused("--sparsity 0.3,0.99", 1, &["paper at 99 %, seed 0: ", "sparsity"]);
    refused("--sparsity 0.5..0.1", 2, &["--sparsity", "expected a range such as 0.1..0.5"]);
    refused("--sparsity 0.2..0.4,0.3", 1, &["sparsity 0.3 is named twice"]);
    refused("--sparsity 0.3,0.3", 1, &["sparsity 0.3 is named twice"]);
    refused("--seeds 1,1", 1, &["seed 1 is named twice"]);
    refused("--text absent.txt", 1, &["cannot read text `absent.txt`"]);
    refused("--force --resume", 2, &["cannot be used with"]);
}

/// The stored table of a model, as the repository has it.
fn table(model: &str) -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/results/");
    let text = std::fs::read_to_string(format!("{path}{model}.json")).expect("a table");
    serde_json::from_str(&text).expect("JSON")
}

fn reproduce(desk: &Desk, arguments: &str) -> Outcome {
    let data = std::env::var_os("MODEGPT_DATA").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data").to_owned(),
        |data| data.to_string_lossy().into_owned(),
    );
    desk.run(&format!("reproduce --device cpu --data {data} {arguments}"))
}

#[test]
fn stored_numbers_are_found_again_and_others_are_not() {
    let desk = Desk::new();
    let found = reproduce(&desk, "--json").json();
    let stored = ["stories260k", "opt-tiny-stories"].map(table);
    let n_rows: usize = stored.iter().map(|table| 1 + table["rows"].as_array().expect("rows").len()).sum();
    assert_eq!((&found["pass"], found["rows"].as_array().map(Vec::len)), (&json!(true), Some(n_rows)));

    let [mut stored, _] = stored;
    // One method is enough here.
    stored["rows"].as_array_mut().expect("rows").retain(|row| row["method"] == "paper-uniform");
    stored["rows"][0]["perplexity"] = json!(stored["rows"][0]["perplexity"].as_f64().expect("a number") * 1.02);
    desk.write_json("table.json", &stored);
    let outcome = reproduce(&desk, "--table table.json");
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("FAIL") && outcome.stdout.contains("pass"), "{}", outcome.stdout);
    assert!(outcome.stderr.contains("1 of 2 numbers differ"), "{}", outcome.stderr);
}

#[test]
fn numbers_of_other_models_or_texts_are_not_compared() {
    let desk = Desk::new();
    let stored = table("stories260k");
    let refused = |change: &dyn Fn(&mut Value), arguments: &str, expected: &[&str]| {
        let mut table = stored.clone();
        change(&mut table);
        desk.write_json("table.json", &table);
        reproduce(&desk, &format!("--table table.json {arguments}")).refused(1, expected);
    };
    refused(&|_| {}, "--model opt", &["cannot reproduce: fingerprint of `opt`: expected"]);
    refused(
        &|table| table["text"]["sha256"] = json!("00"),
        "",
        &["cannot reproduce: SHA-256 of", "expected 00, found"],
    );
    let samples = |table: &mut Value| table["calibration"]["samples"] = json!(3);
    refused(&samples, "", &["cannot reproduce: token hash of the calibration samples"]);
    refused(&|table| table["rows"] = json!([]), "", &["cannot read table `table.json`", "expected a row for each"]);
    let names = "no table `gpt5`: expected one of stories260k, opt-tiny-stories, smollm2-135m";
    reproduce(&desk, "--only gpt5").refused(2, &[names]);
    // A table is found by the weights, or there is none.
    let mut tensors = harness::tensors::read_file(&desk.path("llama/model.safetensors"));
    tensors.get_mut("model.norm.weight").expect("a norm").data[0] ^= 1;
    harness::tensors::write_file(&desk.path("llama/model.safetensors"), &tensors);
    let told = reproduce(&desk, "--model llama");
    told.refused(1, &["no stored numbers of the model in `llama`", "stories260k, opt-tiny-stories, smollm2-135m"]);
    reproduce(&desk, "--model nowhere").refused(1, &["nowhere"]);
    reproduce(&desk, "--only stories260k --model opt")
        .refused(1, &["cannot reproduce: fingerprint of `opt`: expected"]);
    desk.run("reproduce --data nowhere --device cpu").refused(1, &["nothing to reproduce"]);
}
