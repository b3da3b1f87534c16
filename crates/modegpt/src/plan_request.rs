//! What is asked of a plan, and how it becomes one.

use std::fmt;

use modegpt_architecture::{DType, ModelConfig, NormPlacement};
use modegpt_calibration::Collect;
use modegpt_compress::{
    Allocation, Error, ErrorUnit, LayerCurves, Methods, Mode, ModelSize, Plan, PlanOptions, QueryKeyMethod, Ridges,
    Rounding, Target, WidthGrid, Widths,
};
use serde::Deserialize;

use crate::{Calibration, Model};

/// How sparsity is to be spread over layers.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllocationChoice {
    /// By block influence, as sharp as the paper's.
    Paper,
    /// By block influence with this temperature.
    Epsilon(f64),
    /// The same everywhere.
    Uniform,
    /// Where it costs least, by the error curves of all layers and modules.
    ErrorCurves,
}

/// One line, for people.
impl fmt::Display for AllocationChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paper => f.write_str("by block influence, as sharp as the paper's"),
            Self::Epsilon(epsilon) => write!(f, "by block influence, temperature {epsilon}"),
            Self::Uniform => f.write_str("evenly"),
            Self::ErrorCurves => f.write_str("by error curves"),
        }
    }
}

/// How a plan is to be made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanRequest {
    /// How small the model shall become.
    pub target: Target,
    /// The set of methods, by its name.
    pub mode: Mode,
    /// The methods.
    pub methods: Methods,
    /// What errors are weighed with: gradients of the loss, if in nats.
    pub unit: ErrorUnit,
    /// How sparsity is spread.
    pub allocation: AllocationChoice,
    /// Multiples that widths are rounded to; those for the model's size if `None`.
    pub rounding: Option<Rounding>,
    /// Ridges of the decompositions.
    pub ridges: Ridges,
}

impl PlanRequest {
    /// What `mode` does if nothing else is asked for.
    pub fn new(target: Target, mode: Mode) -> Self {
        let allocation = match mode {
            Mode::Paper => AllocationChoice::Paper,
            Mode::Best => AllocationChoice::ErrorCurves,
        };
        let (methods, unit) = (mode.methods(), ErrorUnit::ResidualEnergy);
        Self { target, mode, methods, unit, allocation, rounding: None, ridges: Ridges::default() }
    }

    /// What calibration has to collect for it.
    pub fn collect(&self) -> Collect {
        let needs_logits = self.methods.query_key == QueryKeyMethod::Refit;
        Collect { logits: needs_logits || self.allocation == AllocationChoice::ErrorCurves, inputs: false }
    }

    /// Whether anything is decided by errors, so that it matters what they are weighed with.
    pub fn weighs_errors(&self) -> bool {
        self.allocation == AllocationChoice::ErrorCurves || self.methods.weigh_errors()
    }

    /// This request, and others that may serve the same wish better: errors weighed without gradients, which tell of small
    /// errors only.
    pub fn alternatives(&self) -> Vec<Self> {
        let without = Self { unit: ErrorUnit::ResidualEnergy, ..*self };
        if self.unit == ErrorUnit::Nats { vec![*self, without] } else { vec![*self] }
    }

    /// The widths that errors of a layer are asked for.
    pub(crate) fn width_grid(&self, config: &ModelConfig, layer: usize) -> WidthGrid {
        let rounding = self.rounding.unwrap_or_else(|| Rounding::default_for(config));
        WidthGrid::new(Widths::from(&config.layers[layer]), config.is_rotary(), rounding, Allocation::DEFAULT_CAP)
    }
}

/// Calibration tokens for each hidden unit of the widest MLP from which [`prefix_pays`].
///
/// A down map has a row of unknowns for each hidden unit. On SmolLM2-135M with 21 tokens a unit the refit gained nothing, on
/// opt-tiny-stories with 170 it does; the power of two about half way is a choice, not a measurement.
const PREFIX_TOKENS_PER_UNIT: usize = 64;

/// Whether a refit on the compressed prefix is possible and may be expected to gain: the model must normalise what enters a
/// module, so that the residual stream is a plain sum, and the samples must be many.
pub fn prefix_pays(config: &ModelConfig, calibration: &Calibration) -> bool {
    let widest = config.layers.iter().map(|shape| shape.d_ff).max().unwrap_or(0);
    config.norm_placement == NormPlacement::Pre && calibration.windows.ids.len() >= PREFIX_TOKENS_PER_UNIT * widest
}

/// Makes a plan for `model` from its layers' block influences and, where allocation asks for them, their error curves.
///
/// # Errors
/// [`Error`] if the target cannot be reached, or curves are missing.
pub(crate) fn make_plan(
    model: &Model,
    influences: &[f64],
    curves: Option<Vec<LayerCurves>>,
    request: &PlanRequest,
    dtype: DType,
) -> Result<Plan, Error> {
    let config = model.config();
    let sparsity = request.target.sparsity(&model_size(model, dtype))?;
    let allocation = match request.allocation {
        AllocationChoice::Paper => Allocation::by_block_influence(config, influences)?,
        AllocationChoice::Epsilon(epsilon) => Allocation::BlockInfluence { epsilon, cap: Allocation::DEFAULT_CAP },
        AllocationChoice::Uniform => Allocation::Uniform {},
        AllocationChoice::ErrorCurves => Allocation::ErrorCurves { cap: Allocation::DEFAULT_CAP },
    };
    let &PlanRequest { mode, methods, unit, rounding, ridges, .. } = request;
    let rounding = rounding.unwrap_or_else(|| Rounding::default_for(config));
    let options = PlanOptions { sparsity, mode, methods, unit, allocation, rounding, ridges };
    Plan::new(config, model.fingerprint(), influences, curves, &options)
}

fn model_size(model: &Model, dtype: DType) -> ModelSize {
    let block_params = model.config().block_params() as u64;
    let other_params = model.params() - block_params;
    let bytes_per_param = dtype.size() as u64;
    ModelSize { block_params, other_params, bytes_per_param, other_bytes: other_params * bytes_per_param }
}
