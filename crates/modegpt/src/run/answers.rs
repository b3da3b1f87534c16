//! Answers to tasks, kept on the disk as they come, so that hours of work are not lost.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use modegpt_model::Compute;
use serde::{Deserialize, Serialize};

use super::RunError;
use crate::{Answer, EncodedTask, Model, PROGRAM, Reporter, TaskScore};

/// Far above the answers to all tasks.
const LIMIT_BYTES: u64 = 256 << 20;

/// Scores of tasks, and how much was computed for them.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskScores {
    /// One for each task.
    pub scores: Vec<TaskScore>,
    /// Tokens read in this run; answers that were kept by an earlier one cost nothing.
    pub n_tokens: usize,
}

/// Answers tasks, one after another, with one layer of the model in memory.
///
/// With `keep`, answers are appended to that file as they come; if it holds answers of an earlier run that was asked the
/// same, only the rest is computed. Either way the numbers are the same.
///
/// # Errors
/// [`RunError::Answers`] if the file cannot be used, or was begun with another model, task, limit, batch or kind of
/// device; [`RunError::Compute`] if the weights cannot be read or the device fails.
pub async fn answer_tasks(
    model: &Model,
    tasks: &[EncodedTask],
    batch_tokens: usize,
    keep: Option<&Path>,
    compute: &Compute,
    reporter: &dyn Reporter,
) -> Result<TaskScores, RunError> {
    let mut known: Vec<Vec<Option<Answer>>> = tasks.iter().map(|task| vec![None; task.n()]).collect();
    let mut log = match keep {
        Some(path) => {
            Some(AnswerLog::open(path, &Header::new(model, tasks, batch_tokens, compute), tasks, &mut known)?)
        }
        None => None,
    };
    let n_known = known.iter().flatten().flatten().count();
    if n_known > 0 {
        reporter.note(&format!("{n_known} answers are kept from an earlier run"));
    }
    let mut result = TaskScores { scores: Vec::new(), n_tokens: 0 };
    for (task_idx, (task, known)) in tasks.iter().zip(&mut known).enumerate() {
        reporter.begin(task.name(), task.n_tokens(0..task.n()) as u64);
        let keep = |first: usize, answers: &[Answer]| match &mut log {
            Some(log) => log.append(task_idx, first, answers),
            None => Ok(()),
        };
        let read = task.answer_missing(model, known, batch_tokens, compute, reporter, keep).await;
        reporter.end();
        result.n_tokens += read?;
        let answers: Vec<Answer> = known.iter_mut().filter_map(Option::take).collect();
        result.scores.push(task.score(&answers));
    }
    Ok(result)
}

/// The first line of the file: whoever continues it must have been asked the same.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    answers_of: String,
    model: String,
    tasks: Vec<String>,
    batch_tokens: usize,
    device: String,
}

impl Header {
    fn new(model: &Model, tasks: &[EncodedTask], batch_tokens: usize, compute: &Compute) -> Self {
        let task = |task: &EncodedTask| {
            let protocol = task.protocol();
            format!(
                "{}, {} questions, file {}, tokens {}",
                task.name(),
                task.n(),
                protocol.file_hash,
                protocol.token_hash
            )
        };
        Self {
            answers_of: PROGRAM.to_owned(),
            model: model.fingerprint().to_owned(),
            tasks: tasks.iter().map(task).collect(),
            batch_tokens,
            device: if compute.is_host { "cpu" } else { "card" }.to_owned(),
        }
    }

    /// What differs from the run that is asked for now.
    fn differences(&self, now: &Self) -> Vec<String> {
        let (was, now) = (self.parts(), now.parts());
        let differ = was.into_iter().zip(now).filter(|((_, was), (_, now))| was != now);
        differ.map(|((name, was), (_, now))| format!("{name} was {was}, now {now}")).collect()
    }

