//! Multiple-choice tasks, put to a model as lm-evaluation-harness puts them.

mod hellaswag;
mod prompt;

use serde_json::{Map, Value};

use crate::TextError;
pub use prompt::{Prompt, PromptTokens};

/// A task: how its file is read and its questions are asked.
///
/// The formats are those of the tasks' definitions in
/// [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness/tree/main/lm_eval/tasks), without
/// examples before the question (zero-shot).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskFormat {
    /// Physical common sense.
    Piqa,
    /// Science questions of schools, the easier ones.
    ArcEasy,
    /// Science questions of schools, the harder ones.
    ArcChallenge,
    /// To whom a sentence refers.
    WinoGrande,
    /// How a story goes on.
    HellaSwag,
    /// Elementary science.
    OpenBookQa,
}

/// A question and its answers, each as a text to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// One for each choice.
    pub prompts: Vec<Prompt>,
    /// Index of the right one.
    pub gold: usize,
    /// Line of the file, from 1.
    pub line: usize,
}

/// As many choices as there are letters to name them; a file with more is no such task.
const MOST_CHOICES: usize = 26;

impl TaskFormat {
    /// All tasks.
    pub const ALL: [Self; 6] =
        [Self::Piqa, Self::ArcEasy, Self::ArcChallenge, Self::WinoGrande, Self::HellaSwag, Self::OpenBookQa];

    /// What the harness calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Piqa => "piqa",
            Self::ArcEasy => "arc_easy",
            Self::ArcChallenge => "arc_challenge",
            Self::WinoGrande => "winogrande",
            Self::HellaSwag => "hellaswag",
            Self::OpenBookQa => "openbookqa",
        }
    }

    /// The file of its usual split: the validation part where the test part has no published answers.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Piqa => "piqa_valid.jsonl",
            Self::ArcEasy => "arc_easy_test.jsonl",
            Self::ArcChallenge => "arc_challenge_test.jsonl",
            Self::WinoGrande => "winogrande_valid.jsonl",
            Self::HellaSwag => "hellaswag_valid.jsonl",
            Self::OpenBookQa => "openbookqa_test.jsonl",
        }
    }

    /// The task that `file_name` (without folders) begins with.
    pub fn of_file(file_name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| file_name.starts_with(task.name()))
    }

    /// Whether likelihoods are also compared per character. Not where the choices share their continuation.
    pub fn has_normalised(self) -> bool {
        self != Self::WinoGrande
    }

    /// Reads JSON lines, the first `limit` questions of them if it is given. Blank lines are skipped.
    ///
    /// | task | fields | context | continuation |
    /// | --- | --- | --- | --- |
    /// | PIQA, ARC | `question` | `Question: {question}\nAnswer:` | ` {choice}` |
    /// | `OpenBookQA` | `question` | `{question}` | ` {choice}` |
    /// | `HellaSwag` | `context` | `{context}` | ` {choice}` |
    /// | `WinoGrande` | `sentence` with `_` | what stands before `_`, then `{choice}` | what stands behind `_` |
    ///
    /// and in all of them `choices`, 2 to 26 texts, and `gold`, the index of the right one. For `HellaSwag` the
    /// harness's clean-up is repeated: bracketed remarks go, and a last sentence that is begun but not ended is
    /// capitalised (files made for other harnesses have it in small letters).
    ///
    /// # Errors
    /// [`TextError::BadText`] with the line that is not such a question, [`TextError::EmptyText`] if there is none,
    /// [`TextError::BadRequest`] if `limit` is 0.
    pub fn read(self, name: &str, bytes: &[u8], limit: Option<usize>) -> Result<Vec<Question>, TextError> {
        crate::windows::at_least("limit", limit.unwrap_or(1), 1)?;
        let lines = bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
        let questions = lines.take(limit.unwrap_or(usize::MAX)).map(|(line_idx, line)| {
            let line_number = line_idx + 1;
            self.question(line, line_number).map_err(|reason| bad(name, line_number, reason))
        });
        let questions: Vec<Question> = questions.collect::<Result<_, _>>()?;
        if questions.is_empty() { Err(TextError::EmptyText { name: name.to_owned() }) } else { Ok(questions) }
    }

    fn question(self, line: &[u8], line_number: usize) -> Result<Question, String> {
        let object: Map<String, Value> = serde_json::from_slice(line).map_err(|e| e.to_string())?;
        let choices = choices(&object)?;
        let gold = gold(&object, choices.len())?;
        let prompts = match self {
            Self::WinoGrande => winogrande(text(&object, "sentence")?, &choices)?,
            Self::HellaSwag => {
                let context = hellaswag::context(text(&object, "context")?);
                ask(&context, choices.iter().map(|choice| hellaswag::clean(choice)))
            }
            Self::OpenBookQa => ask(text(&object, "question")?, choices.into_iter().map(str::to_owned)),
            Self::Piqa | Self::ArcEasy | Self::ArcChallenge => {
                let context = format!("Question: {}\nAnswer:", text(&object, "question")?);
                ask(&context, choices.into_iter().map(str::to_owned))
            }
        };
        // Looked for at the end: a clean-up may have left nothing.
        match prompts.iter().position(|p| p.context.trim().is_empty() || p.continuation.trim().is_empty()) {
            Some(idx) => Err(format!("choice {idx} or what stands before it is empty")),
            None => Ok(Question { prompts, gold, line: line_number }),
        }
    }
}

