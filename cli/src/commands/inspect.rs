//! `modegpt inspect`

use std::collections::BTreeMap;
use std::io::IsTerminal;

use modegpt::architecture::{
    Activation, DType, FactorRanks, Family, LayerShape, MapName, MlpKind, ModelConfig, Norm, Positions, WeightProvider,
};
use modegpt::checkpoint::{Checkpoint, outer_tensors};
use modegpt::{Model, Reporter, Spectrum, weight_spectra};
use serde::Serialize;

use crate::args::InspectArgs;
use crate::failure::Failure;
use crate::progress::Bars;
use crate::{inputs, printer};

/// What `--json` prints; scripts rely on these names.
#[derive(Debug, Serialize)]
struct Summary {
    source: String,
    fingerprint: String,
    family: &'static str,
    compressed: bool,
    format: String,
    files: Vec<File>,
    dtype: DType,
    bytes: u64,
    params: Params,
    shape: Shape,
    special_tokens: String,
    bos: Option<u32>,
    eos: Vec<u32>,
    layers: Vec<Layer>,
}

/// A file of weights.
#[derive(Debug, Serialize)]
struct File {
    name: String,
    bytes: u64,
    n_tensors: usize,
}

/// How many numbers the model is made of.
#[derive(Debug, Serialize)]
struct Params {
    total: u64,
    /// Linear weights of the decoder blocks: what a sparsity is a share of.
    blocks: u64,
    /// The same before compression.
    blocks_dense: u64,
    /// Tokens, positions, their projections, and the head where it is not tied.
    embeddings: u64,
    /// Normalisations and biases.
    rest: u64,
}

/// The sizes that all layers share.
#[derive(Debug, Serialize)]
struct Shape {
    n_layers: usize,
    d_model: usize,
    d_embedding: usize,
    n_heads: usize,
    n_kv_heads: usize,
    d_head: usize,
    vocab: usize,
    context: usize,
    positions: String,
    norm: &'static str,
    mlp: String,
    tied_head: bool,
}

/// One decoder block.
#[derive(Debug, Serialize)]
struct Layer {
    index: usize,
    d_ff: usize,
    d_qk: usize,
    d_v: usize,
    /// Which rotary pairs each kv head keeps; absent where all are kept or none exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    rotary_pairs: Option<Vec<Vec<usize>>>,
    /// At which rank each map is held as a product; absent where all are dense.
    #[serde(skip_serializing_if = "FactorRanks::is_dense")]
    ranks: FactorRanks,
    params: u64,
    /// Share of the linear weights that the layer had before compression.
    share_of_dense: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    spectra: Vec<Spectrum>,
}

/// Runs the command.
pub(crate) fn run(args: &InspectArgs) -> Result<(), Failure> {
    crate::device::set_threads(None);
    let model = inputs::open_model(&args.model.model)?;
    let mut summary = summarise(&model)?;
    if args.spectra {
        add_spectra(&mut summary.layers, &model.checkpoint)?;
    }
    if args.json { printer::json(&summary) } else { print(&summary, model.config().is_rotary()) }
}

fn summarise(model: &Model) -> Result<Summary, Failure> {
    let (config, checkpoint) = (model.config(), &model.checkpoint);
    let dense = dense_shapes(checkpoint);
    Ok(Summary {
        source: checkpoint.source().describe(),
        fingerprint: model.fingerprint().to_owned(),
        family: match config.family {
            Family::Opt => "OPT",
            Family::Llama => "Llama",
            Family::Gpt2 => "GPT-2",
        },
        compressed: dense != config.layers,
        format: checkpoint.index().format().to_string(),
        files: files(checkpoint)?,
        dtype: checkpoint.dtype(),
        bytes: checkpoint.bytes(),
        params: params(model, &dense),
        shape: shape(config),
        special_tokens: model.tokenizer.special_tokens_note().to_owned(),
        bos: config.special_tokens.bos,
        eos: model.stop_tokens(),
        layers: config.layers.iter().zip(&dense).enumerate().map(|(i, (s, d))| layer(config, i, s, d)).collect(),
    })
}

/// The layers before compression: those of the configuration that a compressed model carries inside.
fn dense_shapes(checkpoint: &Checkpoint) -> Vec<LayerShape> {
    let base = checkpoint.config_json().get("base_config");
    let dense = base.and_then(|base| ModelConfig::from_json(base).ok()).map(|config| config.layers);
    dense.unwrap_or_else(|| checkpoint.config().layers.clone())
}

