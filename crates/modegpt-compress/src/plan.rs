//! The plan: every decision about the size of the compressed model, as data.
//!
//! A plan is made first, can be read and edited by hand, and is then applied. Its text is JSON. The totals in it are for
//! the reader; they are computed anew when a plan is read, so that editing a width needs no arithmetic.

use std::fmt;

use modegpt_architecture::{FactorRanks, ModelConfig};
use serde::{Deserialize, Serialize};

use crate::{
    Error, ErrorUnit, LayerCurves, MapCurves, MapMetric, Methods, ModelSummary, Rounding, Widths,
    allocation::{capped_softmax, check_sparsity, epsilon_for_largest, uniform},
    check_dense,
    curves::{allocate, predicted},
    model_summary::field_error,
    ranks::{allocate_ranks, predicted_at_ranks, round_ranks},
    rounding::round_widths,
};

/// Which set of methods applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The three methods of the paper: Nyström with ridge leverage scores, CR, whitened SVD.
    Paper,
    /// Same statistics, better decisions.
    Best,
    /// Every map by itself, truncated by its singular values.
    Svd,
    /// Every map by itself, its rows weighed with their Fisher information.
    Fwsvd,
    /// Every map by itself, its rows scaled by the size of its inputs.
    Asvd,
    /// Every map by itself, in the metric of what it puts out.
    SvdLlm,
    /// Whole channels by the size of their weights and inputs, without any refit.
    Sliced,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 7] =
        [Self::Paper, Self::Best, Self::Svd, Self::Fwsvd, Self::Asvd, Self::SvdLlm, Self::Sliced];

    /// The methods of this mode.
    pub fn methods(self) -> Methods {
        match self {
            Self::Paper => Methods::PAPER,
            Self::Best => Methods::BEST,
            Self::Svd => Methods::of_maps(MapMetric::Svd {}),
            Self::Fwsvd => Methods::of_maps(MapMetric::Fwsvd {}),
            Self::Asvd => Methods::of_maps(MapMetric::Asvd { alpha: MapMetric::ASVD_ALPHA }),
            Self::SvdLlm => Methods::of_maps(MapMetric::SvdLlm {}),
            Self::Sliced => Methods::WANDA,
        }
    }
}

/// How sparsity is spread over the layers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Allocation {
    /// Layers that change the residual stream little give more; see [`capped_softmax`].
    BlockInfluence {
        /// Temperature, in units of block influence.
        epsilon: f64,
        /// Largest sparsity of a layer.
        cap: f64,
    },
    /// Every layer gives the same share.
    Uniform {},
    /// Every layer and module gives where it costs least, by the error curves that they offer.
    ErrorCurves {
        /// Largest share of a width that may go.
        cap: f64,
    },
}

/// One line, for people.
impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockInfluence { .. } => f.write_str("by block influence"),
            Self::Uniform {} => f.write_str("evenly"),
            Self::ErrorCurves { .. } => f.write_str("by error curves"),
        }
    }
}

impl Allocation {
    /// Largest sparsity of a layer if nothing else is asked for.
    pub const DEFAULT_CAP: f64 = 0.9;

    /// By block influence, with the temperature at which one layer would reach 80 % at a mean of 30 %.
    ///
    /// That is how sharp the paper's allocation is: in its Llama-2-7B run at 30 % one layer reaches 82 %.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if influences are not finite or not one for each layer.
    pub fn by_block_influence(config: &ModelConfig, influences: &[f64]) -> Result<Self, Error> {
        let epsilon = epsilon_for_largest(influences, &layer_params(&ModelSummary::of(config)), 0.30, 0.80)?;
        Ok(Self::BlockInfluence { epsilon, cap: Self::DEFAULT_CAP })
    }

    fn check(self) -> Result<(), Error> {
        let cap = match self {
            Self::Uniform {} => return Ok(()),
            Self::ErrorCurves { cap } => cap,
            Self::BlockInfluence { epsilon, cap } => {
                if !(epsilon.is_finite() && epsilon > 0.0) {
                    return Err(field_error("allocation.epsilon", "a positive number", epsilon));
                }
                cap
            }
        };
        if !(cap > 0.0 && cap < 1.0) {
            return Err(field_error("allocation.cap", "a number in (0, 1)", cap));
        }
        Ok(())
    }
}

