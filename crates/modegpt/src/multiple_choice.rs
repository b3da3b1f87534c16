//! Multiple-choice tasks: questions as tokens, answers, and what they amount to.

use std::ops::Range;

use modegpt_evaluation::{Continuation, ContinuationOptions, score_continuations};
use modegpt_model::{Compute, ComputeError};
use modegpt_text::{PromptTokens, TaskFormat, TextError, check_vocabulary, token_hash};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Model, Reporter};

/// A task's questions as a model reads them.
#[derive(Clone, Debug)]
pub struct EncodedTask {
    format: TaskFormat,
    questions: Vec<EncodedQuestion>,
    protocol: TaskProtocol,
}

#[derive(Clone, Debug)]
struct EncodedQuestion {
    prompts: Vec<PromptTokens>,
    n_chars: Vec<usize>,
    gold: usize,
}

/// What was asked, exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskProtocol {
    /// Name of the file, without folders.
    pub file: String,
    /// SHA-256 of the file.
    pub file_hash: String,
    /// SHA-256 of the ids of all questions asked, choice by choice.
    pub token_hash: String,
    /// Choices that did not fit the model's context and lost their beginning.
    pub n_truncated: usize,
}

/// What a model thinks of each choice of a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// `Σ ln p(token)` of the choice, in nats.
    pub log_likelihoods: Vec<f64>,
    /// Whether greedy generation would have written the choice.
    pub is_greedy: Vec<bool>,
}

/// How well a model answers a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskScore {
    /// The task's name.
    pub task: String,
    /// Questions.
    pub n: usize,
    /// Share of questions whose likeliest choice is the right one.
    pub acc: f64,
    /// Standard error of `acc`; `None` for a single question.
    pub acc_stderr: Option<f64>,
    /// The same by log-likelihood per character; `None` where all choices share their continuation.
    pub acc_norm: Option<f64>,
    /// Standard error of `acc_norm`.
    pub acc_norm_stderr: Option<f64>,
    /// What was asked.
    pub protocol: TaskProtocol,
}

/// The residual stream of the questions in work stays below this.
const STREAM_BYTES: usize = 256 << 20;

/// Tokens of questions that are answered together: enough for loading a layer to be small beside computing it, few enough
/// that a run which is stopped loses minutes.
const CHUNK_TOKENS: usize = 16_384;

impl EncodedTask {
    /// Reads and encodes the content of a task's file, its first `limit` questions if that is given.
    ///
    /// # Errors
    /// [`TextError`] with the line that is not a question, or that the model cannot read.
    pub fn new(
        model: &Model,
        format: TaskFormat,
        file: &str,
        bytes: &[u8],
        limit: Option<usize>,
    ) -> Result<Self, TextError> {
        let most = model.config().max_positions;
        let mut questions = Vec::new();
        for question in format.read(file, bytes, limit)? {
            let prompts = question.encode(file, &model.tokenizer, most)?;
            let n_chars = question.prompts.iter().map(|prompt| prompt.n_chars).collect();
            questions.push(EncodedQuestion { prompts, n_chars, gold: question.gold });
        }
        let prompts = || questions.iter().flat_map(|question| &question.prompts);
        let ids: Vec<u32> = prompts().flat_map(|prompt| &prompt.ids).copied().collect();
        check_vocabulary(&ids, model.config().vocab)?;
        let protocol = TaskProtocol {
            file: file.to_owned(),
            file_hash: format!("{:x}", Sha256::digest(bytes)),
            token_hash: token_hash(&ids),
            n_truncated: prompts().filter(|prompt| prompt.is_truncated).count(),
        };
        Ok(Self { format, questions, protocol })
    }

