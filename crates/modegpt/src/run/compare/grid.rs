//! Which cells there are, and computing those that are missing.

use std::cell::Cell as Slot;
use std::path::PathBuf;

use modegpt_calibration::Collect;
use modegpt_checkpoint::{Existing, Journal};
use modegpt_compress::ErrorUnit;
use modegpt_report::Draw;
use modegpt_statistics::RowFisher;
use serde::{Deserialize, Serialize};

use super::ablation::Steps;
use super::cell::Found;
use super::folder::{CompareFolder, remove};
use super::{CompareError, CompareRun, SeededDraw};
use crate::run::{CalibrationRun, StatisticsFolder, calibrate, check_request};
use crate::{Calibration, PlanRequest, Reporter};

/// Where in the report a cell belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Grid,
    /// Step of the ablation that adds decisions.
    Added(usize),
    /// Step of the ablation that leaves one out.
    LeftOut(usize),
}

/// A cell as it is asked for.
pub(super) struct Asked {
    pub(super) part: Part,
    /// Name of the method, or label of the step.
    pub(super) method: String,
    pub(super) sparsity: f64,
    /// Position of the draw.
    pub(super) draw: usize,
    pub(super) request: PlanRequest,
    /// Name of its note.
    pub(super) note: String,
}

/// All cells, in the order in which they are computed: all of one draw before those of the next.
pub(super) struct Grid {
    pub(super) asked: Vec<Asked>,
    /// Of the ablation.
    pub(super) ablated: Option<f64>,
}

/// How long the passes of a draw took, kept beside its statistics.
#[derive(Serialize, Deserialize)]
struct Passes {
    run: Journal,
    draw: Draw,
}

impl Grid {
    /// The cells of a comparison.
    ///
    /// # Errors
    /// [`CompareError`] if something is missing or said twice, or a size cannot be reached.
    pub(super) fn new(run: &CompareRun<'_>) -> Result<Self, CompareError> {
        check(run)?;
        let mut asked = Vec::new();
        let ablated = run.ablate.then(|| nearest(run.sparsities, 0.3)).flatten();
        for (draw, SeededDraw { seed, calibration, .. }) in run.draws.iter().enumerate() {
            for &sparsity in run.sparsities {
                for method in run.methods {
                    let request = method.request_for(sparsity, run.model.config(), calibration);
                    let note = format!("{}-{sparsity}-seed-{seed}", method.name());
                    let method = method.name().to_owned();
                    asked.push(Asked { part: Part::Grid, method, sparsity, draw, request, note });
                }
            }
            if let Some(sparsity) = ablated {
                let Steps { added, left_out } = Steps::new(sparsity, run.model.config());
                let added = added.into_iter().enumerate().map(|(step, what)| (Part::Added(step), "added", step, what));
                let left = left_out.into_iter().enumerate();
                let left = left.map(|(step, what)| (Part::LeftOut(step), "left-out", step, what));
                for (part, name, step, (method, request)) in added.chain(left) {
                    let note = format!("ablation-{name}-{step}-{sparsity}-seed-{seed}");
                    asked.push(Asked { part, method, sparsity, draw, request, note });
                }
            }
        }
        let dtype = run.model.checkpoint.dtype();
        for cell in asked.iter().filter(|cell| cell.draw == 0) {
            check_request(run.model, &cell.request, dtype).map_err(|source| cell.failed(run, source.into()))?;
        }
        Ok(Self { asked, ablated })
    }

    /// The notes of an earlier run, one place for each cell.
    ///
    /// # Errors
    /// [`CompareError::Different`] or [`CompareError::Note`].
    pub(super) fn known(
        &self,
        run: &CompareRun<'_>,
        folder: &CompareFolder,
        computed: &Journal,
    ) -> Result<Vec<Option<Found>>, CompareError> {
        self.asked.iter().map(|asked| folder.read(&asked.note, &asked.computed(run, computed))).collect()
    }

    /// Computes the cells that are not known.
    ///
    /// # Errors
    /// [`CompareError::Cell`] with the cell that failed.
    pub(super) async fn complete(
        &self,
        run: &CompareRun<'_>,
        folder: &CompareFolder,
        computed: &Journal,
        known: &mut [Option<Found>],
    ) -> Result<(), CompareError> {
        self.share(known);
        let n_known = known.iter().flatten().count();
        if n_known > 0 {
            run.reporter.note(&format!("{n_known} of {} cells are kept from an earlier run", self.asked.len()));
        }
        let begin = (run.clock)();
        for (draw, drawn) in run.draws.iter().enumerate() {
            let missing: Vec<usize> =
                (0..self.asked.len()).filter(|&i| self.asked[i].draw == draw && known[i].is_none()).collect();
            if missing.is_empty() {
                continue;
            }
            let of_draw: Vec<&Asked> = self.asked.iter().filter(|asked| asked.draw == draw).collect();
            let (statistics, passes) = run.statistics(drawn, &of_draw, folder).await?;
            for index in missing {
                let asked = &self.asked[index];
                if known[index].is_none() {
                    let n_done = known.iter().flatten().count();
                    run.reporter.note(&self.progress(run, asked, n_done, n_known, (run.clock)() - begin));
                    let found = run.compute_cell(asked, (drawn, &passes), &statistics, folder).await;
                    let found = found.map_err(|source| asked.failed(run, source))?;
                    folder.keep(&asked.note, &asked.computed(run, computed), &found)?;
                    known[index] = Some(found);
                    self.share(known);
                }
            }
            remove(&scratch(drawn, folder))?;
        }
        Ok(())
    }