/// Multiples of the mean diagonal that are added to a Gram matrix before it is factorised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ridges {
    /// In the ridge leverage scores that select hidden units. Perplexity hardly depends on it between 1e-6 and 1e-1.
    pub leverage: f64,
    /// In the costs by which hidden units are eliminated: it makes large changes of the weights dear. With few tokens products
    /// of different units count less besides: with `n` tokens and `d` units `1 / (1 + max(0, d/n − 1/16))` times.
    pub elimination: f64,
    /// In the least squares that refit the down map and the output maps of heads. With few tokens more: see
    /// [`Ridges::refit_of`].
    pub refit: f64,
    /// In the least squares that refit the gains of rotary pairs.
    pub gains: f64,
    /// In the least squares that refit maps on the compressed prefix: for how many tokens for each of its inputs the map
    /// that is there counts. With `n` tokens and `k` units `prefix · k / n` times the mean diagonal is added; texts of one
    /// token, which are carried along, raise the diagonal by an eighth and are not among the `n`.
    pub prefix: f64,
}

impl Default for Ridges {
    fn default() -> Self {
        Self { leverage: 1e-3, elimination: 1e-4, refit: 1e-8, gains: 1e-6, prefix: 8.0 }
    }
}

impl Ridges {
    /// Tokens for each unknown from which on least squares learn from them alone.
    pub const TOKENS_PER_UNKNOWN: usize = 16;
    /// For how many tokens for each unknown the weights that are there count with hardly any.
    const HELD: f64 = 4.0;

    /// The ridge of least squares with `n_unknowns`, of the Gram matrix of `n_tokens`.
    ///
    /// With as many tokens as unknowns the tokens can be met exactly, by weights that no other token bears out: of
    /// SmolLM2-135M, 1088 units kept by the paper's recipe, 1024 tokens leave a perplexity beyond a million then, and 78 with
    /// what is added here:
    ///
    /// ```text
    /// 4 max(0, k/n − 1/16)
    /// ```
    ///
    /// 4096 tokens leave 65 instead of 93, 8192 tokens 60 instead of 67.
    pub fn refit_of(&self, n_unknowns: usize, n_tokens: u64) -> f64 {
        self.refit + Self::HELD * Self::shortage(n_unknowns, n_tokens)
    }

    /// How far tokens fall short of those from which so many unknowns can be learned: `max(0, k/n − 1/16)`.
    pub(crate) fn shortage(n_unknowns: usize, n_tokens: u64) -> f64 {
        let share = n_unknowns as f64 / n_tokens.max(1) as f64;
        (share - (Self::TOKENS_PER_UNKNOWN as f64).recip()).max(0.0)
    }

    fn check(self) -> Result<(), Error> {
        let ridges = [
            ("leverage", self.leverage),
            ("elimination", self.elimination),
            ("refit", self.refit),
            ("gains", self.gains),
            ("prefix", self.prefix),
        ];
        for (field, ridge) in ridges {
            if !(ridge.is_finite() && ridge >= 0.0) {
                return Err(field_error(format!("ridges.{field}"), "a finite number of at least 0", ridge));
            }
        }
        Ok(())
    }
}

/// What becomes of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerPlan {
    /// Index of the layer, from 0.
    pub index: usize,
    /// `1 - mean cos` between input and output of the block, as measured.
    pub block_influence: f64,
    /// Share of the linear weights that allocation asked to remove, before rounding. Only the widths have an effect.
    pub sparsity: f64,
    /// Hidden units that stay.
    pub d_ff: usize,
    /// Width of queries and keys that stays, per head.
    pub d_qk: usize,
    /// Width of values that stays, per head.
    pub d_v: usize,
    /// The rank of every map that becomes a product; the others stay dense.
    #[serde(default, skip_serializing_if = "FactorRanks::is_dense")]
    pub ranks: FactorRanks,
    /// What the layer would lose at every width, if that was asked. For the reader: it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curves: Option<LayerCurves>,
    /// What every map would lose at every rank, if that was asked. For the reader: it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map_curves: Option<MapCurves>,
}

