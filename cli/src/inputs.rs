//! From words on the command line to models, texts and options.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use modegpt::architecture::DType;
use modegpt::checkpoint::{Existing, FolderSource};
use modegpt::compress::{
    ErrorUnit, MapMetric, Methods, MlpMethod, Mode, PrefixRefit, QueryKeyMethod, Ridges, Rounding, Target,
    ValueOutputMethod,
};
use modegpt::run::{AllocationChoice, PlanRequest};
use modegpt::statistics::RowFisher;
use modegpt::text_tools::{Corpus, LabelledText, Strategy, TextJoin};
use modegpt::{Calibration, CalibrationOptions, CorpusOptions, LabelledSamples, Model, read_corpus};

use crate::args::{
    AllocationName, CalibrationArgs, DTypeName, DrawArgs, FisherRowsName, JoinName, MlpName, ModeName, Placement,
    PrefixName, QueryKeyName, ReadingArgs, ScoreName, TargetArgs, ValueOutputName,
};
use crate::failure::Failure;
use crate::progress::Bars;
use crate::{hub, printer};

/// Samples are this long where the model's context allows it and nothing else is asked for.
const DEFAULT_SEQ_LEN: usize = 2048;

/// Opens a folder, or downloads a hub id first. A folder is preferred.
pub(crate) fn open_model(name: &str) -> Result<Model, Failure> {
    use modegpt::Reporter;
    // A folder and a model of the hub may both be called `gpt2`.
    if hub::is_one_word(name) {
        let here = Path::new(name).exists();
        let taken = if here { "the one here, not the hub's" } else { "the hub's: there is none of that name here" };
        printer::remark(&format!("`{name}` is {taken}"));
    }
    let bars = Bars::default();
    let shown = std::cell::RefCell::new(String::new());
    let folder = hub::resolve(name, &|file, done, all| {
        if *shown.borrow() != file {
            bars.end();
            bars.begin(file, all);
            shown.replace(file.to_owned());
        }
        bars.advance(done);
    });
    bars.end();
    let folder = folder.map_err(|error| match error.hint() {
        Some(hint) => Failure::request(format!("{error}\n  hint: {hint}")),
        None => Failure::from(error),
    })?;
    Model::open(Arc::new(FolderSource::new(&folder)))
        .map_err(|error| Failure::request(format!("cannot open the model in `{}`: {error}", folder.display())))
}

/// Reads text files; of a folder, every file that holds text, by name.
pub(crate) fn read_texts(paths: &[PathBuf], reading: &ReadingArgs) -> Result<Vec<Corpus>, Failure> {
    let join = match reading.join {
        JoinName::Auto => None,
        JoinName::AsIs => Some(TextJoin::AsIs),
        JoinName::Wikitext => Some(TextJoin::WikiText),
    };
    let options = CorpusOptions { field: reading.field.clone(), join };
    let mut corpora = Vec::new();
    for path in paths {
        for file in text_files(path)? {
            let name = file.to_string_lossy();
            let bytes =
                std::fs::read(&file).map_err(|e| Failure::request(format!("cannot read text `{name}`: {e}")))?;
            corpora.push(read_corpus(&name, &bytes, &options)?);
        }
    }
    Ok(corpora)
}

fn text_files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let fail = |e: std::io::Error| Failure::request(format!("cannot read text `{}`: {e}", path.display()));
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let file = entry.map_err(fail)?.path();
        let ending = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if file.is_file() && ["txt", "raw", "jsonl", "json", "md"].contains(&ending) {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Failure::request(format!(
            "folder `{}` has no text: expected .txt, .raw, .md, .jsonl or .json",
            path.display()
        )));
    }
    Ok(files)
}

