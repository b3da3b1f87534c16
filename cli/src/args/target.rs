//! How small a model shall become, and how that is decided.

use clap::{Args, ValueEnum};

use super::numbers::{parse_above_zero, parse_bytes, parse_count, parse_not_negative, parse_positive, parse_share};

/// What a plan decides: options that mean nothing beside one.
pub(super) const DECIDED_BY_PLAN: [&str; 19] = [
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
    "round_rank",
    "alpha",
    "score",
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
    #[arg(long, value_name = "SHARE", value_parser = parse_share, allow_negative_numbers = true, conflicts_with_all = ["target_params", "target_bytes"])]
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

    /// How the share is spread over the layers; by error curves in mode best, by block influence in mode paper, else uniform
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

    /// Refit maps once more on what the compressed layers before really produce
    ///
    /// If not given: all in mode best, for models that normalise before each module, where the calibration text is given to
    /// `compress` and has 16 tokens or more for each hidden unit, else none. A plan says it only if asked to.
    #[arg(long, value_enum, value_name = "MAPS", num_args = 0..=1, default_missing_value = "all")]
    pub(crate) prefix: Option<PrefixName>,

    /// Power of the size of inputs in mode asvd; 0.5
    #[arg(long, value_name = "A", value_parser = parse_not_negative, allow_negative_numbers = true)]
    pub(crate) alpha: Option<f64>,

    /// By what channels go in mode sliced; wanda
    #[arg(long, value_enum)]
    pub(crate) score: Option<ScoreName>,

    /// Temperature of the allocation by block influence; chosen as sharp as the paper's if not given
    #[arg(long, value_name = "EPS", value_parser = parse_above_zero, allow_negative_numbers = true)]
    pub(crate) epsilon: Option<f64>,

    /// In the refit on the compressed prefix: for how many tokens for each of its inputs a map that is there counts
    ///
    /// The larger, the less is refitted, and the less is learnt of the samples that other text does not bear out.
    #[arg(long, value_name = "N", value_parser = parse_not_negative, default_value_t = 8.0, allow_negative_numbers = true)]
    pub(crate) prefix_ridge: f64,

    /// Hidden widths become multiples of this; 64, or less for small models
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) round_ff: Option<usize>,

    /// Head widths become multiples of this; 8, or less for small models
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) round_head: Option<usize>,

    /// Ranks of maps that become products become multiples of this; 8, or less for small models
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub(crate) round_rank: Option<usize>,

    /// Ridge of the leverage scores, relative to the mean diagonal
    #[arg(long, value_name = "R", value_parser = parse_not_negative, default_value_t = 1e-3, allow_negative_numbers = true)]
    pub(crate) ridge: f64,

    /// Ridge of the least squares that refit the down matrix, relative to the mean diagonal
    ///
    /// With fewer than 16 tokens for each hidden unit that is kept, more is added, up to 4 times their number by that of the
    /// tokens: the rest would be decided by what those few tokens happen to be.
    #[arg(long, value_name = "R", value_parser = parse_not_negative, default_value_t = 1e-8, allow_negative_numbers = true)]
    pub(crate) refit_ridge: f64,
}

/// A set of methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeName {
    /// Same statistics as the paper, better decisions: elimination, refits, allocation by error curves
    Best,
    /// MoDeGPT as published: ridge leverage and Nyström, CR, SVD
    Paper,
    /// Every map a product of lower rank, by its singular values
    Svd,
    /// The same, rows weighed with their Fisher information, from gradients of the loss (FWSVD)
    Fwsvd,
    /// The same, rows scaled by the size of their inputs (ASVD)
    Asvd,
    /// The same, in the metric of what the map puts out (SVD-LLM)
    SvdLlm,
    /// Whole channels go by the size of their weights, and nothing is refitted
    Sliced,
}

/// Which maps are refitted on the compressed prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrefixName {
    /// No map
    None,
    /// The output maps of attention
    Output,
    /// The output maps of attention and the down maps of MLPs
    All,
}

/// By what channels are sliced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScoreName {
    /// The size of their weights
    Magnitude,
    /// The size of their weights times that of what these multiply
    Wanda,
}

/// How the Fisher information of rows is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FisherRowsName {
    /// Squares of the gradient of each sample, as FWSVD has it
    PerExample,
    /// Squares of the gradient of each token by itself, which is cheaper
    PerToken,
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
