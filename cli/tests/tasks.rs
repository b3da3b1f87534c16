//! Multiple-choice tasks and comparison with a dense model: what is printed, what is kept, what is refused.

mod harness;

use std::fs::File;

use harness::{Desk, SAMPLES};
use serde_json::{Value, json};

/// Questions that a reader of children's stories can answer, and one (the last) that has no right answer.
const STORIES: &str = r#"{"context": "Once upon a time, there was a little", "choices": ["girl named Lily.", "tax on the price."], "gold": 0}
{"context": "Tim was very sad. he", "choices": ["car of blue is went", "wanted to go home.", "of the of"], "gold": 1}

{"context": "Mom said, \"Do not", "choices": ["worry, Tim.\"", "[1] zzqx vortex"], "gold": 1}
"#;

const GAPS: &str = r#"{"sentence": "The little _ was happy and ran to the park.", "choices": ["zq", "dog"], "gold": 1}
"#;

const LINE: &str = "eval opt --tasks hellaswag_tiny.jsonl winogrande_tiny.jsonl --device cpu";

fn desk() -> Desk {
    let desk = Desk::new();
    desk.write("hellaswag_tiny.jsonl", STORIES);
    desk.write("winogrande_tiny.jsonl", GAPS);
    desk
}

#[test]
fn tasks_are_told_with_their_protocol() {
    let desk = desk();
    let summary = desk.run(&format!("{LINE} --json")).json();
    let mut names: Vec<&str> = summary.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected = "bytes device fingerprint params peak_host_bytes program secs special_tokens tasks tokens_per_sec";
    assert_eq!(names, expected.split(' ').collect::<Vec<_>>());
    assert!(summary["tokens_per_sec"].as_f64().is_some_and(|speed| speed > 0.0));
    let mut tasks = summary["tasks"].clone();
    for task in tasks.as_array_mut().expect("a list") {
        for name in ["file_hash", "token_hash"] {
            let hash = task["protocol"][name].take();
            assert!(hash.as_str().is_some_and(|hash| hash.len() == 64), "{name} is {hash}");
        }
    }
    let acc = 2.0 / 3.0;
    let third = f64::sqrt(acc * (1.0 - acc) / 2.0);
    assert_eq!(
        tasks,
        json!([
            {
                "task": "hellaswag", "n": 3, "acc": 2.0 / 3.0, "acc_stderr": third, "acc_norm": 2.0 / 3.0,
                "acc_norm_stderr": third,
                "protocol": {"file": "hellaswag_tiny.jsonl", "file_hash": null, "token_hash": null, "n_truncated": 0}
            },
            {
                "task": "winogrande", "n": 1, "acc": 1.0, "acc_stderr": null, "acc_norm": null,
                "acc_norm_stderr": null,
                "protocol": {"file": "winogrande_tiny.jsonl", "file_hash": null, "token_hash": null, "n_truncated": 0}
            },
        ])
    );
    let told = desk.run(LINE).ok().stdout;
    let table = "task        questions     acc       ±  acc_norm       ±\n\
                 hellaswag           3  0.6667  0.3333    0.6667  0.3333\n\
                 winogrande          1  1.0000       -         -       -\n\
                 token hash  ";
    assert!(told.starts_with(table), "{told}");
}

#[test]
fn a_limit_asks_the_first_questions_only() {
    let desk = desk();
    let ask =
        |line: &str| desk.run(&format!("eval opt --tasks hellaswag_tiny.jsonl --device cpu --json {line}")).json();
    let (all, two) = (ask(""), ask("--limit 2"));
    assert_eq!((&two["tasks"][0]["n"], &two["tasks"][0]["acc"]), (&json!(2), &json!(1.0)));
    assert_eq!(all["tasks"][0]["protocol"]["file_hash"], two["tasks"][0]["protocol"]["file_hash"]);
    assert_ne!(all["tasks"][0]["protocol"]["token_hash"], two["tasks"][0]["protocol"]["token_hash"]);
    assert_eq!(ask("--limit 3")["tasks"], all["tasks"]);
}

#[test]
fn named_tasks_are_looked_for_in_their_folder() {
    let desk = desk();
    std::fs::create_dir(desk.path("folder")).expect("a folder");
    desk.write("folder/hellaswag_valid.jsonl", STORIES);
    let named = desk.run("eval opt --tasks hellaswag --tasks-dir folder --device cpu --json").json();
    let direct = desk.run(&format!("{LINE} --json")).json();
    assert_eq!(named["tasks"][0]["acc"], direct["tasks"][0]["acc"]);
    assert_eq!(named["tasks"][0]["protocol"]["token_hash"], direct["tasks"][0]["protocol"]["token_hash"]);
    // The data folder's own, and text and tasks in one run.
    let both = "eval llama --tasks piqa openbookqa --limit 2 --text test.txt --seq-len 64 --max-windows 2 --device cpu";
    let summary = desk.run(&format!("{both} --json")).json();
    assert_eq!((&summary["tasks"][0]["n"], &summary["tasks"][1]["task"]), (&json!(2), &json!("openbookqa")));
    assert!(summary["perplexity"].as_f64().is_some_and(|perplexity| perplexity > 1.0));
    desk.run("eval opt --tasks piqa --tasks-dir folder --device cpu").refused(1, &["cannot read task `piqa` from"]);
}