    /// The task's name.
    pub fn name(&self) -> &'static str {
        self.format.name()
    }

    /// Number of questions.
    pub fn n(&self) -> usize {
        self.questions.len()
    }

    /// Choices of a question.
    pub fn n_choices(&self, question: usize) -> usize {
        self.questions[question].prompts.len()
    }

    /// What is asked.
    pub fn protocol(&self) -> &TaskProtocol {
        &self.protocol
    }

    /// Tokens that are read for these questions.
    pub fn n_tokens(&self, questions: Range<usize>) -> usize {
        self.questions[questions].iter().map(EncodedQuestion::n_tokens).sum()
    }

    /// The questions that are answered together, in order. Depends on the task alone, so that a run that was stopped
    /// computes the same numbers as one that was not.
    pub fn chunks(&self) -> Vec<Range<usize>> {
        let mut chunks: Vec<Range<usize>> = Vec::new();
        let mut n_tokens = 0;
        for (idx, question) in self.questions.iter().enumerate() {
            n_tokens += question.n_tokens();
            match chunks.last_mut() {
                Some(chunk) if n_tokens <= CHUNK_TOKENS => chunk.end = idx + 1,
                _ => {
                    n_tokens = question.n_tokens();
                    chunks.push(idx..idx + 1);
                }
            }
        }
        chunks
    }

    /// What the model behind `weights` thinks of the choices of `questions`, with one layer of it in memory.
    ///
    /// # Errors
    /// [`ComputeError`] if the weights cannot be read or the device fails.
    pub async fn answer(
        &self,
        model: &Model,
        questions: Range<usize>,
        batch_tokens: usize,
        compute: &Compute,
        progress: impl FnMut(f64),
    ) -> Result<Vec<Answer>, ComputeError> {
        let questions = &self.questions[questions];
        let texts: Vec<Continuation<'_>> = questions
            .iter()
            .flat_map(|question| &question.prompts)
            .map(|prompt| Continuation { ids: &prompt.ids, n_context: prompt.n_context })
            .collect();
        let options = ContinuationOptions { batch_tokens, stream_bytes: STREAM_BYTES };
        let found = score_continuations(&model.checkpoint, &texts, options, compute, progress).await?;
        let mut rest = found.as_slice();
        let answers = questions.iter().map(|question| {
            let (of_question, others) = rest.split_at(question.prompts.len());
            rest = others;
            Answer {
                log_likelihoods: of_question.iter().map(|choice| choice.log_likelihood).collect(),
                is_greedy: of_question.iter().map(|choice| choice.is_greedy).collect(),
            }
        });
        Ok(answers.collect())
    }

    /// Answers the questions whose answer is not known yet, and gives the number of tokens that were read for it. `keep` is
    /// given the answers as they come, with the first of the consecutive questions that they answer.
    pub(crate) async fn answer_missing<E: From<ComputeError>>(
        &self,
        model: &Model,
        known: &mut [Option<Answer>],
        batch_tokens: usize,
        compute: &Compute,
        reporter: &dyn Reporter,
        mut keep: impl FnMut(usize, &[Answer]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut n_tokens = 0;
        for chunk in self.chunks() {
            if known[chunk.clone()].iter().all(Option::is_some) {
                continue;
            }
            let (before, all) = (self.n_tokens(0..chunk.start) as f64, self.n_tokens(chunk.clone()));
            let progress = |share: f64| reporter.advance((before + share * all as f64) as u64);
            let answers = self.answer(model, chunk.clone(), batch_tokens, compute, progress).await?;
            keep(chunk.start, &answers)?;
            n_tokens += all;
            known[chunk].iter_mut().zip(answers).for_each(|(place, answer)| *place = Some(answer));
        }
        Ok(n_tokens)
    }

    /// What the answers to all questions amount to. Of equally likely choices the first counts, as in the harness.
    ///
    /// # Panics
    /// If there is not one answer for each question.
    pub fn score(&self, answers: &[Answer]) -> TaskScore {
        assert_eq!(answers.len(), self.questions.len(), "every question has an answer");
        let right = |by: fn(f64, usize) -> f64| {
            let pairs = self.questions.iter().zip(answers);
            pairs.filter(|(question, answer)| question.choice(answer, by) == question.gold).count()
        };
        let (acc, acc_stderr) = share(right(|likelihood, _| likelihood), self.n());
        let normalised = self.format.has_normalised().then(|| share(right(|l, n_chars| l / n_chars as f64), self.n()));
        TaskScore {
            task: self.name().to_owned(),
            n: self.n(),
            acc,
            acc_stderr,
            acc_norm: normalised.map(|(acc, _)| acc),
            acc_norm_stderr: normalised.and_then(|(_, stderr)| stderr),
            protocol: self.protocol.clone(),
        }
    }
}

impl EncodedQuestion {
    /// The last token of a prompt is never read.
    fn n_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.ids.len() - 1).sum()
    }

    /// The choice that is best by a measure of its log-likelihood and its length.
    fn choice(&self, answer: &Answer, by: fn(f64, usize) -> f64) -> usize {
        let measured: Vec<f64> = answer.log_likelihoods.iter().zip(&self.n_chars).map(|(l, n)| by(*l, *n)).collect();
        (0..measured.len()).fold(0, |best, idx| if measured[idx] > measured[best] { idx } else { best })
    }
}

