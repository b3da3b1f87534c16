//! Answers to real questions, against each question computed by itself from all logits.

use modegpt::model_runtime::Compute;
use modegpt::text_tools::TaskFormat;
use modegpt::{Answer, EncodedTask, Model, Silent, answer_task};
use modegpt_tests::{data_folder, logits, open};

/// The longest choices have some 60 tokens, whose losses agree to 1e-6 each.
const TOLERANCE: f64 = 1e-3;

fn file(task: TaskFormat) -> Vec<u8> {
    let path = data_folder().join("tasks").join(task.file_name());
    std::fs::read(&path).unwrap_or_else(|e| panic!("`{}`: {e}", path.display()))
}

fn answers(model: &Model, task: &EncodedTask, batch_tokens: usize) -> Vec<Answer> {
    let compute = Compute::host();
    let chunks = task.chunks().into_iter();
    chunks
        .flat_map(|chunk| {
            pollster::block_on(task.answer(model, chunk, batch_tokens, &compute, |_| {})).expect("finite")
        })
        .collect()
}

/// Encodes and scores by the harness's recipe, written out once more.
fn plain(model: &Model, task: TaskFormat, bytes: &[u8], n: usize) -> Vec<Vec<f64>> {
    let encode = |text: &str| {
        let mut ids = model.tokenizer.prefix_ids().to_vec();
        ids.extend(model.tokenizer.encode(text).expect("ids"));
        ids
    };
    let vocab = model.config().vocab;
    let likelihood = |context: &str, continuation: &str| -> f64 {
        let (given, whole) = (encode(context.trim_end()), encode(&format!("{context}{continuation}")));
        let all = logits(model, &whole[..whole.len() - 1], &Compute::host());
        let token = |t: usize| {
            let row = &all[(t - 1) * vocab..t * vocab];
            let log_sum = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
            f64::from(row[whole[t] as usize]) - log_sum
        };
        (given.len()..whole.len()).map(token).sum()
    };
    let questions = task.read(task.name(), bytes, Some(n)).expect("questions");
    let of_question = |q: &modegpt::text_tools::Question| {
        q.prompts.iter().map(|prompt| likelihood(&prompt.context, &prompt.continuation)).collect()
    };
    questions.iter().map(of_question).collect()
}

#[track_caller]
fn assert_close(found: &[Answer], expected: &[Vec<f64>]) {
    assert_eq!(found.len(), expected.len());
    for (question, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.log_likelihoods.len(), expected.len());
        for (found, expected) in found.log_likelihoods.iter().zip(expected) {
            assert!((found - expected).abs() <= TOLERANCE, "question {question}: {found}, not {expected}");
        }
    }
}

#[test]
fn answers_are_those_of_each_question_by_itself() {
    for name in ["opt-tiny-stories", "stories260k", "gpt2-tiny-stories"] {
        let model = open(name);
        for format in TaskFormat::ALL {
            let bytes = file(format);
            let task = EncodedTask::new(&model, format, format.file_name(), &bytes, Some(3)).expect("questions");
            assert_eq!(task.protocol().n_truncated, 0);
            let expected = plain(&model, format, &bytes, 3);
            for batch_tokens in [1, 700] {
                assert_close(&answers(&model, &task, batch_tokens), &expected);
            }
        }
    }
}

#[test]
fn the_order_of_questions_changes_nothing() {
    let model = open("opt-tiny-stories");
    let bytes = file(TaskFormat::ArcChallenge);
    // More than are answered together.
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').take(60).collect();
    let task = |lines: &[&[u8]]| {
        EncodedTask::new(&model, TaskFormat::ArcChallenge, "t.jsonl", &lines.join(&b'\n'), None).expect("questions")
    };
    let forward = task(&lines);
    lines.reverse();
    let backward = task(&lines);
    assert!(forward.chunks().len() > 1 && forward.protocol().token_hash != backward.protocol().token_hash);
    let found = answers(&model, &forward, 2048);
    let of_backward = answers(&model, &backward, 2048);
    let expected: Vec<Vec<f64>> = of_backward.iter().rev().map(|answer| answer.log_likelihoods.clone()).collect();
    assert_close(&found, &expected);
    let (by_order, by_reverse) = (forward.score(&found), backward.score(&of_backward));
    assert_eq!((by_order.acc, by_order.acc_norm), (by_reverse.acc, by_reverse.acc_norm));
    let compute = Compute::host();
    let at_once = pollster::block_on(answer_task(&model, &forward, 2048, &compute, &Silent));
    assert_eq!(at_once.expect("finite"), by_order);
}