/// The scores, without how long they took.
fn tasks(summary: &Value) -> &Value {
    &summary["tasks"]
}

#[test]
fn a_run_that_was_stopped_computes_only_what_is_missing() {
    let desk = desk();
    let line = format!("{LINE} --json --resume answers.jsonl");
    let whole = desk.run(&line).json();
    assert_eq!(tasks(&whole), tasks(&desk.run(&format!("{LINE} --json")).json()));
    let answers = String::from_utf8(harness::read(&desk.path("answers.jsonl"))).expect("text");
    assert_eq!(answers.lines().count(), 1 + 4);
    // Nothing is left to do.
    let again = desk.run(&line).json();
    assert_eq!((tasks(&again), &again["tokens_per_sec"]), (tasks(&whole), &Value::Null));
    assert!(answers.as_bytes() == harness::read(&desk.path("answers.jsonl")));
    // Stopped at any byte.
    let ends: Vec<usize> = answers.match_indices('\n').map(|(place, _)| place).collect();
    for length in [0, 1, 300, ends[0], ends[0] + 1, ends[1] + 1, ends[2] - 1, ends[3], ends[3] + 20] {
        desk.write("answers.jsonl", &answers[..length]);
        assert_eq!(tasks(&desk.run(&line).json()), tasks(&whole), "stopped at byte {length}");
        let told = desk.run(&line).ok();
        assert!(told.stderr.contains("4 answers are kept from an earlier run"), "{}", told.stderr);
    }
    // What is kept is believed: the answer to the first question is turned round.
    let turned = answers.replacen("\"log_likelihoods\":[", "\"log_likelihoods\":[-1000.0,-1.0],\"ignored\":[", 1);
    desk.write("answers.jsonl", turned);
    assert_eq!(desk.run(&line).json()["tasks"][0]["acc"], json!(1.0 / 3.0));
}

#[test]
fn answers_to_something_else_are_refused_and_left_alone() {
    let desk = desk();
    desk.run(&format!("{LINE} --resume answers.jsonl")).ok();
    let answers = harness::read(&desk.path("answers.jsonl"));
    for (line, expected) in [
        (LINE.replace("opt", "gpt2"), "begun differently: model was"),
        (format!("{LINE} --limit 2"), "begun differently: tasks was [hellaswag, 3 questions"),
        (LINE.replace("winogrande_tiny.jsonl", ""), "begun differently: tasks was"),
        (format!("{LINE} --batch-tokens 64"), "batch tokens was 2048, now 64"),
    ] {
        desk.run(&format!("{line} --resume answers.jsonl"))
            .refused(1, &["cannot keep answers in `answers.jsonl`", expected]);
    }
    let lock = File::options().write(true).open(desk.path("answers.jsonl")).expect("a file");
    lock.lock().expect("locked");
    desk.run(&format!("{LINE} --resume answers.jsonl")).refused(1, &["in use by another run"]);
    drop(lock);
    assert!(answers == harness::read(&desk.path("answers.jsonl")));
    let text = String::from_utf8(answers).expect("text");
    let (header, first) = text.split_once('\n').expect("a header");
    for (content, expected) in [
        ("nonsense".to_owned(), "something else than answers"),
        ("{}\n".to_owned(), "something else than answers"),
        (format!("{header}\nnonsense\n"), "line 2: "),
        (
            format!("{header}\n{}", first.replacen("\"task\":0", "\"task\":7", 1)),
            "line 2: there is no question 0 in task 7",
        ),
        (
            format!("{header}\n{}", first.replacen("\"question\":0", "\"question\":3", 1)),
            "line 2: there is no question 3",
        ),
        (format!("{header}\n{}", first.replacen("s\":[", "s\":[-1.0,", 1)), "needs finite answers to 2 choices"),
    ] {
        desk.write("answers.jsonl", &content);
        desk.run(&format!("{LINE} --resume answers.jsonl")).refused(1, &[expected]);
        assert!(content.as_bytes() == harness::read(&desk.path("answers.jsonl")), "{expected}");
    }
    desk.write("binary", b"\xff\xfe\n");
    desk.run(&format!("{LINE} --resume binary")).refused(1, &["something else than answers"]);
    desk.run(&format!("{LINE} --resume opt")).refused(1, &["cannot keep answers in `opt`"]);
}

