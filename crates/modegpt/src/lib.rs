//! The public face of modegpt: the stages joined.
//!
//! ```text
//! Model, tokens ── calibrate ──► Statistics ── plan ──► Plan ── apply ──► Model', Report ── evaluate ──► Score
//! ```
//!
//! Each stage is a crate of its own; here they are put together for programs. [`Model`] opens a checkpoint with its
//! tokenizer; [`calibrate`](run::calibrate) and [`compress`](run::compress) stream a model of any size through memory and
//! write a folder that appears whole or not at all; [`in_memory`] does the same without a file system, for models that
//! fit; [`evaluate`] and [`write()`] work on any model, dense or compressed.
//!
//! Libraries never print: progress and remarks go to a [`Reporter`].

mod activations;
mod evaluate;
mod gradient_samples;
mod hf_folder;
pub mod in_memory;
mod model;
mod multiple_choice;
mod plan_request;
mod reporter;
#[cfg(not(target_family = "wasm"))]
pub mod run;
mod spectra;
mod text;
mod write;

pub use activations::{ActivationSpectra, DownErrors, activation_spectra};
pub use evaluate::{
    Comparison, Evaluation, EvaluationError, EvaluationOptions, evaluate, evaluate_against, evaluation_token_hash,
};
pub use gradient_samples::GRADIENT_TOKENS;
pub use model::{Model, ModelError};
pub use multiple_choice::{Answer, EncodedTask, TaskProtocol, TaskScore, answer_task};
pub use plan_request::{AllocationChoice, PlanRequest};
pub use reporter::{Reporter, Silent};
pub use spectra::{Spectrum, each_weight_spectrum, weight_spectra};
pub use text::{Calibration, CalibrationOptions, CorpusOptions, LabelledSamples, read_corpus};
pub use write::{WriteError, Written, write};

pub use modegpt_architecture as architecture;
pub use modegpt_calibration as calibration;
pub use modegpt_checkpoint as checkpoint;
pub use modegpt_compress as compress;
pub use modegpt_evaluation as evaluation;
pub use modegpt_gradient as gradient;
pub use modegpt_linalg as linalg;
pub use modegpt_model as model_runtime;
pub use modegpt_report as report;
pub use modegpt_statistics as statistics;
pub use modegpt_text as text_tools;

/// Name and version, as they stand in everything that is written.
pub const PROGRAM: &str = concat!("modegpt ", env!("CARGO_PKG_VERSION"));