fn files(checkpoint: &Checkpoint) -> Result<Vec<File>, Failure> {
    let mut n_tensors: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in checkpoint.index().entries().values() {
        *n_tensors.entry(&entry.file).or_default() += 1;
    }
    let mut files = Vec::with_capacity(n_tensors.len());
    for (name, n_tensors) in n_tensors {
        let bytes = checkpoint.source().size(name)?.unwrap_or(0);
        files.push(File { name: name.to_owned(), bytes, n_tensors });
    }
    Ok(files)
}

fn params(model: &Model, dense: &[LayerShape]) -> Params {
    let config = model.config();
    let (keys, root) = model.checkpoint.keys();
    let outer = outer_tensors(config, keys, root);
    let embeddings = outer.iter().filter(|spec| spec.shape.len() == 2).map(|spec| spec.n_elements() as u64).sum();
    let (total, blocks) = (model.params(), config.block_params() as u64);
    Params {
        total,
        blocks,
        blocks_dense: dense.iter().map(|shape| config.linear_params(shape) as u64).sum(),
        embeddings,
        rest: total - blocks - embeddings,
    }
}

fn shape(config: &ModelConfig) -> Shape {
    let activation = match config.activation {
        Activation::Relu => "ReLU",
        Activation::Gelu | Activation::GeluTanh => "GELU",
        Activation::Silu => "SiLU",
    };
    Shape {
        n_layers: config.layers.len(),
        d_model: config.d_model,
        d_embedding: config.d_embedding,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        d_head: config.d_head,
        vocab: config.vocab,
        context: config.max_positions,
        positions: match config.positions {
            Positions::Learned { .. } => "learned".to_owned(),
            Positions::Rotary { theta, .. } => format!("rotary, base {theta}"),
        },
        norm: match config.norm {
            Norm::Layer { .. } => "LayerNorm",
            Norm::Rms { .. } => "RMSNorm",
        },
        mlp: match config.mlp {
            MlpKind::Plain => activation.to_owned(),
            MlpKind::Gated => format!("gated {activation}"),
        },
        tied_head: config.tied_head,
    }
}

fn layer(config: &ModelConfig, index: usize, shape: &LayerShape, dense: &LayerShape) -> Layer {
    let params = config.linear_params(shape) as u64;
    Layer {
        index,
        d_ff: shape.d_ff,
        d_qk: shape.d_qk,
        d_v: shape.d_v,
        rotary_pairs: shape.rotary_pairs.clone(),
        ranks: shape.ranks,
        params,
        share_of_dense: params as f64 / config.linear_params(dense) as f64,
        spectra: Vec::new(),
    }
}

/// With one layer in memory at a time.
fn add_spectra(layers: &mut [Layer], checkpoint: &Checkpoint) -> Result<(), Failure> {
    let bars = Bars::default();
    bars.begin("spectra", layers.len() as u64);
    for layer in layers {
        let failed = |e: &dyn std::fmt::Display| Failure::request(format!("layer {}: {e}", layer.index));
        let weights = checkpoint.layer(layer.index).map_err(|e| failed(&e))?;
        let spectra = weight_spectra(checkpoint.config(), &weights).map_err(|e| failed(&e))?;
        layer.spectra = spectra.into_iter().map(six_digits).collect();
        bars.advance(layer.index as u64 + 1);
    }
    bars.end();
    Ok(())
}

/// Every value to six significant digits: more are noise in weights stored in single precision.
fn six_digits(spectrum: Spectrum) -> Spectrum {
    let round = |value: f64| format!("{value:.5e}").parse().unwrap_or(value);
    Spectrum {
        largest: round(spectrum.largest),
        stable_rank: round(spectrum.stable_rank),
        effective_rank: round(spectrum.effective_rank),
        singular_values: spectrum.singular_values.into_iter().map(round).collect(),
        ..spectrum
    }
}

fn print(summary: &Summary, is_rotary: bool) -> Result<(), Failure> {
    print_model(summary)?;
    printer::line("")?;
    printer::line(&layer_table(summary, is_rotary))?;
    for layer in summary.layers.iter().filter(|layer| !layer.spectra.is_empty()) {
        printer::line("")?;
        printer::line(&spectra_table(layer))?;
    }
    Ok(())
}

