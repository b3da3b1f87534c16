//! What is asked of a plan, and how it becomes one.

use std::fmt;

use modegpt_architecture::{DType, ModelConfig, NormPlacement};
use modegpt_calibration::Collect;
use modegpt_compress::{
    Allocation, Curves, Error, ErrorUnit, Layer, LayerSurvey, MapCurves, MapMetric, Methods, Mode, ModelSize, Orders,
    Plan, PlanOptions, PrefixRefit, QueryKeyMethod, Ridges, Rounding, Target, WidthGrid, Widths, survey_layer,
    survey_maps,
};
use serde::{Deserialize, Serialize};

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
            Mode::Svd | Mode::Fwsvd | Mode::Asvd | Mode::SvdLlm | Mode::Sliced => AllocationChoice::Uniform,
        };
        let methods = mode.methods();
        let unit = methods.maps.map_or(ErrorUnit::ResidualEnergy, MapMetric::unit);
        Self { target, mode, methods, unit, allocation, rounding: None, ridges: Ridges::default() }
    }

    /// What calibration has to collect for it.
    pub fn collect(&self) -> Collect {
        let of_modules = self.methods.maps.is_none() && self.allocation == AllocationChoice::ErrorCurves;
        let logits = of_modules || self.methods.query_key == QueryKeyMethod::Refit;
        let (inputs, magnitudes) = (self.methods.needs_inputs(), self.methods.needs_magnitudes());
        Collect { logits, inputs, magnitudes }
    }

    /// Whether anything is decided by errors that could be weighed with gradients or without.
    pub fn weighs_errors(&self) -> bool {
        if self.methods.maps.is_some() {
            return self.methods.weigh_errors();
        }
        self.allocation == AllocationChoice::ErrorCurves || self.methods.weigh_errors()
    }

    /// What mode best refits on the compressed prefix if nothing is said, the other modes nothing: all last maps. The model
    /// must normalise what enters a module, so that the residual stream is a plain sum, and the samples must be many: 16 tokens
    /// for each hidden unit of the widest MLP. With fewer the ridge ([`Ridges::prefix`]) leaves less to gain for the same work.
    pub fn usual_prefix(&self, config: &ModelConfig, calibration: &Calibration) -> PrefixRefit {
        let widest = config.layers.iter().map(|shape| shape.d_ff).max().unwrap_or(0);
        let is_possible = self.mode == Mode::Best && config.norm_placement == NormPlacement::Pre;
        let is_many = calibration.windows.ids.len() >= Ridges::TOKENS_PER_UNKNOWN * widest;
        if is_possible && is_many { PrefixRefit::All } else { PrefixRefit::None }
    }

    pub(crate) fn rounding(&self, config: &ModelConfig) -> Rounding {
        self.rounding.unwrap_or_else(|| Rounding::default_for(config))
    }

    /// What a layer loses at every size that it can take, and in which order things go.
    ///
    /// # Errors
    /// Those of [`survey_layer`] and [`survey_maps`].
    pub(crate) fn survey(&self, layer: &Layer<'_>) -> Result<Survey, Error> {
        if let Some(metric) = self.methods.maps {
            let multiple = self.rounding(layer.config).rank;
            return survey_maps(layer, multiple, Allocation::DEFAULT_CAP, metric).map(Survey::Maps);
        }
        let grid = self.width_grid(layer.config, layer.index);
        survey_layer(layer, &grid, self.methods, self.ridges).map(Survey::Modules)
    }

    /// Curves that are zero everywhere: enough to find out which sizes can be reached.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn free_curves(&self, config: &ModelConfig) -> Curves {
        use modegpt_architecture::MapShape;
        use modegpt_compress::{RankCurve, rank_grid};

        if self.methods.maps.is_none() {
            let free = |layer| self.width_grid(config, layer).free(self.unit);
            return Curves::Modules((0..config.layers.len()).map(free).collect());
        }
        let multiple = self.rounding(config).rank;
        let free = |map: MapShape| {
            let ranks = rank_grid(&map, multiple, Allocation::DEFAULT_CAP);
            (!ranks.is_empty()).then(|| (map.name, RankCurve { errors: vec![0.0; ranks.len()], ranks }))
        };
        Curves::Maps(config.layers.iter().map(|shape| config.map_shapes(shape).filter_map(free).collect()).collect())
    }

    /// This request, and others that may serve the same wish better: errors weighed without gradients, which tell of small
    /// errors only.
    pub fn alternatives(&self) -> Vec<Self> {
        if self.methods.maps.is_some() {
            return vec![*self];
        }
        let without = Self { unit: ErrorUnit::ResidualEnergy, ..*self };
        if self.unit == ErrorUnit::Nats { vec![*self, without] } else { vec![*self] }
    }

    /// The requests whose plans are made: with samples to try them on, also the [alternatives](Self::alternatives).
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn tried(&self, has_held_out: bool) -> Vec<Self> {
        if has_held_out { self.alternatives() } else { vec![*self] }
    }

    /// The widths that errors of a layer are asked for.
    fn width_grid(&self, config: &ModelConfig, layer: usize) -> WidthGrid {
        let rounding = self.rounding(config);
        WidthGrid::new(Widths::from(&config.layers[layer]), config.is_rotary(), rounding, Allocation::DEFAULT_CAP)
    }
}

/// What one layer offers.
#[derive(Serialize, Deserialize)]
pub(crate) enum Survey {
    Modules(LayerSurvey),
    Maps(MapCurves),
}

impl Survey {
    /// What all layers offer, and the orders in which things go in each; no orders where there are none.
    pub(crate) fn join(surveys: Vec<Self>) -> (Curves, Vec<Orders>) {
        let (mut of_modules, mut of_maps, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        for survey in surveys {
            match survey {
                Self::Maps(curves) => of_maps.push(curves),
                Self::Modules(survey) => {
                    of_modules.push(survey.curves);
                    orders.push(survey.orders);
                }
            }
        }
        let curves = if of_maps.is_empty() { Curves::Modules(of_modules) } else { Curves::Maps(of_maps) };
        (curves, orders)
    }
}

/// Makes a plan for `model` from its layers' block influences and, where allocation asks for them, their error curves.
///
/// # Errors
/// [`Error`] if the target cannot be reached, or curves are missing.
pub(crate) fn make_plan(
    model: &Model,
    influences: &[f64],
    curves: Option<Curves>,
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
    let &PlanRequest { mode, methods, unit, ridges, .. } = request;
    let rounding = request.rounding(config);
    let options = PlanOptions { sparsity, mode, methods, unit, allocation, rounding, ridges };
    Plan::new(config, model.fingerprint(), influences, curves, &options)
}

fn model_size(model: &Model, dtype: DType) -> ModelSize {
    let block_params = model.config().block_params() as u64;
    let other_params = model.params() - block_params;
    let bytes_per_param = dtype.size() as u64;
    ModelSize { block_params, other_params, bytes_per_param, other_bytes: other_params * bytes_per_param }
}