#[test]
fn tasks_that_cannot_be_used() {
    let desk = desk();
    desk.write("piqa_bad.jsonl", "{\"question\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 2}\n");
    desk.write("piqa_empty.jsonl", "\n");
    desk.write("questions.jsonl", STORIES);
    for (tasks, expected) in [
        ("piqa_bad.jsonl", "text `piqa_bad.jsonl`, line 1: expected 0 to 1 in field `gold`, found 2"),
        ("piqa_empty.jsonl", "text `piqa_empty.jsonl` holds no document"),
        ("piqa_missing.jsonl", "cannot read task `piqa_missing.jsonl`"),
        ("questions.jsonl", "no task `questions.jsonl`: expected one of piqa, arc_easy,"),
        ("mmlu", "no task `mmlu`"),
        ("hellaswag_tiny.jsonl --limit 0", "`limit` is 0, expected at least 1"),
    ] {
        desk.run(&format!("eval opt --device cpu --tasks {tasks}")).refused(1, &[expected]);
    }
    for line in ["--limit 3 --text test.txt", "--resume answers.jsonl --text test.txt", "--against opt"] {
        desk.run(&format!("eval opt --device cpu {line}")).refused(2, &["required arguments were not provided"]);
    }
}

#[test]
fn choices_beyond_the_context_are_told() {
    let desk = desk();
    let long = "The dog ran. ".repeat(200);
    desk.write("openbookqa_long.jsonl", json!({"question": long, "choices": ["a", "b"], "gold": 0}).to_string());
    let told = desk.run("eval opt --tasks openbookqa_long.jsonl --device cpu --json").ok();
    assert!(told.stderr.contains("2 choices of openbookqa_long.jsonl exceed the model's context"), "{}", told.stderr);
    let summary: Value = serde_json::from_str(&told.stdout).expect("JSON");
    assert_eq!(summary["tasks"][0]["protocol"]["n_truncated"], 2);
}

#[test]
fn speed_is_told_for_one_prompt_and_for_many() {
    let desk = desk();
    let summary = desk.run("eval llama --speed --device cpu --json").json();
    let reading = summary["reading"].as_array().expect("a list");
    let sizes: Vec<_> = reading.iter().map(|r| (r["batch"].as_u64(), r["seq_len"].as_u64())).collect();
    assert_eq!(sizes, [(Some(1), Some(64)), (Some(16), Some(64))]);
    for of_batch in reading {
        let number = |name: &str| of_batch[name].as_f64().expect("a number");
        let tokens = number("batch") * number("seq_len");
        assert!((number("tokens_per_sec") * number("median_secs") / tokens - 1.0).abs() < 1e-6);
        assert!(number("runs") >= 3.0 && number("min_secs") <= number("max_secs"));
    }
    assert_eq!((&summary["tokens_per_sec"], summary.get("perplexity")), (&Value::Null, None));
    let told = desk.run("eval llama --speed --device cpu").ok().stdout;
    assert!(told.contains(" tokens/s, 1 × 64 at once") && told.contains(" tokens/s, 16 × 64 at once"), "{told}");
}

#[test]
fn a_model_is_compared_with_the_one_it_was_made_from() {
    let desk = desk();
    desk.run(&format!("compress opt --sparsity 0.3 {SAMPLES} -o small")).ok();
    let text = "--text test.txt --seq-len 64 --max-windows 6 --device cpu";
    let compare = |model: &str| desk.run(&format!("eval {model} {text} --against opt --json")).json();
    let alone = |model: &str| desk.run(&format!("eval {model} {text} --json")).json();
    let number = |value: &Value| value.as_f64().expect("a number");
    let close = |a: &Value, b: &Value| (number(a) / number(b) - 1.0).abs() < 1e-5;
    let (small, same) = (compare("small"), compare("opt"));
    assert!(close(&small["perplexity"], &alone("small")["perplexity"]));
    assert!(close(&small["dense_perplexity"], &alone("opt")["perplexity"]));
    assert_eq!(small["tokens_per_sec"], Value::Null);
    assert_eq!((number(&same["kl_divergence"]), number(&same["top1_agreement"])), (0.0, 1.0));
    // It has lost a third of its weights, yet is still the same model.
    assert!((0.01..1.0).contains(&number(&small["kl_divergence"])), "{}", small["kl_divergence"]);
    assert!((0.5..0.99).contains(&number(&small["top1_agreement"])), "{}", small["top1_agreement"]);
    let errors: Vec<f64> = small["layer_errors"].as_array().expect("errors").iter().map(number).collect();
    assert!(errors.len() == 4 && errors.iter().all(|error| (1e-4..1.0).contains(error)), "{errors:?}");
    assert_eq!(same["layer_errors"], json!([0.0, 0.0, 0.0, 0.0]));
    let told = desk.run(&format!("eval small {text} --against opt")).ok().stdout;
    assert!(told.contains("\ndivergence  ") && told.contains("\nagreement   "), "{told}");
    let refused = ["the models cannot be compared: the vocabularies have 2048 and 512 tokens"];
    desk.run(&format!("eval opt {text} --against llama")).refused(1, &refused);
    let mut tokenizer = desk.json("gpt2/tokenizer.json");
    tokenizer["normalizer"] = json!({"type": "Lowercase"});
    desk.write_json("gpt2/tokenizer.json", &tokenizer);
    let refused = ["the models cannot be compared: their tokenizers disagree on the text"];
    desk.run(&format!("eval opt {text} --against gpt2")).refused(1, &refused);
}
