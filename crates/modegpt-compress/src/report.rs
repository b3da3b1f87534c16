//! What a compression did.

use serde::{Deserialize, Serialize};

use modegpt_architecture::FactorRanks;

use crate::{MapReport, ModelSummary, Totals, Widths};

/// What happened to one module of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModuleReport {
    /// Squared error over the calibration tokens as a share of the energy of the exact result. 0 if nothing changed.
    /// It is that of the decomposition: a refit on the compressed prefix comes after.
    ///
    /// Of the MLP: of its output. Of query and key: of the products of all queries with all keys, before rotation and
    /// softmax. Of value and output: of the values through the output maps, head by head. Of maps that became products each
    /// by itself: of these together, in the metric of the method.
    pub relative_error: f64,
    /// Estimated condition of the matrix that was factorised; `None` if none was, or if it is not finite.
    pub condition: Option<f64>,
    /// How often a factorisation was repeated with more jitter on the diagonal.
    pub fallbacks: u32,
}

impl ModuleReport {
    /// The report on a module that was left alone.
    pub(crate) fn unchanged() -> Self {
        Self::default()
    }

    /// `error / energy`; rounding may take `error` below zero, and both are zero where nothing was ever active.
    pub(crate) fn new(error: f64, energy: f64) -> Self {
        let relative_error = if energy > 0.0 { error.max(0.0) / energy } else { 0.0 };
        Self { relative_error, ..Self::default() }
    }

    pub(crate) fn with_condition(self, condition: f64) -> Self {
        Self { condition: Some(condition).filter(|condition| condition.is_finite()), ..self }
    }

    pub(crate) fn with_fallbacks(self, fallbacks: u32) -> Self {
        Self { fallbacks, ..self }
    }
}

/// What happened to one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Index of the layer, from 0.
    pub index: usize,
    /// Share of the linear weights that was removed.
    pub sparsity: f64,
    /// Widths before.
    pub before: Widths,
    /// Widths after.
    pub after: Widths,
    /// Up, gate and down maps.
    pub mlp: ModuleReport,
    /// Query and key maps.
    pub query_key: ModuleReport,
    /// Value and output maps.
    pub value_output: ModuleReport,
    /// Every map, where maps became products; empty where modules were compressed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<MapReport>,
}

impl LayerReport {
    /// The ranks of the maps that became products.
    pub fn ranks(&self) -> FactorRanks {
        FactorRanks::from_fn(|name| self.maps.iter().find(|map| map.name == name)?.rank)
    }
}

/// What happened to the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the format, [`Report::VERSION`].
    pub version: u32,
    /// Sums over the decoder blocks.
    pub totals: Totals,
    /// Repeated factorisations in all layers.
    pub fallbacks: u32,
    /// One entry for each layer that was compressed, in order.
    pub layers: Vec<LayerReport>,
}

impl Report {
    /// The version that this crate writes.
    pub const VERSION: u32 = 1;

    /// Joins the reports on the layers of `model`, as it was before.
    pub fn new(model: &ModelSummary, layers: Vec<LayerReport>) -> Self {
        let before = layers.iter().map(|layer| model.params(layer.before)).sum();
        let after = layers.iter().map(|layer| model.params_at(layer.after, &layer.ranks())).sum();
        let modules = layers.iter().flat_map(|layer| [layer.mlp, layer.query_key, layer.value_output]);
        Self {
            version: Self::VERSION,
            totals: Totals::new(before, after),
            fallbacks: modules.map(|module| module.fallbacks).sum(),
            layers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TinyModel;

    #[test]
    fn totals_are_sums_over_layers() {
        let model = ModelSummary::of(&TinyModel { n_layers: 2, ..TinyModel::default() }.config());
        let before = model.widths[0];
        let after = Widths { d_ff: before.d_ff / 2, d_qk: before.d_qk / 2, d_v: before.d_v / 2 };
        let module = ModuleReport::new(1.0, 4.0).with_fallbacks(2);
        let layer = |index, after| LayerReport {
            index,
            sparsity: 0.0,
            before,
            after,
            mlp: module,
            query_key: ModuleReport::unchanged(),
            value_output: module.with_condition(f64::INFINITY),
            maps: Vec::new(),
        };
        let report = Report::new(&model, vec![layer(0, before), layer(1, after)]);
        assert!((report.totals.sparsity - 0.25).abs() < 1e-15);
        assert_eq!(report.totals.block_params_before, model.block_params());
        assert_eq!(report.fallbacks, 8);
        assert_eq!(report.layers[0].value_output, module);
    }

    #[test]
    fn errors_are_shares_of_the_energy() {
        assert!((ModuleReport::new(1.0, 4.0).relative_error - 0.25).abs() < 1e-15);
        assert!(ModuleReport::new(-1e-20, 4.0).relative_error.abs() < 1e-300);
        assert!(ModuleReport::new(0.0, 0.0).relative_error.abs() < 1e-300);
    }
}
