//! `modegpt compress`, `modegpt calibrate` and `modegpt plan`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use super::target::DECIDED_BY_PLAN;
use super::{CalibrationArgs, CommonArgs, ModeName, ModelArg, TargetArgs};

/// `modegpt compress`
#[derive(Debug, Args)]
#[command(after_long_help = COMPRESS_HELP)]
pub(crate) struct CompressArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// The folder to write
    #[arg(short, long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) output: PathBuf,

    #[command(flatten)]
    pub(crate) target: TargetArgs,

    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,

    /// Statistics written by `modegpt calibrate`, instead of calibrating
    #[arg(long, value_name = "FOLDER", help_heading = "Calibration")]
    pub(crate) statistics: Option<PathBuf>,

    /// Samples of the calibration text to be kept apart, on which plans are tried where there is a choice
    ///
    /// With --fisher there is: errors may be weighed with gradients, which tell of small errors only, or without. 0 for no
    /// trial; then gradients are used in any case.
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Calibration")]
    pub(crate) held_out: usize,

    /// A plan written by `modegpt plan`, instead of a size and of how it is decided
    #[arg(long, value_name = "FILE", conflicts_with_all = DECIDED_BY_PLAN, help_heading = "Size")]
    pub(crate) plan: Option<PathBuf>,

    /// Element type of the output; that of the input by default
    #[arg(long, value_enum, help_heading = "Output")]
    pub(crate) dtype: Option<DTypeName>,

    #[command(flatten)]
    pub(crate) existing: ExistingArgs,

    /// Make it an error if a factorisation needs extra jitter
    #[arg(long, help_heading = None)]
    pub(crate) strict: bool,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// What is done about an output that is there already.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct ExistingArgs {
    /// Replace the output, or an unfinished run, if it exists
    #[arg(long, conflicts_with = "resume")]
    pub(crate) force: bool,

    /// Continue a run that was stopped, at the layer it was in
    #[arg(long)]
    pub(crate) resume: bool,
}

const COMPRESS_HELP: &str = "\
What happens:
  1. A memory plan is printed: what the run will take of host, device and disk.
  2. The samples pass through the model once, layer by layer. Of each layer are kept: how much it changes the residual
     stream, and the Gram matrices of its hidden units, queries, keys, values and of what attention delivers (f64, summed
     from short f32 blocks). With --fisher the gradients of the loss follow, in a pass backward.
  3. The plan. In mode best every layer and module is surveyed first: what would it lose at each width? The weights go
     where that costs least. In mode paper layers that change the stream little give more. Widths are rounded.
  4. Every layer is decomposed in f64 and written. Only one layer is in memory at any time.
  5. OUTPUT appears whole, or not at all. A run that is killed leaves OUTPUT.partial; --resume continues it and ends in
     the same bytes.

The output loads with this program, and in Python with
  AutoModelForCausalLM.from_pretrained(OUTPUT, trust_remote_code=True)

Examples:
  modegpt compress facebook/opt-125m --sparsity 0.3 --calibration wiki.valid.raw -o opt-125m-30
  modegpt compress MODEL --target-bytes 4GiB --calibration c4.jsonl --samples 128 --seq-len 2048 -o SMALL --max-ram 8GiB
  modegpt calibrate MODEL --calibration c4.jsonl -o STATS && modegpt compress MODEL --statistics STATS --sparsity 0.4 -o SMALL";

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DTypeName {
    /// Single precision
    F32,
    /// Half precision
    F16,
    /// bfloat16
    Bf16,
}

/// `modegpt calibrate`
#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// The folder to write
    #[arg(short, long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) output: PathBuf,

    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,

    /// Collect what this mode needs beside the usual: the inputs of whole maps, or gradients
    #[arg(long, value_enum, help_heading = "Calibration")]
    pub(crate) mode: Option<ModeName>,

    /// Collect the inputs of whole maps too, which methods that factorise each matrix by itself need
    #[arg(long, help_heading = "Calibration")]
    pub(crate) inputs: bool,

    /// Add up statistics of the same model from these folders, in order, instead of calibrating
    #[arg(long, value_name = "FOLDER", num_args = 2.., conflicts_with = "calibration", help_heading = "Calibration")]
    pub(crate) merge: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) existing: ExistingArgs,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `modegpt plan`
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// Statistics written by `modegpt calibrate`
    #[arg(long, value_name = "FOLDER")]
    pub(crate) statistics: PathBuf,

    #[command(flatten)]
    pub(crate) target: TargetArgs,

    /// Weigh errors with the gradients that lie beside the statistics
    #[arg(long)]
    pub(crate) fisher: bool,

    /// Element type that a size in bytes is reckoned with; that of the model by default
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DTypeName>,

    /// Where to write the plan; printed if not given
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Print the plan as JSON even where a table would be printed
    #[arg(long)]
    pub(crate) json: bool,
}
