//! `modegpt eval --tasks`

use std::path::{Path, PathBuf};

use modegpt::run::{TaskScores, answer_tasks};
use modegpt::text_tools::TaskFormat;
use modegpt::{EncodedTask, Model, TaskScore};

use crate::args::QuestionArgs;
use crate::device::FoundDevice;
use crate::failure::Failure;
use crate::progress::Bars;
use crate::{inputs, printer};

/// Reads and encodes the tasks that were asked for.
pub(crate) fn read(model: &Model, args: &QuestionArgs) -> Result<Vec<EncodedTask>, Failure> {
    let mut tasks = Vec::with_capacity(args.tasks.len());
    for name in &args.tasks {
        let (format, path) = find(name, args.tasks_dir.as_deref())?;
        let bytes = std::fs::read(&path)
            .map_err(|e| Failure::request(format!("cannot read task `{name}` from `{}`: {e}", path.display())))?;
        let file = file_name(&path);
        let task = EncodedTask::new(model, format, &file, &bytes, args.limit)?;
        if task.protocol().n_truncated > 0 {
            let n = task.protocol().n_truncated;
            printer::remark(&format!(
                "note: {n} choices of {name} exceed the model's context and lose their beginning"
            ));
        }
        tasks.push(task);
    }
    Ok(tasks)
}

/// Answers them with a progress bar.
pub(crate) fn answer(
    model: &Model,
    tasks: &[EncodedTask],
    args: &QuestionArgs,
    batch_tokens: usize,
    found: &FoundDevice,
) -> Result<TaskScores, Failure> {
    let bars = Bars::default();
    let keep = args.resume.as_deref();
    Ok(pollster::block_on(answer_tasks(model, tasks, batch_tokens, keep, &found.compute, &bars))?)
}

/// A table for people.
pub(crate) fn print(scores: &[TaskScore]) -> Result<(), Failure> {
    let mut rows = vec![["task", "questions", "acc", "±", "acc_norm", "±"].map(str::to_owned).to_vec()];
    let number = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |number| format!("{number:.4}"));
    for score in scores {
        rows.push(vec![
            score.task.clone(),
            printer::grouped(score.n as u64),
            number(Some(score.acc)),
            number(score.acc_stderr),
            number(score.acc_norm),
            number(score.acc_norm_stderr),
        ]);
    }
    printer::line(&printer::table(&rows))?;
    for score in scores {
        let protocol = &score.protocol;
        printer::line(&format!("token hash  {} {}", protocol.token_hash, score.task))?;
    }
    Ok(())
}

/// The file of a task that was named, or the task of a file.
fn find(name: &str, folder: Option<&Path>) -> Result<(TaskFormat, PathBuf), Failure> {
    if let Some(format) = TaskFormat::ALL.into_iter().find(|format| format.name() == name) {
        let folder = folder.map_or_else(default_folder, Path::to_owned);
        return Ok((format, folder.join(format.file_name())));
    }
    let by_file = TaskFormat::of_file(&file_name(Path::new(name)));
    let format = by_file.ok_or_else(|| {
        let names = TaskFormat::ALL.map(TaskFormat::name).join(", ");
        Failure::request(format!(
            "no task `{name}`: expected one of {names}, or a file whose name begins with one of them"
        ))
    })?;
    Ok((format, PathBuf::from(name)))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn default_folder() -> PathBuf {
    inputs::data_folder().join("tasks")
}