    /// Gives what is known of a cell to others that ask the same: an ablation begins and ends with cells of the grid.
    fn share(&self, known: &mut [Option<Found>]) {
        for index in 0..known.len() {
            let Some(found) = &known[index] else { continue };
            let asked = &self.asked[index];
            let same = |other: &Asked| {
                other.draw == asked.draw && other.request == asked.request && other.has_choice() == asked.has_choice()
            };
            let found = found.clone();
            for other in (0..known.len()).filter(|other| same(&self.asked[*other])) {
                if known[other].is_none() {
                    let mut found = found.clone();
                    found.cell.method.clone_from(&self.asked[other].method);
                    known[other] = Some(found);
                }
            }
        }
    }

    fn progress(&self, run: &CompareRun<'_>, asked: &Asked, n_done: usize, n_known: usize, secs: f64) -> String {
        let (n, computed) = (self.asked.len(), n_done - n_known);
        let mut text = format!("cell {} of {n}: {}", n_done + 1, asked.describe(run));
        if computed > 0 {
            let left = secs / computed as f64 * (n - n_done) as f64;
            let left = if left < 90.0 { format!("{left:.0} s") } else { format!("{:.0} min", left / 60.0) };
            text.push_str(", about ");
            text.push_str(&left);
            text.push_str(" left");
        }
        text
    }
}

impl Asked {
    fn describe(&self, run: &CompareRun<'_>) -> String {
        format!("{} at {:.4} %, seed {}", self.method, 100.0 * self.sparsity, run.draws[self.draw].seed)
            .replace(".0000 %", " %")
    }

    /// Whether plans are tried on samples held out: by methods as `compress` applies them, not by single decisions.
    fn has_choice(&self) -> bool {
        self.part == Part::Grid && self.request.alternatives().len() > 1
    }

    /// The samples on which plans are tried.
    pub(super) fn held_out<'a>(&self, run: &'a CompareRun<'_>) -> Option<&'a Calibration> {
        run.draws[self.draw].held_out.as_ref().filter(|_| self.has_choice())
    }

    fn failed(&self, run: &CompareRun<'_>, source: CompareError) -> CompareError {
        CompareError::Cell { cell: self.describe(run), source: Box::new(source) }
    }

    /// Everything that the cell is computed from.
    fn computed(&self, run: &CompareRun<'_>, common: &Journal) -> Journal {
        let calibration = &run.draws[self.draw].calibration;
        let windows = &calibration.windows;
        let mut computed = common.clone();
        computed.extend([
            ("request".to_owned(), format!("{:?}", self.request)),
            ("calibration tokens".to_owned(), calibration.token_hash.clone()),
            ("samples".to_owned(), format!("{} of {} tokens", windows.n, windows.seq_len)),
            ("compared with the dense model".to_owned(), run.against_dense.to_string()),
        ]);
        if let Some(held_out) = self.held_out(run) {
            computed.insert("held-out tokens".to_owned(), held_out.token_hash.clone());
        }
        if self.request.unit == ErrorUnit::Nats {
            computed.insert("gradient tokens".to_owned(), run.gradient_tokens.to_string());
        }
        computed
    }
}