/// What all layers offer.
#[derive(Clone, Debug, PartialEq)]
pub enum Curves {
    /// Each module its widths.
    Modules(Vec<LayerCurves>),
    /// Each map its ranks.
    Maps(Vec<MapCurves>),
}

impl LayerPlan {
    /// The three widths.
    pub fn widths(&self) -> Widths {
        Widths { d_ff: self.d_ff, d_qk: self.d_qk, d_v: self.d_v }
    }
}

/// Sums over the decoder blocks. Only linear weights count, neither biases nor norms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Linear weights before.
    pub block_params_before: u64,
    /// Linear weights after.
    pub block_params_after: u64,
    /// Share that is removed.
    pub sparsity: f64,
}

impl Totals {
    pub(crate) fn new(block_params_before: u64, block_params_after: u64) -> Self {
        let removed = block_params_before as f64 - block_params_after as f64;
        Self { block_params_before, block_params_after, sparsity: removed / block_params_before as f64 }
    }
}

/// What a plan is made from, beside the model and its block influences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanOptions {
    /// Share of the linear weights of the decoder blocks to remove, in `[0, 1)`.
    pub sparsity: f64,
    /// Which methods apply, by their common name.
    pub mode: Mode,
    /// Which methods apply.
    pub methods: Methods,
    /// What errors are weighed with: gradients of the loss, if in nats.
    pub unit: ErrorUnit,
    /// How it is spread over layers.
    pub allocation: Allocation,
    /// Multiples that widths are rounded to.
    pub rounding: Rounding,
    /// Ridges of the decompositions.
    pub ridges: Ridges,
}

/// A plan that was tried before one was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriedPlan {
    /// What it weighs errors in.
    pub unit: ErrorUnit,
    /// Mean loss of a token of held-out text, in nats.
    pub held_out_loss: f64,
}

/// Every decision about a compression, before any of it is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of the format, [`Plan::VERSION`].
    pub version: u32,
    /// The set of methods asked for.
    pub mode: Mode,
    /// The methods that apply: those of the mode, unless one was asked for by itself.
    pub methods: Methods,
    /// What errors are weighed with: gradients of the loss, if in nats. Then they are needed to apply the plan.
    pub unit: ErrorUnit,
    /// Sparsity as asked for.
    pub target: f64,
    /// How it was spread over the layers.
    pub allocation: Allocation,
    /// Ridges of the decompositions.
    pub ridges: Ridges,
    /// Multiples that widths were rounded to. Widths edited by hand need not be such multiples.
    pub rounding: Rounding,
    /// Fingerprint of the weights that the plan is for.
    pub model_fingerprint: String,
    /// Sizes of the model that the plan is for.
    pub model: ModelSummary,
    /// What the widths below amount to.
    pub totals: Totals,
    /// The plans of which this is the one that lost least, if several were tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<TriedPlan>,
    /// One entry for each layer, in order.
    pub layers: Vec<LayerPlan>,
}

impl Plan {
    /// The version that this crate writes and reads.
    pub const VERSION: u32 = 2;

