//! What the suites share: the data folder, and short ways to open and run models.

mod factorised;
pub mod prototype;
mod replaced;

use std::path::PathBuf;
use std::sync::Arc;

use modegpt::architecture::WeightProvider;
use modegpt::checkpoint::{FolderSource, MemorySource};
use modegpt::model_runtime::{Block, Compute, Embedder, Head};
use modegpt::text_tools::{Corpus, Strategy};
use modegpt::{Calibration, CalibrationOptions, EvaluationOptions, Model, Silent, evaluate};

pub use factorised::{factorised, multiplied_out, uneven_rank};
pub use replaced::{Replaced, dense_layer};

/// The folder with real models and texts: `MODEGPT_DATA`, or the one beside the checkout.
///
/// # Panics
/// If it is not there: these suites prove nothing without it.
pub fn data_folder() -> PathBuf {
    let folder = std::env::var_os("MODEGPT_DATA")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")), PathBuf::from);
    assert!(folder.join("models").is_dir(), "no models in `{}`: set MODEGPT_DATA", folder.display());
    folder
}

/// A file of the data folder as text.
///
/// # Panics
/// If it cannot be read.
pub fn read_text(file: &str) -> String {
    let path = data_folder().join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("`{}`: {e}", path.display()))
}

/// Opens a model of the data folder.
///
/// # Panics
/// If it cannot be opened.
pub fn open(name: &str) -> Model {
    open_folder(data_folder().join("models").join(name))
}

/// Opens a model in any folder.
///
/// # Panics
/// If it cannot be opened.
pub fn open_folder(folder: impl Into<PathBuf>) -> Model {
    let folder = folder.into();
    Model::open(Arc::new(FolderSource::new(&folder))).unwrap_or_else(|e| panic!("`{}`: {e}", folder.display()))
}

/// The files of a model of the data folder, in memory, to be changed.
///
/// # Panics
/// If they cannot be read.
pub fn files_of(name: &str) -> MemorySource {
    let folder = data_folder().join("models").join(name);
    ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]
        .into_iter()
        .map(|file| (file, std::fs::read(folder.join(file)).unwrap_or_else(|e| panic!("`{file}` of {name}: {e}"))))
        .collect()
}

/// Calibration samples from the training stories.
///
/// # Panics
/// If there are too few.
pub fn stories(model: &Model, n_samples: usize, seq_len: usize) -> Calibration {
    let text = read_text("text/tinystories/train.txt");
    let beginning: String = text.chars().take(n_samples * seq_len * 8).collect();
    spread_over(&beginning, model, n_samples, seq_len)
}

/// As [`stories`], of the stories after the first two million characters: samples to be held out.
///
/// # Panics
/// If there are not so many.
pub fn stories_after(model: &Model, n_samples: usize, seq_len: usize) -> Calibration {
    let text = read_text("text/tinystories/train.txt");
    let later: String = text.chars().skip(2_000_000).take(n_samples * seq_len * 8).collect();
    spread_over(&later, model, n_samples, seq_len)
}

fn spread_over(text: &str, model: &Model, n_samples: usize, seq_len: usize) -> Calibration {
    let corpus = Corpus::from_plain("train.txt", text).expect("stories");
    let options = CalibrationOptions { n_samples, seq_len, seed: 0, strategy: Strategy::Spread };
    Calibration::draw(model, &[corpus], options).expect("enough stories")
}

/// Perplexity on the first characters of the test stories, in windows of 256 tokens.
///
/// # Panics
/// If the forward pass fails.
pub fn perplexity(model: &Model, n_chars: usize) -> f64 {
    let stories: String = read_text("text/tinystories/test.txt").chars().take(n_chars).collect();
    let corpus = Corpus::from_plain("test.txt", &stories).expect("stories");
    let options = EvaluationOptions { seq_len: 256, stride: 256, max_windows: None, batch_tokens: 2048 };
    let compute = Compute::host();
    pollster::block_on(evaluate(model, &[corpus], options, &compute, &Silent)).expect("evaluates").perplexity
}

/// All logits of one sequence, `[tokens, vocab]`.
///
/// # Panics
/// If the forward pass fails.
pub fn logits(model: &Model, ids: &[u32], compute: &Compute) -> Vec<f32> {
    logits_of(&model.checkpoint, ids, compute)
}

/// As [`logits`], of weights from anywhere.
///
/// # Panics
/// If the forward pass fails.
pub fn logits_of(weights: &dyn WeightProvider, ids: &[u32], compute: &Compute) -> Vec<f32> {
    let config = weights.config();
    let embedder = Embedder::new(weights, compute).expect("readable weights");
    let mut x = embedder.embed(weights, ids, 1, 0, compute).expect("known ids");
    for (index, shape) in config.layers.iter().enumerate() {
        x = Block::new(weights.layer(index).expect("readable weights"), shape, config, compute).forward(x);
    }
    let x = x.reshape([ids.len(), config.d_model]);
    let head = Head::new(weights, compute).expect("readable weights");
    pollster::block_on(head.logits(weights, x, compute)).expect("finite logits")
}

/// Largest and mean absolute difference.
///
/// # Panics
/// If the lengths differ.
pub fn differences(found: &[f32], expected: &[f32]) -> (f32, f32) {
    assert_eq!(found.len(), expected.len());
    let each = || found.iter().zip(expected).map(|(f, e)| (f - e).abs());
    (each().fold(0.0, f32::max), each().sum::<f32>() / found.len() as f32)
}
