//! Questions as lm-evaluation-harness asks them, and their tokens.

mod data;

use modegpt_text::{BpeFamily, Prompt, PromptTokens, Question, TaskFormat, TextError, Tokenizer};

fn read(task: TaskFormat, lines: &str) -> Vec<Question> {
    task.read("task.jsonl", lines.as_bytes(), None).expect("good lines")
}

/// Context and continuation of every choice of a single question.
#[track_caller]
fn check(task: TaskFormat, line: &str, expected: &[(&str, &str)]) {
    let questions = read(task, line);
    assert_eq!(questions.len(), 1);
    let found: Vec<(&str, &str)> =
        questions[0].prompts.iter().map(|p| (p.context.as_str(), p.continuation.as_str())).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_task_is_asked_as_the_harness_asks_it() {
    let questions = r#"{"question": "What is wet?", "choices": ["Water ", "A stone"], "gold": 0}"#;
    for task in [TaskFormat::Piqa, TaskFormat::ArcEasy, TaskFormat::ArcChallenge] {
        let context = "Question: What is wet?\nAnswer:";
        check(task, questions, &[(context, " Water "), (context, " A stone")]);
    }
    let stem = r#"{"question": "Predators eat", "choices": ["lions", "bunnies"], "gold": 1}"#;
    check(TaskFormat::OpenBookQa, stem, &[("Predators eat", " lions"), ("Predators eat", " bunnies")]);
    let story = r#"{"context": "Roof: A man sits. he", "choices": ["falls [deep].", "works."], "gold": 1}"#;
    check(TaskFormat::HellaSwag, story, &[("Roof: A man sits. He", " falls ."), ("Roof: A man sits. He", " works.")]);
    let gap = r#"{"sentence": "Ann saw Eve, but _  was blind.", "choices": ["Ann", "Eve"], "gold": 0}"#;
    check(
        TaskFormat::WinoGrande,
        gap,
        &[("Ann saw Eve, but Ann", " was blind."), ("Ann saw Eve, but Eve", " was blind.")],
    );
}

#[test]
fn characters_of_a_choice_are_counted_as_python_counts_them() {
    let questions = read(TaskFormat::Piqa, r#"{"question": "a", "choices": ["é ", "ab[c]"], "gold": 0}"#);
    let counts: Vec<usize> = questions[0].prompts.iter().map(|prompt| prompt.n_chars).collect();
    assert_eq!(counts, [2, 5]);
    let cleaned = read(TaskFormat::HellaSwag, r#"{"context": "a", "choices": ["é ", "ab[c]"], "gold": 0}"#);
    let counts: Vec<usize> = cleaned[0].prompts.iter().map(|prompt| prompt.n_chars).collect();
    assert_eq!(counts, [1, 2]);
    assert!(TaskFormat::ALL.iter().all(|task| task.has_normalised() != (*task == TaskFormat::WinoGrande)));
}

#[test]
fn lines_are_counted_and_only_as_many_read_as_wanted() {
    let line = |gold: usize| format!(r#"{{"question": "q", "choices": ["a", "b", "c"], "gold": {gold}}}"#);
    let text = format!("\r\n{}\r\n\n{}\n{}\nnonsense", line(0), line(2), line(1));
    let read = |limit| TaskFormat::Piqa.read("task.jsonl", text.as_bytes(), Some(limit));
    let questions = read(3).expect("three good lines");
    let places: Vec<(usize, usize)> = questions.iter().map(|q| (q.line, q.gold)).collect();
    assert_eq!(places, [(2, 0), (4, 2), (5, 1)]);
    assert_eq!(read(2).expect("two good lines"), questions[..2]);
    assert!(matches!(read(4), Err(TextError::BadText { place, .. }) if place == "line 6"));
    assert!(matches!(read(0), Err(TextError::BadRequest { what: "limit", .. })));
}

#[test]
fn lines_that_are_no_questions_are_named() {
    let check = |task: TaskFormat, line: &[u8], expected: &str| {
        let bytes = [b"\n", line].concat();
        let error = task.read("t.jsonl", &bytes, None).expect_err(expected).to_string();
        assert!(error.starts_with("text `t.jsonl`, line 2: ") && error.contains(expected), "{error}");
    };
    let piqa = |line: &str, expected: &str| check(TaskFormat::Piqa, line.as_bytes(), expected);
    piqa("{", "EOF");
    piqa("[]", "expected a map");
    piqa("7", "expected a map");
    piqa(&"[".repeat(100_000), "expected a map");
    piqa(&format!("{{\"choices\": {}", "[".repeat(100_000)), "recursion limit");
    piqa("{}", "expected a list in field `choices`");
    piqa(r#"{"choices": "ab"}"#, "expected a list in field `choices`");
    piqa(r#"{"choices": ["a"]}"#, "expected 2 to 26 texts in field `choices`, found 1");
    piqa(&format!(r#"{{"choices": [{}"a"]}}"#, r#""a","#.repeat(26)), "found 27");
    piqa(r#"{"choices": ["a", 1]}"#, "expected texts that are not empty");
    piqa(r#"{"choices": ["a", " "]}"#, "expected texts that are not empty");
    piqa(r#"{"choices": ["a", "b"]}"#, "no field `gold`");
    for gold in ["2", "-1", "0.5", "\"0\"", "null", "1e300"] {
        piqa(&format!(r#"{{"choices": ["a", "b"], "gold": {gold}}}"#), "expected 0 to 1 in field `gold`");
    }
    piqa(r#"{"choices": ["a", "b"], "gold": 0}"#, "no field `question`");
    piqa(r#"{"choices": ["a", "b"], "gold": 0, "question": 1}"#, "expected text in field `question`");
    piqa(r#"{"choices": ["a", "b"], "gold": 0, "question": "\n"}"#, "field `question` is empty");
    check(TaskFormat::Piqa, b"{\"question\": \"\xff\"}", "invalid unicode");
    let gap = br#"{"sentence": "no gap", "choices": ["a", "b"], "gold": 0}"#;
    check(TaskFormat::WinoGrande, gap, "expected a gap `_`");
    let end = br#"{"sentence": "nothing behind _ ", "choices": ["a", "b"], "gold": 0}"#;
    check(TaskFormat::WinoGrande, end, "choice 0 or what stands before it is empty");
    let cleaned = br#"{"context": "a", "choices": ["a", "[b]"], "gold": 0}"#;
    check(TaskFormat::HellaSwag, cleaned, "choice 1 or what stands before it is empty");
    let cleaned = br#"{"context": "[a]", "choices": ["a", "b"], "gold": 0}"#;
    check(TaskFormat::HellaSwag, cleaned, "choice 0 or what stands before it is empty");
    for nothing in ["", "\n \r\n"] {
        let error = TaskFormat::Piqa.read("t.jsonl", nothing.as_bytes(), None);
        assert!(matches!(error, Err(TextError::EmptyText { .. })));
    }
}

#[test]
fn tasks_are_told_by_the_names_of_their_files() {
    for task in TaskFormat::ALL {
        assert_eq!(TaskFormat::of_file(task.file_name()), Some(task));
        assert_eq!(TaskFormat::of_file(task.name()), Some(task));
    }
    assert_eq!(TaskFormat::of_file("arc_easy_first_100.jsonl"), Some(TaskFormat::ArcEasy));
    assert_eq!(TaskFormat::of_file("my_piqa.jsonl"), None);
}

/// Every published question can be read.
#[test]
fn the_data_folder_has_all_questions() {
    let n_questions = [1838, 2376, 1172, 1267, 10042, 500];
    for (task, expected) in TaskFormat::ALL.into_iter().zip(n_questions) {
        let bytes = data::read(&format!("tasks/{}", task.file_name()));
        let questions = task.read(task.file_name(), &bytes, None).expect("good lines");
        assert_eq!(questions.len(), expected, "{}", task.name());
    }
}

/// Letters, `ab`, a space, and a space joined to each letter.
fn tokenizer() -> Tokenizer {
    let vocab = "{\"</s>\": 0, \"a\": 1, \"b\": 2, \"\u{120}\": 3, \"ab\": 4, \"\u{120}a\": 5, \"\u{120}b\": 6}";
    let merges = "a b\n\u{120} a\n\u{120} b\n";
    Tokenizer::from_bpe(vocab.as_bytes(), merges.as_bytes(), BpeFamily::Opt).expect("a tokenizer")
}

fn encode(context: &str, continuation: &str, max_positions: usize) -> Result<PromptTokens, TextError> {
    let prompt = Prompt { context: context.to_owned(), continuation: continuation.to_owned(), n_chars: 1 };
    let question = Question { prompts: vec![prompt], gold: 0, line: 7 };
    question.encode("t.jsonl", &tokenizer(), max_positions).map(|mut tokens| tokens.remove(0))
}

#[test]
fn tokens_are_split_as_the_harness_splits_them() {
    let check = |context: &str, continuation: &str, ids: &[u32], n_context: usize| {
        let expected = PromptTokens { ids: ids.to_vec(), n_context, is_truncated: false };
        assert_eq!(encode(context, continuation, 64), Ok(expected), "{context:?} {continuation:?}");
    };
    check("ba", " b", &[0, 2, 1, 6], 3);
    // White space at the end belongs to the continuation.
    check("b ", " b", &[0, 2, 3, 6], 2);
    check("b ", "a", &[0, 2, 5], 2);
    // Context and continuation are encoded together, and the context's own tokens counted.
    check("aa", "b b", &[0, 1, 4, 6], 3);
}

#[test]
fn what_is_too_long_loses_its_beginning() {
    let found = encode("babab", " a b", 4).expect("it fits");
    assert_eq!(found, PromptTokens { ids: vec![2, 4, 4, 5, 6], n_context: 3, is_truncated: true });
    assert_eq!(encode("b", " a b", 3).map(|t| t.is_truncated), Ok(false));
    assert_eq!(encode("b", " a b", 2).map(|t| (t.ids, t.n_context, t.is_truncated)), Ok((vec![2, 5, 6], 1, true)));
    let error = encode("b", " a b", 1).expect_err("nothing is left of the context");
    assert_eq!(error.to_string(), "text `t.jsonl`, line 7: a choice has 2 tokens, the model's context 1");
    let error = encode("a", "b", 9).expect_err("the choice is swallowed");
    assert_eq!(error.to_string(), "text `t.jsonl`, line 7: the context or a choice has no token of its own");
}
