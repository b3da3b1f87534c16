//! The command line's words. Everything that can be said to `modegpt` stands here.

mod compare;
mod compress;
mod numbers;
mod target;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

pub(crate) use compare::{CompareArgs, ReproduceArgs, SampleArgs};
pub(crate) use compress::{CalibrateArgs, CompressArgs, DTypeName, PlanArgs};
use numbers::{parse_bytes, parse_positive};
pub(crate) use target::{
    AllocationName, FisherRowsName, MlpName, ModeName, PrefixName, QueryKeyName, ScoreName, TargetArgs, ValueOutputName,
};

const ABOUT: &str = "Makes trained language models smaller, without training";
const LONG_ABOUT: &str = "\
Makes trained language models smaller, without training.

A decoder layer is three pairs of matrices that share an inner width: up and down of the MLP, query and key, value and \
output. modegpt looks at the activations that a few samples of text cause, keeps the part of each inner width that \
carries them (Nyström, CR and SVD: MoDeGPT, ICLR 2025), and decides by measurement how much each layer gives. The result \
is an ordinary, smaller model.";

const EXAMPLES: &str = "\
Examples:
  modegpt demo
  modegpt compress MODEL --sparsity 0.3 --calibration wiki.valid.raw -o MODEL-30
  modegpt eval MODEL-30 --text wiki.test.raw --seq-len 2048
  modegpt generate MODEL-30 --prompt \"Once upon a time\"";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "modegpt", version, about = ABOUT, long_about = LONG_ABOUT, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compress a small model that comes with the program, and show what it costs
    Demo(DemoArgs),
    /// Compress a model
    Compress(CompressArgs),
    /// Collect the statistics of a model once, to compress it several times
    Calibrate(CalibrateArgs),
    /// Decide the widths of a compressed model, as a file that can be read and edited
    Plan(PlanArgs),
    /// Measure the perplexity of a model on a text, or let it answer questions
    Eval(EvalArgs),
    /// Compare methods and sizes on one model, and write a report with tables and figures
    Compare(CompareArgs),
    /// Measure the stored numbers of small models again
    Reproduce(ReproduceArgs),
    /// Continue a text
    Generate(GenerateArgs),
    /// Show what a model is made of
    Inspect(InspectArgs),
    /// List devices, their limits, and whether they compute correctly
    Doctor(DoctorArgs),
    /// Measure how fast each part runs, as a share of what a plain matrix product reaches
    Bench(BenchArgs),
    /// Open the studio: lessons, spectra and compression in the browser
    Studio(StudioArgs),
    /// Print a script that completes commands in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `modegpt studio`
#[derive(Debug, Args)]
pub(crate) struct StudioArgs {
    /// Port on this machine; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 7411)]
    pub(crate) port: u16,

    /// A built page, such as web/dist, instead of the one in the program
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) page: Option<PathBuf>,
}

/// A model: a folder or a hub id.
#[derive(Debug, Args)]
pub(crate) struct ModelArg {
    /// A folder with config.json, weights and tokenizer, or a hub id such as `facebook/opt-125m`
    ///
    /// Where there is a folder of that name it is taken, else the hub is asked, also for names of one word such as `gpt2`.
    /// Weights may be safetensors or PyTorch files (`pytorch_model.bin`), in one file or in shards. Ids are downloaded to
    /// the hub's cache; HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.
    #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub(crate) model: String,
}

/// Where it runs and what is printed.
#[derive(Debug, Args)]
pub(crate) struct CommonArgs {
    /// What computes
    #[arg(long, value_enum, default_value_t = DeviceName::Auto, help_heading = "Device")]
    pub(crate) device: DeviceName,

    /// Threads of the processor; all cores by default
    #[arg(long, value_name = "N", value_parser = parse_positive, help_heading = "Device")]
    pub(crate) threads: Option<usize>,