impl<'a> CompareRun<'a> {
    /// The calibration that all of these cells of a draw share.
    pub(super) fn calibration_run(&'a self, drawn: &'a SeededDraw, cells: &[&Asked]) -> CalibrationRun<'a> {
        let collect = cells.iter().map(|cell| cell.request.collect()).fold(Collect::default(), Collect::or);
        let needs_rows = cells.iter().any(|cell| cell.request.methods.needs_row_fisher());
        let needs_gradients = cells.iter().any(|cell| cell.request.unit == ErrorUnit::Nats);
        CalibrationRun {
            collect,
            gradient_tokens: needs_gradients.then_some(self.gradient_tokens),
            row_fisher: needs_rows.then_some(RowFisher::PerExample),
            batch_tokens: self.batch_tokens,
            max_host_bytes: self.max_host_bytes,
            reporter: self.reporter,
            ..CalibrationRun::new(self.model, &drawn.calibration, self.compute, self.gram_path)
        }
    }

    /// Statistics of a draw: those that a run which was stopped left whole, or new ones.
    async fn statistics(
        &self,
        drawn: &SeededDraw,
        cells: &[&Asked],
        folder: &CompareFolder,
    ) -> Result<(StatisticsFolder, Draw), CompareError> {
        let scratch = scratch(drawn, folder);
        let (target, note) = (scratch.join("statistics"), scratch.join("passes.json"));
        let timed = TimedReporter::new(self.reporter, self.clock);
        let run = CalibrationRun { reporter: &timed, ..self.calibration_run(drawn, cells) };
        let journal = run.journal();
        let kept = std::fs::read(&note).ok().and_then(|bytes| serde_json::from_slice::<Passes>(&bytes).ok());
        if let Some(passes) = kept.filter(|passes| passes.run == journal)
            && target.is_dir()
        {
            return Ok((StatisticsFolder::new(target), passes.draw));
        }
        remove(&scratch)?;
        let io = |reason| CompareError::Io { path: scratch.clone(), reason };
        std::fs::create_dir_all(&scratch).map_err(io)?;
        let begin = (self.clock)();
        calibrate(&run, &target, Existing::Refuse).await?;
        let backward = run.gradient_tokens.map(|_| timed.backward.get());
        let draw = Draw {
            seed: drawn.seed,
            token_hash: drawn.calibration.token_hash.clone(),
            forward_secs: (self.clock)() - begin - backward.unwrap_or(0.0),
            backward_secs: backward,
        };
        let passes = Passes { run: journal, draw };
        let text = serde_json::to_vec(&passes).expect("a note has only string keys");
        std::fs::write(&note, text).map_err(io)?;
        Ok((StatisticsFolder::new(target), passes.draw))
    }
}

/// Where statistics of a draw are kept while its cells are computed.
pub(super) fn scratch(drawn: &SeededDraw, folder: &CompareFolder) -> PathBuf {
    folder.work().join(format!("seed-{}", drawn.seed))
}

/// Passes everything on, and adds up how long stages of the backward pass take.
struct TimedReporter<'a> {
    inner: &'a dyn Reporter,
    clock: &'a dyn Fn() -> f64,
    begun: Slot<Option<f64>>,
    backward: Slot<f64>,
}

impl<'a> TimedReporter<'a> {
    fn new(inner: &'a dyn Reporter, clock: &'a dyn Fn() -> f64) -> Self {
        Self { inner, clock, begun: Slot::new(None), backward: Slot::new(0.0) }
    }
}

impl Reporter for TimedReporter<'_> {
    fn begin(&self, stage: &str, total: u64) {
        self.begun.set(stage.starts_with("gradients").then(|| (self.clock)()));
        self.inner.begin(stage, total);
    }

    fn advance(&self, done: u64) {
        self.inner.advance(done);
    }

    fn end(&self) {
        if let Some(begun) = self.begun.take() {
            self.backward.set(self.backward.get() + (self.clock)() - begun);
        }
        self.inner.end();
    }

    fn note(&self, remark: &str) {
        self.inner.note(remark);
    }
}

/// Refuses what is missing or said twice.
fn check(run: &CompareRun<'_>) -> Result<(), CompareError> {
    let grid = |text: String| Err(CompareError::Grid(text));
    for (what, n) in [
        ("methods", run.methods.len()),
        ("sparsities", run.sparsities.len()),
        ("seeds", run.draws.len()),
        ("texts", run.texts.len()),
    ] {
        if n == 0 {
            return grid(format!("there is nothing to compare: no {what}"));
        }
    }
    if let Some(name) = twice(run.methods, |a, b| a.name() == b.name()) {
        return grid(format!("method `{}` is named twice", name.name()));
    }
    #[expect(clippy::float_cmp, reason = "equal is what was written equal")]
    if let Some(sparsity) = twice(run.sparsities, |a, b| a == b) {
        return grid(format!("sparsity {sparsity} is named twice"));
    }
    if let Some(draw) = twice(run.draws, |a, b| a.seed == b.seed) {
        return grid(format!("seed {} is named twice", draw.seed));
    }
    if let Some(text) = twice(run.texts, |a, b| a.name == b.name) {
        return grid(format!("two texts are called `{}`", text.name));
    }
    Ok(())
}

/// The first that was there before.
fn twice<T>(all: &[T], same: impl Fn(&T, &T) -> bool) -> Option<&T> {
    all.iter().enumerate().find(|(index, one)| all[..*index].iter().any(|before| same(before, one))).map(|(_, one)| one)
}

/// The sparsity closest to `wanted`.
fn nearest(sparsities: &[f64], wanted: f64) -> Option<f64> {
    sparsities.iter().copied().min_by(|a, b| (a - wanted).abs().total_cmp(&(b - wanted).abs()))
}
