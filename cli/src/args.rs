//! The command line's words. Everything that can be said to `modegpt` stands here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

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

    /// Number of samples
    #[arg(long, value_name = "N", value_parser = parse_positive, default_value_t = 128)]
    pub(crate) samples: usize,

    /// Tokens of each sample; the model's context if that is shorter and this is not given
    #[arg(long, value_name = "T", value_parser = parse_positive)]
    pub(crate) seq_len: Option<usize>,

    /// Seed of the draw
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Where samples are taken from the text
    #[arg(long, value_enum, default_value_t = Placement::Random)]
    pub(crate) placement: Placement,

    /// Weigh errors with gradients of the loss, from a backward pass over about N of the calibration tokens
    #[arg(long, value_name = "N", num_args = 0..=1, value_parser = parse_positive, default_missing_value = "2048")]
    pub(crate) fisher: Option<usize>,

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

/// How samples are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Placement {
    /// Drawn at random, without overlap
    Random,
    /// Spread evenly over the text
    Spread,
}

/// What a plan decides: options that mean nothing beside one.
const DECIDED_BY_PLAN: [&str; 16] = [
    "sparsity",
    "target_params",
    "target_bytes",
    "mode",
    "allocation",
    "mlp",
    "mlp_bias",
    "query_key",
    "value_output",
    "prefix",
    "epsilon",
    "prefix_ridge",
    "round_ff",
    "round_head",
    "ridge",
    "refit_ridge",
];

/// How small, and how it is decided.
#[derive(Debug, Args)]
#[command(next_help_heading = "Size")]
pub(crate) struct TargetArgs {
    /// Share of the decoder blocks' linear weights to remove, such as 0.3
    ///
    /// Embeddings, head and norms are not counted and stay: of all parameters a smaller share goes, which is printed.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, conflicts_with_all = ["target_params", "target_bytes"])]
    pub(crate) sparsity: Option<f64>,

    /// Parameters that the whole model shall have, such as 100M
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with = "target_bytes")]
    pub(crate) target_params: Option<u64>,

    /// Bytes that the whole model's weights shall take, such as 200MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) target_bytes: Option<u64>,

    /// The set of methods
    #[arg(long, value_enum, default_value_t = ModeName::Best)]
    pub(crate) mode: ModeName,

    /// How the share is spread over the layers; by error curves in mode best, by block influence in mode paper
    #[arg(long, value_enum)]
    pub(crate) allocation: Option<AllocationName>,

    /// How hidden units of the MLP are chosen, if not as the mode does
    #[arg(long, value_enum, value_name = "METHOD")]
    pub(crate) mlp: Option<MlpName>,

    /// How queries and keys lose width, if not as the mode does
    #[arg(long, value_enum, value_name = "METHOD")]
    pub(crate) query_key: Option<QueryKeyName>,

    /// In which metric values and outputs are truncated, if not as the mode does
    #[arg(long, value_enum, value_name = "METHOD")]
    pub(crate) value_output: Option<ValueOutputName>,

    /// Refit the bias of the down map too, where there is one; in mode best
    #[arg(long, value_name = "WHETHER", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) mlp_bias: Option<bool>,

    /// Refit down maps once more on what the compressed layers before really produce
    ///
    /// If not given: in mode best, for models that normalise before each module, where the calibration text is given to
    /// `compress` and has 64 tokens or more for each hidden unit. A plan says it only if asked to.
    #[arg(long, value_name = "WHETHER", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) prefix: Option<bool>,

    /// Temperature of the allocation by block influence; chosen as sharp as the paper's if not given
    #[arg(long, value_name = "EPS", allow_negative_numbers = true)]
    pub(crate) epsilon: Option<f64>,

    /// Ridge of the refit on the compressed prefix, relative to the mean diagonal
    #[arg(long, value_name = "R", default_value_t = 1e-3, allow_negative_numbers = true)]
    pub(crate) prefix_ridge: f64,

    /// Hidden widths become multiples of this; 64, or less for small models
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) round_ff: Option<usize>,

    /// Head widths become multiples of this; 8, or less for small models
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) round_head: Option<usize>,

    /// Ridge of the leverage scores, relative to the mean diagonal
    #[arg(long, value_name = "R", default_value_t = 1e-3, allow_negative_numbers = true)]
    pub(crate) ridge: f64,

    /// Ridge of the least squares that refit the down matrix, relative to the mean diagonal
    #[arg(long, value_name = "R", default_value_t = 1e-8, allow_negative_numbers = true)]
    pub(crate) refit_ridge: f64,
}