/// The folder with models, texts and tasks.
pub(crate) fn data_folder() -> PathBuf {
    std::env::var_os("MODEGPT_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from)
}

/// A length that the model can read.
pub(crate) fn seq_len(model: &Model, asked: Option<usize>) -> usize {
    asked.unwrap_or(DEFAULT_SEQ_LEN.min(model.config().max_positions))
}

/// Draws the samples that were asked for.
pub(crate) fn draw_calibration(model: &Model, args: &CalibrationArgs) -> Result<Calibration, Failure> {
    Ok(draw_and_hold_out(model, args, 0)?.0)
}

/// Draws the samples that were asked for, and `n_held_out` others if the text has so many.
pub(crate) fn draw_and_hold_out(
    model: &Model,
    args: &CalibrationArgs,
    n_held_out: usize,
) -> Result<(Calibration, Option<Calibration>), Failure> {
    if args.calibration.is_empty() {
        return Err(Failure::Usage("text to calibrate on is missing: --calibration FILE…".to_owned()));
    }
    let corpora = read_texts(&args.calibration, &args.reading)?;
    let options = draw_options(model, &args.draw, args.seed);
    Ok(Calibration::draw_and_hold_out(model, &corpora, options, n_held_out)?)
}

/// The draw that was asked for.
pub(crate) fn draw_options(model: &Model, args: &DrawArgs, seed: u64) -> CalibrationOptions {
    CalibrationOptions {
        n_samples: args.samples,
        seq_len: seq_len(model, args.seq_len),
        seed,
        strategy: match args.placement {
            Placement::Random => Strategy::Random,
            Placement::Spread => Strategy::Spread,
        },
    }
}

/// The labelled samples that were given.
pub(crate) fn labelled(model: &Model, args: &CalibrationArgs) -> Result<Option<LabelledSamples>, Failure> {
    let Some(file) = &args.fisher_data else { return Ok(None) };
    let name = file.to_string_lossy();
    let bytes =
        std::fs::read(file).map_err(|e| Failure::request(format!("cannot read labelled text `{name}`: {e}")))?;
    let text = LabelledText::from_jsonl(&name, &bytes)?;
    Ok(Some(LabelledSamples::encode(model, &text, args.fisher)?))
}

/// Whether gradients are asked for, in whatever way.
pub(crate) fn asks_for_gradients(args: &CalibrationArgs) -> bool {
    args.fisher.is_some() || args.fisher_data.is_some()
}

/// The size that was asked for.
fn target(args: &TargetArgs) -> Result<Target, Failure> {
    match (args.sparsity, args.target_params, args.target_bytes) {
        (Some(sparsity), _, _) => Ok(Target::Sparsity(sparsity)),
        (_, Some(params), _) => Ok(Target::Params(params)),
        (_, _, Some(bytes)) => Ok(Target::Bytes(bytes)),
        _ => Err(Failure::Usage("how small? Pass --sparsity, --target-params, --target-bytes or --plan".to_owned())),
    }
}

/// How a plan is to be made; `fisher`: with gradients of the loss.
pub(crate) fn plan_request(model: &Model, args: &TargetArgs, fisher: bool) -> Result<PlanRequest, Failure> {
    let usual = PlanRequest::new(target(args)?, mode(args.mode));
    let default = Ridges::default();
    let request = PlanRequest {
        unit: if fisher { ErrorUnit::Nats } else { usual.unit },
        methods: methods(args, usual.methods)?,
        allocation: allocation(args, usual.allocation)?,
        rounding: Some(rounding(model, args)),
        ridges: Ridges { leverage: args.ridge, refit: args.refit_ridge, prefix: args.prefix_ridge, ..default },
        ..usual
    };
    if fisher && !request.weighs_errors() {
        let reason = "--fisher weighs errors, and none of these methods looks at any: leave it out, or use --mode best";
        return Err(Failure::Usage(reason.to_owned()));
    }
    Ok(request)
}

/// A set of methods by its name.
pub(crate) fn mode(name: ModeName) -> Mode {
    match name {
        ModeName::Best => Mode::Best,
        ModeName::Paper => Mode::Paper,
        ModeName::Svd => Mode::Svd,
        ModeName::Fwsvd => Mode::Fwsvd,
        ModeName::Asvd => Mode::Asvd,
        ModeName::SvdLlm => Mode::SvdLlm,
        ModeName::Sliced => Mode::Sliced,
    }
}

fn methods(args: &TargetArgs, usual: Methods) -> Result<Methods, Failure> {
    if args.alpha.is_some() && args.mode != ModeName::Asvd {
        return Err(Failure::Usage("--alpha belongs to --mode asvd".to_owned()));
    }
    if args.score.is_some() && args.mode != ModeName::Sliced {
        return Err(Failure::Usage("--score belongs to --mode sliced".to_owned()));
    }
    if !matches!(args.mode, ModeName::Best | ModeName::Paper) {
        return plain_methods(args, usual);
    }
    Ok(Methods {
        mlp: args.mlp.map_or(usual.mlp, |name| match name {
            MlpName::Leverage => MlpMethod::Leverage,
            MlpName::Elimination => MlpMethod::Elimination,
        }),
        mlp_bias: args.mlp_bias.unwrap_or(usual.mlp_bias),
        query_key: args.query_key.map_or(usual.query_key, |name| match name {
            QueryKeyName::Cr => QueryKeyMethod::Cr,
            QueryKeyName::Refit => QueryKeyMethod::Refit,
        }),
        value_output: args.value_output.map_or(usual.value_output, |name| match name {
            ValueOutputName::Values => ValueOutputMethod::Values,
            ValueOutputName::Attention => ValueOutputMethod::Attention,
        }),
        prefix: args.prefix.map_or(usual.prefix, |name| match name {
            PrefixName::None => PrefixRefit::None,
            PrefixName::Output => PrefixRefit::Output,
            PrefixName::All => PrefixRefit::All,
        }),
        maps: None,
    })
}

/// The methods of a mode beside those of modules, whose own options are refused.
fn plain_methods(args: &TargetArgs, usual: Methods) -> Result<Methods, Failure> {
    let given = [
        ("--mlp", args.mlp.is_some()),
        ("--mlp-bias", args.mlp_bias.is_some()),
        ("--query-key", args.query_key.is_some()),
        ("--value-output", args.value_output.is_some()),
        ("--prefix", args.prefix.is_some_and(|maps| maps != PrefixName::None)),
    ];
    if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(Failure::Usage(format!("{name} belongs to the modes best and paper")));
    }
    Ok(match (args.mode, args.score) {
        (ModeName::Asvd, _) => Methods::of_maps(MapMetric::Asvd { alpha: args.alpha.unwrap_or(MapMetric::ASVD_ALPHA) }),
        (ModeName::Sliced, Some(ScoreName::Magnitude)) => Methods::MAGNITUDE,
        _ => usual,
    })
}