    /// Plans the compression of a model: allocates sparsity and rounds widths. Equal arguments give equal plans.
    ///
    /// - `fingerprint`: of the model's weights, stored so that the plan is not applied to others
    /// - `influences`: block influence of each layer
    /// - `curves`: what each layer offers; needed by [`Allocation::ErrorCurves`], otherwise merely kept for the reader
    ///
    /// # Errors
    /// [`Error::OutOfRange`] or [`Error::Unreachable`] if the options or influences cannot be met, as
    /// [`capped_softmax`], [`round_widths`] and [`round_ranks`] say; [`Error::PlanField`] if the model itself is out of range or a curve
    /// is not one of its layers, [`Error::Factorised`] if a map of it is a product.
    pub fn new(
        config: &ModelConfig,
        fingerprint: &str,
        influences: &[f64],
        curves: Option<Curves>,
        options: &PlanOptions,
    ) -> Result<Self, Error> {
        check_dense(config)?;
        let &PlanOptions { sparsity, mode, methods, unit, allocation, rounding, ridges } = options;
        let model = ModelSummary::of(config);
        if influences.len() != model.n_layers {
            return Err(Error::out_of_range("influences", format!("{} of them", model.n_layers), influences.len()));
        }
        let (of_modules, of_maps) = match curves {
            Some(Curves::Modules(curves)) => (Some(curves), None),
            Some(Curves::Maps(curves)) => (None, Some(curves)),
            None => (None, None),
        };
        let (sparsities, sizes) = match methods.maps {
            None => spread(config, &model, influences, of_modules.as_deref(), options)?,
            Some(_) => spread_ranks(config, &model, influences, of_maps.as_deref(), options)?,
        };
        let (mut of_modules, mut of_maps) = (of_modules.map(Vec::into_iter), of_maps.map(Vec::into_iter));
        let layers = sizes.into_iter().zip(sparsities).zip(influences).enumerate();
        let layers = layers.map(|(index, (((widths, ranks), sparsity), &block_influence))| {
            let Widths { d_ff, d_qk, d_v } = widths;
            let curves = of_modules.as_mut().and_then(Iterator::next);
            let map_curves = of_maps.as_mut().and_then(Iterator::next);
            LayerPlan { index, block_influence, sparsity, d_ff, d_qk, d_v, ranks, curves, map_curves }
        });
        let mut plan = Self {
            version: Self::VERSION,
            mode,
            methods,
            unit,
            target: sparsity,
            allocation,
            ridges,
            rounding,
            model_fingerprint: fingerprint.to_owned(),
            layers: layers.collect(),
            totals: Totals::new(1, 1),
            tried: Vec::new(),
            model,
        };
        plan.check()?;
        plan.totals = plan.computed_totals();
        Ok(plan)
    }

    /// The sum over layers and modules, or maps, of the errors that the curves give at the planned sizes; `None` without
    /// curves, or where a size edited by hand is not on them.
    pub fn predicted_error(&self) -> Option<f64> {
        if self.methods.maps.is_some() {
            let curves: Vec<MapCurves> =
                self.layers.iter().map(|layer| layer.map_curves.clone()).collect::<Option<_>>()?;
            let ranks: Vec<FactorRanks> = self.layers.iter().map(|layer| layer.ranks).collect();
            return Some(predicted_at_ranks(&curves, &ranks)).filter(|error| error.is_finite());
        }
        let curves: Vec<LayerCurves> = self.layers.iter().map(|layer| layer.curves.clone()).collect::<Option<_>>()?;
        let widths: Vec<Widths> = self.layers.iter().map(LayerPlan::widths).collect();
        Some(predicted(&curves, &widths)).filter(|error| error.is_finite())
    }