    /// Tokens computed at once; more is faster on a card and takes more memory
    #[arg(long, value_name = "N", value_parser = parse_positive, default_value_t = 2048, help_heading = "Device")]
    pub(crate) batch_tokens: usize,

    /// Print one JSON object instead of text
    #[arg(long, help_heading = None)]
    pub(crate) json: bool,
}

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceName {
    /// A graphics card if there is one, else the processor
    Auto,
    /// The processor
    Cpu,
    /// A graphics card through Vulkan
    Vulkan,
    /// An NVIDIA card through CUDA (in builds with the feature `cuda`)
    Cuda,
    /// A graphics card through OpenGL, also Mesa's software renderer
    Gl,
}

/// How text files are read.
#[derive(Debug, Args)]
pub(crate) struct ReadingArgs {
    /// Field of .jsonl and .json files that holds the text
    #[arg(long, value_name = "NAME")]
    pub(crate) field: Option<String>,

    /// How lines of plain text are joined
    #[arg(long, value_enum, default_value_t = JoinName::Auto)]
    pub(crate) join: JoinName,
}

/// How lines are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum JoinName {
    /// `wiki.*.raw` as papers do, everything else as it is
    Auto,
    /// The file is the text
    AsIs,
    /// As papers join WikiText: rows with two newlines between them
    Wikitext,
}

/// Text to learn from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Calibration")]
pub(crate) struct CalibrationArgs {
    /// Text to calibrate on: files or folders of plain text, .jsonl or .json
    ///
    /// Use text like that which the model will read, and never the text it is evaluated on. Files are joined in the given
    /// order. `wiki.*.raw` is joined as papers do; `<|endoftext|>` separates documents.
    #[arg(long, value_name = "FILE", num_args = 1.., value_hint = ValueHint::AnyPath)]
    pub(crate) calibration: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) reading: ReadingArgs,

    #[command(flatten)]
    pub(crate) draw: DrawArgs,

    /// Seed of the draw
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Weigh errors with gradients of the loss, from a backward pass over about N of the calibration tokens
    #[arg(long, value_name = "N", num_args = 0..=1, value_parser = parse_positive, default_missing_value = "2048")]
    pub(crate) fisher: Option<usize>,

    /// Labelled text for the gradients instead: .jsonl with the texts `prompt` and `completion`
    ///
    /// The loss is taken on the completions only, so that what counts is the task. With --fisher N only as many examples as
    /// N tokens take.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) fisher_data: Option<PathBuf>,

    /// Collect the Fisher information of the rows of every map with the gradients, summed in this way; in mode fwsvd
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, default_missing_value = "per-example")]
    pub(crate) fisher_rows: Option<FisherRowsName>,

    /// Sum statistics over so many consecutive parts of the samples, then over the parts
    #[arg(long, value_name = "N", value_parser = parse_positive, default_value_t = 1)]
    pub(crate) shards: usize,

    /// Host memory to stay within, such as 8GiB; the residual stream moves to the disk if needed
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) max_ram: Option<u64>,

    /// Device memory to stay within, such as 4GiB; fewer tokens are computed at once if needed
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) max_vram: Option<u64>,
}

/// Which samples are drawn from a text.
#[derive(Debug, Args)]
pub(crate) struct DrawArgs {
    /// Number of samples
    #[arg(long, value_name = "N", value_parser = parse_positive, default_value_t = 128)]
    pub(crate) samples: usize,

    /// Tokens of each sample; the model's context if that is shorter and this is not given
    #[arg(long, value_name = "T", value_parser = parse_positive)]
    pub(crate) seq_len: Option<usize>,

    /// Where samples are taken from the text
    #[arg(long, value_enum, default_value_t = Placement::Random)]
    pub(crate) placement: Placement,
}

/// How samples are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Placement {
    /// Drawn at random, without overlap
    Random,
    /// Spread evenly over the text
    Spread,
}