fn print_model(summary: &Summary) -> Result<(), Failure> {
    let (s, params) = (&summary.shape, &summary.params);
    let count = |n: u64| printer::grouped(n);
    let share = |n: u64| format!("{:.1} %", 100.0 * n as f64 / params.total as f64);
    let embedding = if s.d_embedding == s.d_model { String::new() } else { format!(" (embedding {})", s.d_embedding) };
    let kept = if summary.compressed {
        format!(
            ", {:.1} % of {} before compression",
            percent(params.blocks, params.blocks_dense),
            count(params.blocks_dense)
        )
    } else {
        String::new()
    };
    let head = if s.tied_head { "tied head" } else { "separate head" };
    let state = if summary.compressed { ", compressed" } else { "" };
    let tensors: usize = summary.files.iter().map(|file| file.n_tensors).sum();
    let rows = [
        ("model", format!("{}{state}, from {}", summary.family, summary.source)),
        (
            "weights",
            format!("{}, {} in {tensors} tensors, {}", summary.format, summary.dtype.torch_name(), file_list(summary)),
        ),
        ("parameters", format!("{}, {}", count(params.total), printer::bytes(summary.bytes))),
        ("  blocks", format!("{} ({}){kept}", count(params.blocks), share(params.blocks))),
        ("  embeddings", format!("{} ({}), {head}", count(params.embeddings), share(params.embeddings))),
        ("  rest", format!("{} ({}), norms and biases", count(params.rest), share(params.rest))),
        ("layers", format!("{} of width {}{embedding}, {}, {} MLP", s.n_layers, s.d_model, s.norm, s.mlp)),
        ("heads", format!("{} of width {}, {} for keys and values", s.n_heads, s.d_head, s.n_kv_heads)),
        ("context", format!("{} tokens, positions {}", count(s.context as u64), s.positions)),
        ("vocabulary", format!("{} tokens; {}", count(s.vocab as u64), summary.special_tokens)),
    ];
    rows.iter().try_for_each(|(name, text)| printer::line(&format!("{name:<12}  {text}")))
}

fn file_list(summary: &Summary) -> String {
    match summary.files.as_slice() {
        [file] => file.name.clone(),
        files => format!("{} files", files.len()),
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole as f64
}

fn layer_table(summary: &Summary, is_rotary: bool) -> String {
    let mut header = vec!["layer", "d_ff", "d_qk", "d_v"];
    if is_rotary {
        header.push("rotary pairs");
    }
    let is_factorised = summary.layers.iter().any(|layer| !layer.ranks.is_dense());
    if is_factorised {
        header.push("ranks");
    }
    header.extend(["weights", "of dense"]);
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for layer in &summary.layers {
        let mut row = [layer.index, layer.d_ff, layer.d_qk, layer.d_v].map(|n| n.to_string()).to_vec();
        if is_rotary {
            row.push(format!("{} of {}", layer.d_qk / 2, summary.shape.d_head / 2));
        }
        if is_factorised {
            row.push(ranks_text(&layer.ranks));
        }
        row.push(printer::grouped(layer.params));
        row.push(format!("{:.1} %", 100.0 * layer.share_of_dense));
        rows.push(row);
    }
    printer::table(&rows)
}

/// The maps that are products, with their ranks.
fn ranks_text(ranks: &FactorRanks) -> String {
    let text = |name: MapName| Some(format!("{name} {}", ranks.get(name)?));
    let texts: Vec<String> = MapName::ALL.into_iter().filter_map(text).collect();
    if texts.is_empty() { "–".to_owned() } else { texts.join(", ") }
}

/// Matrices by name; the products of all heads in one row, by their means.
fn spectra_table(layer: &Layer) -> String {
    let draw = std::io::stdout().is_terminal();
    let mut header = vec![format!("layer {}", layer.index)];
    header.extend(["shape", "largest", "stable rank", "effective", "90 %", "99 %"].map(str::to_owned));
    let mut rows = vec![header];
    let (heads, matrices): (Vec<&Spectrum>, Vec<&Spectrum>) = layer.spectra.iter().partition(|s| s.kv_head.is_some());
    for spectrum in matrices {
        rows.push(spectrum_row(spectrum.matrix.to_owned(), &[spectrum], draw));
    }
    if let Some(first) = heads.first() {
        rows.push(spectrum_row(format!("{}, {} heads", first.matrix, heads.len()), &heads, draw));
    }
    printer::table(&rows)
}

/// A row for one matrix, or for the means over some of equal shape; then the curve is that of the first.
fn spectrum_row(name: String, spectra: &[&Spectrum], draw: bool) -> Vec<String> {
    const CURVE: usize = 14;
    let mean = |of: fn(&Spectrum) -> f64| spectra.iter().map(|s| of(s)).sum::<f64>() / spectra.len() as f64;
    let first = spectra[0];
    let mut row = vec![
        name,
        format!("{} x {}", first.rows, first.cols),
        format!("{:.4}", mean(|s| s.largest)),
        format!("{:.1}", mean(|s| s.stable_rank)),
        format!("{:.1}", mean(|s| s.effective_rank)),
        format!("{:.0}", mean(|s| s.rank_90 as f64)),
        format!("{:.0}", mean(|s| s.rank_99 as f64)),
    ];
    if draw {
        row.push(format!("{:<CURVE$}", first.sparkline(CURVE)));
    }
    row
}