    /// Reads a plan. Totals are computed from the widths, whatever the text says.
    ///
    /// # Errors
    /// [`Error::Json`] if the text is not a plan or has unknown fields, [`Error::PlanVersion`] if it is of another
    /// version, [`Error::PlanField`] with the path of the first field whose value cannot be used.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        /// Read by itself, so that a plan of a later version is recognised whatever else it holds.
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let VersionOnly { version } = serde_json::from_str(text)?;
        if version != Self::VERSION {
            return Err(Error::PlanVersion { expected: Self::VERSION, found: version });
        }
        let mut plan: Self = serde_json::from_str(text)?;
        plan.check()?;
        plan.totals = plan.computed_totals();
        Ok(plan)
    }

    /// The plan as indented JSON with a final line break.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a plan has only string keys");
        text.push('\n');
        text
    }

    /// Refuses a model that the plan was not made for.
    ///
    /// # Errors
    /// [`Error::OtherModel`], naming the first difference; [`Error::Factorised`] if a map of the model is a product.
    pub fn check_model(&self, config: &ModelConfig, fingerprint: &str) -> Result<(), Error> {
        check_dense(config)?;
        let (ours, theirs) = (&self.model, &ModelSummary::of(config));
        let same = |field: &str, plan: String, model: String| {
            if plan == model { Ok(()) } else { Err(Error::OtherModel { field: field.to_owned(), plan, model }) }
        };
        same("n_layers", ours.n_layers.to_string(), theirs.n_layers.to_string())?;
        same("d_model", ours.d_model.to_string(), theirs.d_model.to_string())?;
        same("n_heads", ours.n_heads.to_string(), theirs.n_heads.to_string())?;
        same("n_kv_heads", ours.n_kv_heads.to_string(), theirs.n_kv_heads.to_string())?;
        same("d_head", ours.d_head.to_string(), theirs.d_head.to_string())?;
        same("rotary", ours.rotary.to_string(), theirs.rotary.to_string())?;
        same("gated_mlp", ours.gated_mlp.to_string(), theirs.gated_mlp.to_string())?;
        for (layer, (ours, theirs)) in ours.widths.iter().zip(&theirs.widths).enumerate() {
            same(&format!("layer {layer}"), ours.to_string(), theirs.to_string())?;
        }
        same("model_fingerprint", self.model_fingerprint.clone(), fingerprint.to_owned())
    }

    pub(crate) fn computed_totals(&self) -> Totals {
        let after = self.layers.iter().map(|layer| self.model.params_at(layer.widths(), &layer.ranks)).sum();
        Totals::new(self.model.block_params(), after)
    }

    fn check(&self) -> Result<(), Error> {
        check_field("target", self.target)?;
        self.allocation.check()?;
        self.ridges.check()?;
        if self.rounding.check().is_err() {
            return Err(field_error("rounding", "multiples of at least 1", self.rounding));
        }
        self.model.check()?;
        self.check_methods()?;
        if self.layers.len() != self.model.n_layers {
            return Err(field_error("layers", format!("{} layers", self.model.n_layers), self.layers.len()));
        }
        for (place, (layer, dense)) in self.layers.iter().zip(&self.model.widths).enumerate() {
            if layer.index != place {
                return Err(field_error(format!("layers[{place}].index"), place, layer.index));
            }
            if !layer.block_influence.is_finite() {
                let field = format!("layers[{place}].block_influence");
                return Err(field_error(field, "a finite number", layer.block_influence));
            }
            check_field(&format!("layers[{place}].sparsity"), layer.sparsity)?;
            self.check_sizes(layer, *dense)?;
        }
        Ok(())
    }

    /// Whether methods, and the unit of their errors, go together.
    fn check_methods(&self) -> Result<(), Error> {
        let Methods { maps, prefix, .. } = self.methods;
        let Some(metric) = maps else {
            return match self.unit {
                ErrorUnit::MapEnergy => Err(field_error("unit", "nats or residual-energy", self.unit)),
                ErrorUnit::Nats | ErrorUnit::ResidualEnergy => Ok(()),
            };
        };
        if prefix.is_any() {
            let expected = "none, since `methods.maps` leaves modules alone";
            return Err(field_error("methods.prefix", expected, prefix));
        }
        if self.unit != metric.unit() {
            return Err(field_error("unit", format!("{}, as `methods.maps` weighs errors", metric.unit()), self.unit));
        }
        match metric {
            MapMetric::Asvd { alpha } if !(alpha.is_finite() && alpha >= 0.0) => {
                Err(field_error("methods.maps.alpha", "a finite number of at least 0", alpha))
            }
            _ => Ok(()),
        }
    }

    /// Whether a layer has widths or ranks that it can have, `dense` being the present widths.
    fn check_sizes(&self, layer: &LayerPlan, dense: Widths) -> Result<(), Error> {
        let place = format!("layers[{}]", layer.index);
        self.model.check_widths(&place, layer.widths(), dense)?;
        if self.methods.maps.is_none() && !layer.ranks.is_dense() {
            let expected = "none, since `methods.maps` is not given";
            return Err(field_error(format!("{place}.ranks"), expected, "ranks"));
        }
        if self.methods.maps.is_some() && layer.widths() != dense {
            let expected = format!("{dense}, since `methods.maps` leaves widths as they are");
            return Err(field_error(place, expected, layer.widths()));
        }
        self.model.check_ranks(&place, dense, &layer.ranks)?;
        if let Some(curves) = &layer.curves {
            curves.check(&format!("{place}.curves"), dense)?;
        }
        layer.map_curves.iter().try_for_each(|c| self.model.check_map_curves(&format!("{place}.map_curves"), dense, c))
    }
}

