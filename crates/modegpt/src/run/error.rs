//! Why a run stopped.

use std::io;
use std::path::PathBuf;

use modegpt_calibration::CalibrationError;
use modegpt_checkpoint::{LoadError, OutputError, OutputFolder};
use modegpt_gradient::GradientError;
use modegpt_model::ComputeError;

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The work that was completed before the error is kept.
    #[error("{source}\nwhat was done is kept in `{folder}`: --resume continues there, --force begins anew")]
    Kept {
        /// Why the run stopped.
        source: Box<RunError>,
        /// The unfinished folder.
        folder: PathBuf,
    },
    /// Reading the model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Reading weights, by way of whoever asked for them.
    #[error(transparent)]
    Weights(#[from] modegpt_architecture::WeightError),
    /// The forward pass.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// Calibration.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// The backward pass.
    #[error(transparent)]
    Gradient(#[from] GradientError),
    /// Planning or decomposition.
    #[error(transparent)]
    Compress(#[from] modegpt_compress::Error),
    /// Writing.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A file of statistics that cannot be used.
    #[error("`{file}`: {reason}")]
    Statistics {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Scratch files.
    #[error("cannot use scratch file `{path}`: {reason}")]
    Scratch {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// More memory is needed than allowed.
    #[error(
        "this needs {needed_mib} MiB of host memory even with the residual stream on the disk, but --max-ram allows {allowed_mib} MiB: \
         use fewer tokens at once (--batch-tokens) or shorter samples (--seq-len)"
    )]
    Memory {
        /// What is needed.
        needed_mib: u64,
        /// What is allowed.
        allowed_mib: u64,
    },
    /// One sample alone needs more device memory than allowed.
    #[error(
        "one sample of {seq_len} tokens needs {needed_mib} MiB of device memory, but --max-vram allows {allowed_mib} MiB: \
         use shorter samples (--seq-len), or allow --max-vram {needed_mib}MiB"
    )]
    DeviceMemory {
        /// Tokens of a sample.
        seq_len: usize,
        /// What is needed.
        needed_mib: u64,
        /// What is allowed.
        allowed_mib: u64,
    },
    /// A fallback fired, and the caller wanted none.
    #[error("layer {layer}: a factorisation needed extra jitter (rounds: {fallbacks}), and --strict allows none")]
    Strict {
        /// Which layer.
        layer: usize,
        /// How many rounds.
        fallbacks: u32,
    },
    /// The plan weighs errors with gradients that are not there.
    #[error("errors are to be weighed with gradients of the loss, but {reason}")]
    NoGradients {
        /// Why there are none.
        reason: String,
    },
    /// The plan refits on the compressed prefix, which cannot be done.
    #[error("maps are to be refitted on the compressed prefix, but {reason}")]
    NoPrefix {
        /// Why not.
        reason: &'static str,
    },
    /// A file of answers that cannot be continued.
    #[error("cannot keep answers in `{file}`: {reason}")]
    Answers {
        /// Which file.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A sample is longer than the model's context.
    #[error("samples of {found} tokens do not fit the model's context of {most}: choose a smaller --seq-len")]
    SampleTooLong {
        /// Tokens of a sample.
        found: usize,
        /// The model's context.
        most: usize,
    },
}

impl RunError {
    /// Ends a run: its error, and what became of the unfinished folder.
    pub(super) fn end<T>(result: Result<T, Self>, folder: OutputFolder) -> Result<(T, OutputFolder), Self> {
        match result {
            Ok(value) => Ok((value, folder)),
            Err(error) => Err(match folder.abandon() {
                Some(folder) => Self::Kept { source: Box::new(error), folder },
                None => error,
            }),
        }
    }
}