/// `modegpt eval`
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// Text to score: files or folders of plain text, .jsonl or .json; `wiki.*.raw` is joined as papers do
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present_any = ["tasks", "speed"], value_hint = ValueHint::AnyPath)]
    pub(crate) text: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) reading: ReadingArgs,

    /// Tokens of a window; 2048 or the model's context, whichever is shorter, by default
    #[arg(long, value_name = "T", value_parser = parse_positive)]
    pub(crate) seq_len: Option<usize>,

    /// Distance between windows; the window's length, without overlap, by default, as papers do
    #[arg(long, value_name = "S", value_parser = parse_positive)]
    pub(crate) stride: Option<usize>,

    /// Score only the first N windows
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) max_windows: Option<usize>,

    /// Compare the predictions on the text with those of this model: KL divergence and agreement
    ///
    /// A folder or a hub id; usually the model that MODEL was compressed from. Both must read the same tokens.
    #[arg(long, value_name = "MODEL", requires = "text", value_hint = ValueHint::DirPath)]
    pub(crate) against: Option<String>,

    /// Measure how fast prompts are read, 1 and 16 at once, with the whole model on the device
    #[arg(long)]
    pub(crate) speed: bool,

    #[command(flatten)]
    pub(crate) questions: QuestionArgs,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Multiple-choice questions to be answered.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tasks")]
pub(crate) struct QuestionArgs {
    /// Multiple-choice tasks to answer, zero-shot, as lm-evaluation-harness asks and scores them
    ///
    /// Any of piqa, arc_easy, arc_challenge, winogrande, hellaswag, openbookqa; or a .jsonl file whose name begins with
    /// one of these.
    #[arg(long, value_name = "NAME|FILE", num_args = 1.., value_hint = ValueHint::AnyPath)]
    pub(crate) tasks: Vec<String>,

    /// Where the tasks' files are; `tasks` in MODEGPT_DATA, or in ../shared/data, by default
    #[arg(long, value_name = "FOLDER", requires = "tasks", value_hint = ValueHint::DirPath)]
    pub(crate) tasks_dir: Option<PathBuf>,

    /// Ask only the first N questions of each task
    #[arg(long, value_name = "N", requires = "tasks")]
    pub(crate) limit: Option<usize>,

    /// Append answers to this file as they come, and continue from those that it holds
    #[arg(long, value_name = "FILE", requires = "tasks", value_hint = ValueHint::FilePath)]
    pub(crate) resume: Option<PathBuf>,
}

/// `modegpt generate`
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// The text to continue
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) prompt: String,

    /// Most tokens to add
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) max_new_tokens: usize,

    /// 0 always takes the likeliest token; higher is more varied
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f64,

    /// Choose among the N likeliest tokens only; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) top_k: usize,

    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) top_p: f64,

    /// Seed of the draws
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `modegpt inspect`
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// Also compute the singular values of every matrix
    #[arg(long)]
    pub(crate) spectra: bool,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// `modegpt doctor`
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Check this device only
    #[arg(long, value_enum)]
    pub(crate) device: Option<DeviceName>,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// `modegpt bench`
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// A model to take sizes and weights from; the bundled one by default
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Tokens of a sample
    #[arg(long, value_name = "T", value_parser = parse_positive, default_value_t = 1024)]
    pub(crate) seq_len: usize,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// `modegpt demo`
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The bundled model
    #[arg(long, value_enum, default_value_t = DemoModel::Opt)]
    pub(crate) model: DemoModel,

    /// Share of the decoder blocks' linear weights to remove
    #[arg(long, value_name = "SHARE", default_value_t = 0.3, allow_negative_numbers = true)]
    pub(crate) sparsity: f64,

    /// Keep the compressed model in this folder
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Models that come with the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoModel {
    /// OPT with 0.67 million parameters, trained on children's stories
    Opt,
    /// Llama with 0.26 million parameters, trained on children's stories
    Llama,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