/// Every choice continues the same context.
fn ask(context: &str, choices: impl Iterator<Item = String>) -> Vec<Prompt> {
    let prompt = |choice: String| Prompt {
        context: context.to_owned(),
        continuation: format!(" {choice}"),
        n_chars: choice.chars().count(),
    };
    choices.map(prompt).collect()
}

/// Every choice is put into the gap, and the same rest of the sentence continues it.
fn winogrande(sentence: &str, choices: &[&str]) -> Result<Vec<Prompt>, String> {
    let (before, behind) = sentence.split_once('_').ok_or("expected a gap `_` in field `sentence`")?;
    let prompt = |choice: &&str| Prompt {
        context: format!("{before}{choice}"),
        continuation: format!(" {}", behind.trim()),
        n_chars: choice.chars().count(),
    };
    Ok(choices.iter().map(prompt).collect())
}

fn text<'a>(object: &'a Map<String, Value>, field: &str) -> Result<&'a str, String> {
    match object.get(field) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text),
        Some(Value::String(_)) => Err(format!("field `{field}` is empty")),
        Some(_) => Err(format!("expected text in field `{field}`")),
        None => Err(format!("no field `{field}`")),
    }
}

fn choices(object: &Map<String, Value>) -> Result<Vec<&str>, String> {
    let list = object.get("choices").and_then(Value::as_array).ok_or("expected a list in field `choices`")?;
    if !(2..=MOST_CHOICES).contains(&list.len()) {
        return Err(format!("expected 2 to {MOST_CHOICES} texts in field `choices`, found {}", list.len()));
    }
    let choices = list.iter().map(|choice| choice.as_str().filter(|text| !text.trim().is_empty()));
    choices.collect::<Option<_>>().ok_or_else(|| "expected texts that are not empty in field `choices`".to_owned())
}

fn gold(object: &Map<String, Value>, n_choices: usize) -> Result<usize, String> {
    let gold = object.get("gold").ok_or("no field `gold`")?;
    let index = gold.as_u64().and_then(|index| usize::try_from(index).ok()).filter(|index| *index < n_choices);
    index.ok_or_else(|| format!("expected 0 to {} in field `gold`, found {gold}", n_choices - 1))
}

pub(crate) fn bad(name: &str, line: usize, reason: String) -> TextError {
    TextError::BadText { name: name.to_owned(), place: format!("line {line}"), reason }
}