/// `right / n`, and its standard error from the sample variance of zeros and ones.
fn share(right: usize, n: usize) -> (f64, Option<f64>) {
    let mean = right as f64 / n as f64;
    (mean, (n > 1).then(|| (mean * (1.0 - mean) / (n - 1) as f64).sqrt()))
}

/// Answers all questions of a task in memory. For tasks that take hours see
/// [`run::answer_tasks`](crate::run::answer_tasks), which can be stopped and resumed.
///
/// # Errors
/// As [`EncodedTask::answer`].
pub async fn answer_task(
    model: &Model,
    task: &EncodedTask,
    batch_tokens: usize,
    compute: &Compute,
    reporter: &dyn Reporter,
) -> Result<TaskScore, ComputeError> {
    let mut known = vec![None; task.n()];
    reporter.begin(task.name(), task.n_tokens(0..task.n()) as u64);
    let nothing = |_: usize, _: &[Answer]| Ok::<(), ComputeError>(());
    let read = task.answer_missing(model, &mut known, batch_tokens, compute, reporter, nothing).await;
    reporter.end();
    read?;
    let answers: Vec<Answer> = known.into_iter().flatten().collect();
    Ok(task.score(&answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(format: TaskFormat, questions: &[(&[usize], usize)]) -> EncodedTask {
        let prompt = PromptTokens { ids: vec![0; 101], n_context: 1, is_truncated: false };
        let question = |(n_chars, gold): &(&[usize], usize)| EncodedQuestion {
            prompts: vec![prompt.clone(); n_chars.len()],
            n_chars: n_chars.to_vec(),
            gold: *gold,
        };
        let protocol = TaskProtocol {
            file: "t.jsonl".to_owned(),
            file_hash: String::new(),
            token_hash: String::new(),
            n_truncated: 0,
        };
        EncodedTask { format, questions: questions.iter().map(question).collect(), protocol }
    }

    fn answer(log_likelihoods: &[f64]) -> Answer {
        let is_greedy = vec![false; log_likelihoods.len()];
        Answer { log_likelihoods: log_likelihoods.to_vec(), is_greedy }
    }

    #[test]
    fn the_likeliest_choice_is_the_answer_and_the_first_of_equals() {
        let questions: [(&[usize], usize); 4] = [(&[1, 9], 1), (&[4, 2, 1], 0), (&[2, 1], 0), (&[3, 3], 1)];
        let answers =
            [answer(&[-2.0, -3.0]), answer(&[-1.0, -2.0, -3.0]), answer(&[-4.0, -2.0]), answer(&[-1.0, -1.0])];
        // By likelihood 0, 0, 1, 0 are chosen; by likelihood per character (-2, -1/3), (-1/4, -1, -3), (-2, -2), equal.
        let score = task(TaskFormat::Piqa, &questions).score(&answers);
        assert_eq!((score.n, score.acc, score.acc_norm), (4, 0.25, Some(0.75)));
        // Standard deviation of 1, 0, 0, 0 with n - 1: 1/2; over √4.
        assert_eq!((score.acc_stderr, score.acc_norm_stderr), (Some(0.25), Some(0.25)));
        let score = task(TaskFormat::WinoGrande, &questions).score(&answers);
        assert_eq!((score.acc, score.acc_norm, score.acc_norm_stderr), (0.25, None, None));
        let single = task(TaskFormat::Piqa, &questions[..1]).score(&answers[..1]);
        assert_eq!((single.acc, single.acc_stderr), (0.0, None));
    }

    #[test]
    fn chunks_cover_all_questions_in_order() {
        let questions: Vec<(&[usize], usize)> = vec![(&[1; 26], 0); 100];
        let task = task(TaskFormat::Piqa, &questions);
        let chunks = task.chunks();
        assert_eq!(
            chunks.iter().map(|chunk| chunk.clone().count()).collect::<Vec<_>>(),
            [vec![6; 16], vec![4]].concat()
        );
        assert!(chunks.windows(2).all(|pair| pair[0].end == pair[1].start) && chunks[0].start == 0);
        assert_eq!(task.n_tokens(0..100), 260_000);
    }
}
