//! Why a comparison stopped.

use std::io;
use std::path::PathBuf;

use modegpt_model::ComputeError;

use crate::run::RunError;
use crate::{EvaluationError, ModelError, WriteError};

/// Why a comparison stopped.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A name that stands for no method.
    #[error("no method `{name}`: {reason}")]
    Method {
        /// The name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// Something is missing or said twice.
    #[error("{0}")]
    Grid(String),
    /// The folder for the report holds something.
    #[error(
        "`{0}` exists and is not empty: choose another name, pass --resume to go on with the comparison in it, or --force to begin anew"
    )]
    Exists(PathBuf),
    /// The folder holds something else than a comparison.
    #[error("`{0}` holds something else than a comparison: choose another name")]
    Foreign(PathBuf),
    /// Another process works there.
    #[error("`{0}` is in use by another run")]
    InUse(PathBuf),
    /// A cell of an earlier run was computed differently.
    #[error("cannot go on from `{file}`, which was computed differently: {differences}")]
    Different {
        /// The cell's file.
        file: PathBuf,
        /// What differs.
        differences: String,
    },
    /// A cell of an earlier run cannot be read.
    #[error("`{file}` is no cell of a comparison: {reason}; remove it to have it computed again")]
    Note {
        /// The cell's file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file system.
    #[error("cannot write `{path}`: {reason}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// A cell failed.
    #[error("{cell}: {source}")]
    Cell {
        /// Which one.
        cell: String,
        /// Why.
        source: Box<CompareError>,
    },
    /// Calibration or compression.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Opening the compressed model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Scoring a text.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// Writing a sample.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Measuring the speed of reading.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}