    fn parts(&self) -> [(&'static str, String); 5] {
        [
            ("program", self.answers_of.clone()),
            ("model", self.model.clone()),
            ("tasks", format!("[{}]", self.tasks.join("; "))),
            ("batch tokens", self.batch_tokens.to_string()),
            ("device", self.device.clone()),
        ]
    }
}

/// Every other line.
#[derive(Serialize, Deserialize)]
struct Line {
    task: usize,
    question: usize,
    #[serde(flatten)]
    answer: Answer,
}

/// The file, open for appending and locked.
struct AnswerLog {
    file: File,
    path: PathBuf,
}

impl AnswerLog {
    /// Opens or begins the file at `path`, and puts its answers into `known`. A last line that was not written to its end
    /// is removed.
    fn open(
        path: &Path,
        header: &Header,
        tasks: &[EncodedTask],
        known: &mut [Vec<Option<Answer>>],
    ) -> Result<Self, RunError> {
        let fail = |error: io::Error| bad(path, error.to_string());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => bad(path, "it is in use by another run".to_owned()),
            TryLockError::Error(error) => fail(error),
        })?;
        let mut log = Self { file, path: path.to_owned() };
        let text = log.read()?;
        let (begin, whole) = (line(path, header)?, text.rfind('\n').map_or(0, |end| end + 1));
        // Nothing, or a run that was stopped while it began.
        let is_new = whole == 0 && begin.starts_with(&text);
        if !is_new {
            take_answers(path, &text[..whole], header, tasks, known)?;
        }
        log.file.set_len(whole as u64).and_then(|()| log.file.seek(SeekFrom::Start(whole as u64))).map_err(fail)?;
        if is_new {
            log.write(&begin)?;
        }
        Ok(log)
    }

    fn read(&self) -> Result<String, RunError> {
        let fail = |error: io::Error| bad(&self.path, error.to_string());
        let mut bytes = Vec::new();
        (&self.file).take(LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > LIMIT_BYTES {
            return Err(bad(&self.path, format!("it has more than {LIMIT_BYTES} bytes")));
        }
        String::from_utf8(bytes).map_err(|_| bad(&self.path, "it holds something else than answers".to_owned()))
    }

    /// Adds answers to consecutive questions, in one piece.
    fn append(&mut self, task: usize, first: usize, answers: &[Answer]) -> Result<(), RunError> {
        let mut text = String::new();
        for (idx, answer) in answers.iter().enumerate() {
            text += &line(&self.path, &Line { task, question: first + idx, answer: answer.clone() })?;
        }
        self.write(&text)
    }

    fn write(&mut self, text: &str) -> Result<(), RunError> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|error| bad(&self.path, error.to_string()))
    }
}

fn line(path: &Path, value: &impl Serialize) -> Result<String, RunError> {
    let text = serde_json::to_string(value).map_err(|error| bad(path, error.to_string()))?;
    Ok(text + "\n")
}

fn check_header(path: &Path, first: &str, now: &Header) -> Result<(), RunError> {
    let was: Header =
        serde_json::from_str(first).map_err(|_| bad(path, "it holds something else than answers".to_owned()))?;
    match was.differences(now) {
        none if none.is_empty() => Ok(()),
        some => Err(bad(path, format!("it was begun differently: {}", some.join("; ")))),
    }
}

/// Puts the answers of an earlier run into `known`.
fn take_answers(
    path: &Path,
    text: &str,
    header: &Header,
    tasks: &[EncodedTask],
    known: &mut [Vec<Option<Answer>>],
) -> Result<(), RunError> {
    let mut lines = text.lines();
    check_header(path, lines.next().unwrap_or_default(), header)?;
    for (line_idx, line) in lines.enumerate() {
        take_answer(line, tasks, known).map_err(|reason| bad(path, format!("line {}: {reason}", line_idx + 2)))?;
    }
    Ok(())
}

/// Checks an answer against its question and keeps it.
fn take_answer(line: &str, tasks: &[EncodedTask], known: &mut [Vec<Option<Answer>>]) -> Result<(), String> {
    let Line { task, question, answer } = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let place = known.get_mut(task).and_then(|of_task| of_task.get_mut(question));
    let place = place.ok_or_else(|| format!("there is no question {question} in task {task}"))?;
    let n_choices = tasks[task].n_choices(question);
    let lengths = (answer.log_likelihoods.len(), answer.is_greedy.len());
    if lengths != (n_choices, n_choices) || !answer.log_likelihoods.iter().all(|value| value.is_finite()) {
        return Err(format!("question {question} of task {task} needs finite answers to {n_choices} choices"));
    }
    *place = Some(answer);
    Ok(())
}

fn bad(path: &Path, reason: String) -> RunError {
    RunError::Answers { file: path.to_owned(), reason }
}