/// How the Fisher information of rows is summed, by its name.
pub(crate) fn row_fisher(name: FisherRowsName) -> RowFisher {
    match name {
        FisherRowsName::PerExample => RowFisher::PerExample,
        FisherRowsName::PerToken => RowFisher::PerToken,
    }
}

fn allocation(args: &TargetArgs, usual: AllocationChoice) -> Result<AllocationChoice, Failure> {
    match (args.allocation, args.epsilon) {
        (Some(AllocationName::BlockInfluence), Some(epsilon)) => Ok(AllocationChoice::Epsilon(epsilon)),
        (None, Some(epsilon)) if usual == AllocationChoice::Paper => Ok(AllocationChoice::Epsilon(epsilon)),
        (_, Some(_)) => Err(Failure::Usage("--epsilon belongs to --allocation block-influence".to_owned())),
        (Some(AllocationName::BlockInfluence), None) => Ok(AllocationChoice::Paper),
        (Some(AllocationName::Uniform), None) => Ok(AllocationChoice::Uniform),
        (Some(AllocationName::ErrorCurves), None) => Ok(AllocationChoice::ErrorCurves),
        (None, None) => Ok(usual),
    }
}

/// The roundings that were asked for, the rest by the model's size.
fn rounding(model: &Model, args: &TargetArgs) -> Rounding {
    let usual = Rounding::default_for(model.config());
    Rounding {
        ff: args.round_ff.unwrap_or(usual.ff),
        head: args.round_head.unwrap_or(usual.head),
        rank: args.round_rank.unwrap_or(usual.rank),
    }
}

/// An element type by its name.
pub(crate) fn dtype(name: DTypeName) -> DType {
    match name {
        DTypeName::F32 => DType::F32,
        DTypeName::F16 => DType::F16,
        DTypeName::Bf16 => DType::Bf16,
    }
}

/// What may be done to an output that is there already.
pub(crate) fn existing(force: bool, resume: bool) -> Existing {
    match (force, resume) {
        (true, _) => Existing::Replace,
        (_, true) => Existing::Resume,
        _ => Existing::Refuse,
    }
}