/// What becomes of a layer: its widths, and the ranks of its maps.
type Sizes = (Widths, FactorRanks);

/// The share that each layer is asked for, and the ranks that come of it.
fn spread_ranks(
    config: &ModelConfig,
    model: &ModelSummary,
    influences: &[f64],
    curves: Option<&[MapCurves]>,
    options: &PlanOptions,
) -> Result<(Vec<f64>, Vec<Sizes>), Error> {
    let params = layer_params(model);
    let widths = || model.widths.iter().copied();
    if let Some(sparsities) = sparsities(influences, &params, options)? {
        let ranks = round_ranks(config, &sparsities, options.rounding)?;
        return Ok((sparsities, widths().zip(ranks).collect()));
    }
    let curves = all_curves(curves, model)?;
    for (index, (curves, widths)) in curves.iter().zip(&model.widths).enumerate() {
        model.check_map_curves(&format!("layers[{index}].map_curves"), *widths, curves)?;
    }
    let sizes: Vec<Sizes> = widths().zip(allocate_ranks(model, curves, options.sparsity)?).collect();
    let share = |(sizes, &before): (&Sizes, &u64)| 1.0 - model.params_at(sizes.0, &sizes.1) as f64 / before as f64;
    Ok((sizes.iter().zip(&params).map(share).collect(), sizes))
}

/// The share that each layer is asked for, and the widths that come of it.
fn spread(
    config: &ModelConfig,
    model: &ModelSummary,
    influences: &[f64],
    curves: Option<&[LayerCurves]>,
    options: &PlanOptions,
) -> Result<(Vec<f64>, Vec<Sizes>), Error> {
    let params = layer_params(model);
    let dense = |widths: Vec<Widths>| widths.into_iter().map(|widths| (widths, FactorRanks::default())).collect();
    if let Some(sparsities) = sparsities(influences, &params, options)? {
        let widths = round_widths(config, &sparsities, options.rounding)?;
        return Ok((sparsities, dense(widths)));
    }
    let curves = all_curves(curves, model)?;
    for (index, (curves, widths)) in curves.iter().zip(&model.widths).enumerate() {
        curves.check(&format!("layers[{index}].curves"), *widths)?;
        if curves.unit != options.unit {
            return Err(field_error(format!("layers[{index}].curves.unit"), options.unit, curves.unit));
        }
    }
    let widths = allocate(model, curves, options.sparsity)?;
    let share = |(after, &before): (&Widths, &u64)| 1.0 - model.params(*after) as f64 / before as f64;
    Ok((widths.iter().zip(&params).map(share).collect(), dense(widths)))
}

/// The share that each layer is asked for, before anything is known of errors; `None` where these decide.
fn sparsities(influences: &[f64], params: &[u64], options: &PlanOptions) -> Result<Option<Vec<f64>>, Error> {
    match options.allocation {
        Allocation::BlockInfluence { epsilon, cap } => {
            capped_softmax(influences, params, options.sparsity, epsilon, cap).map(Some)
        }
        Allocation::Uniform {} => uniform(params.len(), options.sparsity).map(Some),
        Allocation::ErrorCurves { .. } => check_sparsity("sparsity", options.sparsity).map(|()| None),
    }
}

/// # Errors
/// [`Error::OutOfRange`] unless there are curves of every layer.
fn all_curves<'a, T>(curves: Option<&'a [T]>, model: &ModelSummary) -> Result<&'a [T], Error> {
    curves.filter(|curves| curves.len() == model.n_layers).ok_or_else(|| {
        Error::out_of_range("error curves", format!("those of {} layers", model.n_layers), "not all of them")
    })
}

fn check_field(field: &str, sparsity: f64) -> Result<(), Error> {
    check_sparsity(field, sparsity).map_err(|_| field_error(field, "a number in [0, 1)", sparsity))
}

fn layer_params(model: &ModelSummary) -> Vec<u64> {
    model.widths.iter().map(|widths| model.params(*widths)).collect()
}

#[cfg(test)]
mod tests;
