//! From statistics to the plan that is applied. Where there is more than one way to weigh errors, each plan is tried on text
//! that neither calibration nor a backward pass has seen, and the one that loses least is taken.

use modegpt_architecture::{DType, ModelConfig};
use modegpt_compress::{CompressedLayer, ErrorUnit, Orders, Plan, TriedPlan, compress_layer};
use modegpt_evaluation::{Window, score_end};
use modegpt_model::{Block, ResidualStream};
use serde::{Deserialize, Serialize};

use super::calibrate::at_layer;
use super::kept_stream::carry;
use super::notes::{read_note, write_note};
use super::survey::{Known, SurveyFolder};
use super::{CalibrationRun, CompressionOptions, GradientsFolder, RunError, StatisticsFolder};
use crate::{AllocationChoice, Calibration, PlanRequest, plan_request::make_plan};
use modegpt_checkpoint::OutputFolder;

/// A plan, and in which order things go in each layer as far as that was found out while planning.
pub(super) struct Decision {
    pub(super) plan: Plan,
    pub(super) orders: Vec<Orders>,
}

/// What was found by trying plans, noted so that a resumed run need not try again.
#[derive(Serialize, Deserialize)]
struct Losses(Vec<f64>);

/// Makes the plan of `request`; with samples held out also those of its alternatives, of which the best on them is taken.
///
/// # Errors
/// [`RunError`] with the layer, or if the request cannot be met.
pub(super) async fn decide(
    run: &CalibrationRun<'_>,
    statistics: &StatisticsFolder,
    request: &PlanRequest,
    options: &CompressionOptions,
    dtype: DType,
    folder: &OutputFolder,
) -> Result<Decision, RunError> {
    let model = run.model;
    let held_out = options.held_out.as_ref();
    let surveys = options.surveys.clone().unwrap_or_else(|| SurveyFolder::new(folder.path().join(SURVEYS)));
    let (influences, _) = statistics.influences(model.config().layers.len(), model.fingerprint())?;
    let gradients = GradientsFolder::new(statistics.path());
    let known = |unit: ErrorUnit| {
        let gradients = Some(&gradients).filter(|_| unit == ErrorUnit::Nats);
        Known { model, statistics, gradients }
    };
    let requests = request.tried(held_out.is_some());
    let mut decisions = Vec::with_capacity(requests.len());
    for request in &requests {
        let (curves, orders) = match request.allocation {
            AllocationChoice::ErrorCurves => {
                let (curves, orders) = known(request.unit).survey(request, Some(&surveys), run.reporter)?;
                (Some(curves), orders)
            }
            _ => (None, Vec::new()),
        };
        let plan = make_plan(model, &influences, curves, request, dtype)?;
        decisions.push(Decision { plan, orders });
    }
    let (Some(held_out), 2..) = (held_out, decisions.len()) else { return Ok(decisions.swap_remove(0)) };

    let losses = if let Some(Losses(losses)) = read_note(folder, TRIED).filter(|Losses(l)| l.len() == decisions.len()) {
        losses
    } else {
        let mut losses = Vec::with_capacity(decisions.len());
        for decision in &decisions {
            losses.push(known(decision.plan.unit).loss(run, decision, held_out).await?);
        }
        write_note(folder, TRIED, &Losses(losses.clone()))?;
        losses
    };
    let tried = decisions.iter().zip(&losses);
    let tried: Vec<_> = tried.map(|(d, &held_out_loss)| TriedPlan { unit: d.plan.unit, held_out_loss }).collect();
    // The first of equals, which is what was asked for.
    let best = (0..losses.len()).fold(0, |best, at| if losses[at] < losses[best] { at } else { best });
    let mut chosen = decisions.swap_remove(best);
    let told: Vec<String> = tried.iter().map(|t| format!("{:.4} with errors in {}", t.held_out_loss, t.unit)).collect();
    run.reporter.note(&format!("held-out loss {}: errors in {}", told.join(", "), chosen.plan.unit));
    chosen.plan.tried = tried;
    Ok(chosen)
}

const SURVEYS: &str = "surveys";
const TRIED: &str = "surveys/tried.json";

impl Known<'_> {
    /// Mean loss of a token of `held_out` under the model that a plan makes, in nats. A refit on the compressed prefix, which
    /// comes on top of any plan, is left out. One layer is in memory at a time, beside the stream of the held-out samples.
    ///
    /// # Errors
    /// [`RunError`] with the layer.
    async fn loss(
        &self,
        run: &CalibrationRun<'_>,
        decision: &Decision,
        held_out: &Calibration,
    ) -> Result<f64, RunError> {
        let (config, weights) = (self.model.config(), &self.model.checkpoint);
        let Decision { plan, orders } = decision;
        let windows = &held_out.windows;
        let batch = (run.batch_tokens / windows.seq_len).clamp(1, windows.n);
        let mut stream = ResidualStream::in_memory(windows.n, windows.seq_len, config.d_model, batch);
        stream.embed(weights, &windows.ids, run.compute).await?;
        run.reporter.begin("try", plan.layers.len() as u64);
        for (index, layer_plan) in plan.layers.iter().enumerate() {
            let nothing = Orders::default();
            let orders = orders.get(index).unwrap_or(&nothing);
            let CompressedLayer { weights, shape, .. } = self
                .with_layer(index, |layer| Ok(compress_layer(layer, layer_plan, plan.methods, plan.ridges, orders)?))?;
            let small = ModelConfig { layers: vec![shape.clone()], ..config.clone() };
            let block = Block::new(weights, &shape, &small, run.compute);
            carry(run.compute, |_, x| Ok(block.forward(x)), &mut stream)
                .await
                .map_err(|source| at_layer(index, source))?;
            run.compute.release();
            run.reporter.advance(index as u64 + 1);
        }
        run.reporter.end();
        let scored: Vec<_> = windows.iter().map(|ids| Window { ids, first_target: 1 }).collect();
        Ok(score_end(weights, &stream, &scored, run.compute).await?.mean())
    }
}
