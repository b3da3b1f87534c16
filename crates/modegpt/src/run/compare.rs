//! A grid of methods, sparsities and seeds, measured by one protocol: what compression costs, and who does it best.
//!
//! ```text
//! for each seed:  samples ── calibrate, once ──► statistics, gradients
//!   for each sparsity and method:  compress ── measure ──► a cell, kept as a note; the model is removed
//! ```
//!
//! Every finished cell is a file in the folder of the report, with everything that it was computed from. A comparison that
//! was stopped, or is asked for more, computes only what is not there; a cell that was computed differently is refused.

mod ablation;
mod cell;
mod dense_streams;
mod error;
mod folder;
mod grid;
mod method;
mod report;
mod surveys;

use std::path::Path;

use modegpt_calibration::GramPath;
use modegpt_checkpoint::Existing;
use modegpt_model::{Compute, ComputeError};
use modegpt_report::{CompareReport, csv, page};
use modegpt_text::Corpus;

use crate::run::MemoryPlan;
use crate::{Calibration, EncodedTask, EvaluationOptions, Model, Reporter};
use cell::Dense;
pub use error::CompareError;
use folder::CompareFolder;
use grid::{Asked, Grid};
pub use method::NamedMethod;

/// A text that models are scored on.
#[derive(Clone, Debug)]
pub struct NamedText {
    /// Its name in the report.
    pub name: String,
    /// Its parts, joined in this order.
    pub corpora: Vec<Corpus>,
}

/// The samples of a seed.
#[derive(Clone, Debug)]
pub struct SeededDraw {
    /// The seed.
    pub seed: u64,
    /// The samples.
    pub calibration: Calibration,
    /// Samples of the same text that nothing else sees, on which a method with a choice of plans tries them.
    pub held_out: Option<Calibration>,
}

/// How fast a model reads one prompt alone, and many at once, in tokens per second, as the caller measures it.
pub type ReadingSpeed<'a> = dyn Fn(&Model) -> Result<[f64; 2], ComputeError> + 'a;

/// A comparison to be done.
pub struct CompareRun<'a> {
    /// The model to compress.
    pub model: &'a Model,
    /// What to call it.
    pub model_name: &'a str,
    /// The methods, in the order in which the report shows them.
    pub methods: &'a [NamedMethod],
    /// Shares of the block weights to remove.
    pub sparsities: &'a [f64],
    /// Samples for each seed.
    pub draws: &'a [SeededDraw],
    /// Names of the texts that samples were drawn from.
    pub calibration_texts: Vec<String>,
    /// Texts to score.
    pub texts: &'a [NamedText],
    /// How they are scored.
    pub evaluation: EvaluationOptions,
    /// Questions to ask.
    pub tasks: &'a [EncodedTask],
    /// Compare predictions with the dense model's. Its streams are kept on the disk meanwhile, as far as 4 GiB hold them, so
    /// that a cell costs its head alone.
    pub against_dense: bool,
    /// Also measure what each decision of mode best is worth.
    pub ablate: bool,
    /// What to continue.
    pub prompt: &'a str,
    /// By so many tokens at most.
    pub sample_tokens: usize,
    /// What computes.
    pub compute: &'a Compute,
    /// What to call it.
    pub device: &'a str,
    /// Where the largest Gram matrix is summed.
    pub gram_path: GramPath,
    /// Tokens computed at once.
    pub batch_tokens: usize,
    /// Tokens of the backward pass, where a method needs one.
    pub gradient_tokens: usize,
    /// Host memory to stay within.
    pub max_host_bytes: Option<u64>,
    /// How the report says that it was asked for.
    pub command: &'a str,
    /// Keep the compressed models.
    pub keep: bool,
    /// What to do about a report that is there already.
    pub existing: Existing,
    /// Seconds that have passed since any moment.
    pub clock: &'a dyn Fn() -> f64,
    /// How fast a model reads, and how that is measured; `None` to leave it out.
    pub reading: Option<(&'a ReadingSpeed<'a>, &'a str)>,
    /// Hears of progress.
    pub reporter: &'a dyn Reporter,
}

impl CompareRun<'_> {
    /// What memory calibration and compression will take.
    ///
    /// # Errors
    /// [`CompareError`] if the comparison cannot be done as it is asked for.
    pub fn memory_plan(&self) -> Result<MemoryPlan, CompareError> {
        let grid = Grid::new(self)?;
        let cells: Vec<&Asked> = grid.asked.iter().collect();
        let prefix = cells.iter().any(|cell| cell.request.methods.prefix.is_any());
        Ok(self.calibration_run(&self.draws[0], &cells).memory_plan(prefix))
    }
}

/// Computes what is missing of the grid, and writes `report.json`, `report.csv` and `report.html` into the folder `target`.
///
/// # Errors
/// [`CompareError`]; finished cells stay.
pub async fn compare(run: &CompareRun<'_>, target: &Path) -> Result<CompareReport, CompareError> {
    let grid = Grid::new(run)?;
    let folder = CompareFolder::open(target, run.existing)?;
    let computed = run.computed()?;
    let mut known = grid.known(run, &folder, &computed)?;
    let dense = Dense::known_or_measured(run, &folder, &computed).await?;
    grid.complete(run, &folder, &computed, &mut known).await?;
    let report = report::assemble(run, &grid, dense, known);
    let json = serde_json::to_string_pretty(&report).expect("a report has only string keys");
    folder.write("report.json", &json)?;
    folder.write("report.csv", &csv(&report))?;
    folder.write("report.html", &page(&report))?;
    folder.finish()?;
    Ok(report)
}
