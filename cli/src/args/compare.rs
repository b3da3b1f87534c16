//! `modegpt compare` and `modegpt reproduce`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::numbers::{Shares, parse_bytes, parse_positive, parse_shares};
use super::{CommonArgs, DrawArgs, ModelArg, ReadingArgs};

const COMPARE_HELP: &str = "\
Methods are modes, and behind a mode what differs from what it does: -uniform, -influence or -curves
(how sparsity is spread), -fisher (errors weighed with gradients of the loss), -prefix, -prefix-output or
-no-prefix (a refit on the compressed prefix).

Every finished cell is a file in OUTPUT/cells. --resume goes on with them, also when more is asked
for: methods, sparsities or seeds may be added; a cell that was computed from other texts, samples or
options is refused.

Examples:
  modegpt compare MODEL --calibration wiki.valid.raw --text wiki.test.raw -o REPORT
  modegpt compare MODEL --methods paper,paper-uniform,best,best-fisher --sparsity 0.2,0.3,0.4 \\
    --seeds 0,1,2 --calibration wiki.valid.raw --samples 32 --seq-len 1024 --text wiki.test.raw \\
    --against-dense --ablate -o REPORT";

/// `modegpt compare`
#[derive(Debug, Args)]
#[command(after_long_help = COMPARE_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// The folder for the report: report.html, report.json, report.csv
    #[arg(short, long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) output: PathBuf,

    /// The methods, with commas between them
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "paper,paper-uniform,best")]
    pub(crate) methods: Vec<String>,

    /// Shares of the decoder blocks' linear weights to remove, with commas between them; 0.1..0.5 stands for 0.1,0.2,0.3,0.4,0.5, and 0.1..0.2..0.05 for 0.1,0.15,0.2
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',', value_parser = parse_shares, default_value = "0.2,0.3,0.4", allow_negative_numbers = true)]
    pub(crate) sparsity: Vec<Shares>,

    /// Seeds of the draw of calibration samples, with commas between them; the report shows mean and spread
    #[arg(long, value_name = "SEED,…", value_delimiter = ',', default_value = "0")]
    pub(crate) seeds: Vec<u64>,

    /// Also measure what each decision of mode best is worth, at the sparsity closest to 30 %
    #[arg(long)]
    pub(crate) ablate: bool,

    #[command(flatten)]
    pub(crate) samples: SampleArgs,

    /// Texts to score, each by itself: files or folders
    #[arg(long, value_name = "FILE", num_args = 1.., required = true, value_hint = ValueHint::AnyPath, help_heading = "Measuring")]
    pub(crate) text: Vec<PathBuf>,

    /// Tokens of a scored window; 2048 or the model's context, whichever is shorter, by default
    #[arg(long, value_name = "T", value_parser = parse_positive, help_heading = "Measuring")]
    pub(crate) text_seq_len: Option<usize>,

    /// Score only the first N windows of each text
    #[arg(long, value_name = "N", value_parser = parse_positive, help_heading = "Measuring")]
    pub(crate) max_windows: Option<usize>,

    /// Compare predictions with the dense model's: KL divergence, agreement, and the error of each layer's output
    #[arg(long, help_heading = "Measuring")]
    pub(crate) against_dense: bool,

    /// Multiple-choice tasks to answer, as in `modegpt eval`
    #[arg(long, value_name = "NAME|FILE", num_args = 1.., value_hint = ValueHint::AnyPath, help_heading = "Measuring")]
    pub(crate) tasks: Vec<String>,

    /// Where the tasks' files are; `tasks` in MODEGPT_DATA, or in ../shared/data, by default
    #[arg(long, value_name = "FOLDER", requires = "tasks", value_hint = ValueHint::DirPath, help_heading = "Measuring")]
    pub(crate) tasks_dir: Option<PathBuf>,

    /// Ask only the first N questions of each task
    #[arg(long, value_name = "N", requires = "tasks", help_heading = "Measuring")]
    pub(crate) limit: Option<usize>,

    /// What each model is to continue
    #[arg(long, value_name = "TEXT", default_value = "Once upon a time", help_heading = "Measuring")]
    pub(crate) prompt: String,

    /// Most tokens of a continuation
    #[arg(long, value_name = "N", default_value_t = 48, help_heading = "Measuring")]
    pub(crate) new_tokens: usize,

    /// Keep the compressed models, in FOLDER/models
    #[arg(long, help_heading = "Output")]
    pub(crate) keep: bool,

    /// Begin anew if the folder holds a comparison
    #[arg(long, conflicts_with = "resume", help_heading = "Output")]
    pub(crate) force: bool,

    /// Go on with the comparison in the folder: compute only what is not there
    #[arg(long, help_heading = "Output")]
    pub(crate) resume: bool,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Samples to calibrate on, drawn once for each seed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Calibration")]
pub(crate) struct SampleArgs {
    /// Text to calibrate on: files or folders of plain text, .jsonl or .json; never the text that is scored
    #[arg(long, value_name = "FILE", num_args = 1.., required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) calibration: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) reading: ReadingArgs,

    #[command(flatten)]
    pub(crate) draw: DrawArgs,

    /// Tokens of the backward pass, where a method needs gradients
    #[arg(long, value_name = "N", value_parser = parse_positive, default_value_t = 2048)]
    pub(crate) fisher_tokens: usize,

    /// Samples of each draw to be kept apart, on which a method with gradients tries plans with and without them; 0 for none
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) held_out: usize,

    /// Host memory to stay within, such as 8GiB; the residual stream moves to the disk if needed
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) max_ram: Option<u64>,
}

/// `modegpt reproduce`
#[derive(Debug, Args)]
pub(crate) struct ReproduceArgs {
    /// Only the table of this model
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Option<String>,

    /// A table of one's own instead, in the form of those in the repository's folder tests/results
    #[arg(long, value_name = "FILE", conflicts_with = "only", value_hint = ValueHint::FilePath)]
    pub(crate) table: Option<PathBuf>,

    /// Where models and texts are, in the folders `models` and `text`; MODEGPT_DATA, or ../shared/data, by default
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) data: Option<PathBuf>,

    /// The folder of a model that is not in the data folder: only the table of its weights
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) model: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}