/// A set of methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeName {
    /// Same statistics as the paper, better decisions: elimination, refits, allocation by error curves
    Best,
    /// MoDeGPT as published: ridge leverage and Nyström, CR, SVD
    Paper,
}

/// How sparsity is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AllocationName {
    /// Layers that change the residual stream little give more
    BlockInfluence,
    /// Every layer gives the same share
    Uniform,
    /// Every layer and module gives where it costs least, by measured errors
    ErrorCurves,
}

/// How hidden units are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MlpName {
    /// The largest ridge leverage scores, all at once
    Leverage,
    /// One at a time, by what its loss costs after a refit of the others
    Elimination,
}

/// How queries and keys lose width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum QueryKeyName {
    /// Columns or rotary pairs of the largest energy, as they are
    Cr,
    /// By what errors of the logits do, with a refit: complex gains of rotary pairs, or a joint SVD
    Refit,
}

/// The metric of values and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ValueOutputName {
    /// That of the values
    Values,
    /// That of what attention delivers
    Attention,
}

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

    /// Replace the output, or an unfinished run, if it exists
    #[arg(long, conflicts_with = "resume", help_heading = "Output")]
    pub(crate) force: bool,

    /// Continue a run that was stopped, at the layer it was in
    #[arg(long, help_heading = "Output")]
    pub(crate) resume: bool,

    /// Make it an error if a factorisation needs extra jitter
    #[arg(long, help_heading = None)]
    pub(crate) strict: bool,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
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

    /// Collect the inputs of whole maps too, which methods that factorise each matrix by itself need
    #[arg(long, help_heading = "Calibration")]
    pub(crate) inputs: bool,

    /// Add up statistics of the same model from these folders, in order, instead of calibrating
    #[arg(long, value_name = "FOLDER", num_args = 2.., conflicts_with = "calibration", help_heading = "Calibration")]
    pub(crate) merge: Vec<PathBuf>,

    /// Replace the output, or an unfinished run, if it exists
    #[arg(long, conflicts_with = "resume", help_heading = "Output")]
    pub(crate) force: bool,

    /// Continue a run that was stopped, at the layer it was in
    #[arg(long, help_heading = "Output")]
    pub(crate) resume: bool,

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

/// Reads a count of which there must be one at least: `1`, `64`.
fn parse_positive(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "expected a whole number of at least 1".to_owned())
}

/// Reads `8GiB`, `500MB`, `1024`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let units = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    parse_with_unit(text, &units).ok_or_else(|| "expected a number of bytes such as 8GiB or 500MB".to_owned())
}

/// Reads `100M`, `1.5B`, `1000`.
fn parse_count(text: &str) -> Result<u64, String> {
    let units = [("K", 1000), ("M", 1_000_000), ("B", 1_000_000_000), ("", 1)];
    parse_with_unit(text, &units).ok_or_else(|| "expected a number such as 100M or 1.5B".to_owned())
}

fn parse_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()))?;
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some((number * *factor as f64).round() as u64)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn counts_are_whole_and_positive() {
        assert_eq!((parse_positive("1"), parse_positive("4096")), (Ok(1), Ok(4096)));
        for bad in ["", "0", "-1", "1.5", "many", "99999999999999999999"] {
            assert_eq!(parse_positive(bad), Err("expected a whole number of at least 1".to_owned()), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse_bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("500 mb"), Ok(500_000_000));
        assert_eq!(parse_bytes("12"), Ok(12));
        assert_eq!(parse_count("1.5B"), Ok(1_500_000_000));
        for bad in ["", "GiB", "-1", "1 QiB", "1e400", "nan"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
