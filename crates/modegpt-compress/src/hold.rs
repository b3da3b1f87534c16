//! Some widths by hand, the others as the error curves have it.

use serde::{Deserialize, Serialize};

use crate::curves::allocate;
use crate::{Error, ErrorCurve, LayerCurves, Module, Plan, Widths};

/// The budget may be missed by this share of the block parameters, as when widths are rounded.
const TOLERANCE: f64 = 0.005;

/// A width that is given by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldWidth {
    /// Index of the layer.
    pub layer: usize,
    /// The module whose inner width it is.
    pub module: Module,
    /// The width that stays: one of those on the module's error curve.
    pub width: usize,
}

impl Plan {
    /// The plan in which the widths of `held` stay as given, and all others share what is left of the budget, so that the
    /// whole model loses least. Of two that hold the same width the later one counts.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no such layer, no curves are in the plan, or a width is not on its curve;
    /// [`Error::Unreachable`] if what is held removes more or less than the other widths can make up for.
    pub fn hold(&self, held: &[HeldWidth]) -> Result<Self, Error> {
        let curves: Option<Vec<LayerCurves>> = self.layers.iter().map(|layer| layer.curves.clone()).collect();
        let mut curves = curves.ok_or_else(|| Error::out_of_range("plan", "error curves of every layer", "none"))?;
        for &HeldWidth { layer, module, width } in held {
            let of_layer = curves
                .get_mut(layer)
                .ok_or_else(|| Error::out_of_range("layer", format!("less than {}", self.layers.len()), layer))?;
            *curve_mut(of_layer, module) =
                only(curve_of(self.layers[layer].curves.as_ref(), module), layer, module, width)?;
        }
        let widths = self.shared_out(&curves)?;
        let mut plan = self.clone();
        for ((layer, widths), dense) in plan.layers.iter_mut().zip(widths).zip(&self.model.widths) {
            (layer.d_ff, layer.d_qk, layer.d_v) = (widths.d_ff, widths.d_qk, widths.d_v);
            layer.sparsity = 1.0 - self.model.params(widths) as f64 / self.model.params(*dense) as f64;
        }
        if !held.is_empty() {
            // What was tried was another plan.
            plan.tried.clear();
        }
        plan.totals = plan.computed_totals();
        Ok(plan)
    }

    /// Widths on `curves`, where those of held modules have one width only.
    fn shared_out(&self, curves: &[LayerCurves]) -> Result<Vec<Widths>, Error> {
        let total = self.model.block_params() as f64;
        let widest = |curve: &ErrorCurve| curve.widths.last().copied().unwrap_or_default();
        let most = |curves: &LayerCurves| Widths {
            d_ff: widest(&curves.d_ff),
            d_qk: widest(&curves.d_qk),
            d_v: widest(&curves.d_v),
        };
        let before: u64 = curves.iter().map(|curves| self.model.params(most(curves))).sum();
        let removed_by_hand = 1.0 - before as f64 / total;
        let unreachable = |bound: &str, share: f64| Error::Unreachable {
            name: "sparsity",
            asked: self.target.to_string(),
            reachable: format!("with the widths held at {bound} {share:.4} is removed"),
        };
        if removed_by_hand > self.target + TOLERANCE {
            return Err(unreachable("least", removed_by_hand));
        }
        let least = |curve: &ErrorCurve| curve.widths.first().copied().unwrap_or_default();
        let fewest = |curves: &LayerCurves| Widths {
            d_ff: least(&curves.d_ff),
            d_qk: least(&curves.d_qk),
            d_v: least(&curves.d_v),
        };
        let after: u64 = curves.iter().map(|curves| self.model.params(fewest(curves))).sum();
        let reachable = 1.0 - after as f64 / total;
        if reachable < self.target - TOLERANCE {
            return Err(unreachable("most", reachable));
        }
        allocate(&self.model, curves, self.target - removed_by_hand)
    }
}

/// The curve with one of its widths only.
fn only(curve: Option<&ErrorCurve>, layer: usize, module: Module, width: usize) -> Result<ErrorCurve, Error> {
    let name = || format!("width of layer {layer}, {module}");
    let curve = curve.ok_or_else(|| Error::out_of_range(name(), "a curve", "none"))?;
    let position = curve.widths.binary_search(&width);
    let position = position.map_err(|_| Error::out_of_range(name(), format!("one of {:?}", curve.widths), width))?;
    Ok(ErrorCurve { widths: vec![width], errors: vec![curve.errors[position]] })
}

fn curve_of(curves: Option<&LayerCurves>, module: Module) -> Option<&ErrorCurve> {
    curves.map(|curves| match module {
        Module::Mlp => &curves.d_ff,
        Module::QueryKey => &curves.d_qk,
        Module::ValueOutput => &curves.d_v,
    })
}

fn curve_mut(curves: &mut LayerCurves, module: Module) -> &mut ErrorCurve {
    match module {
        Module::Mlp => &mut curves.d_ff,
        Module::QueryKey => &mut curves.d_qk,
        Module::ValueOutput => &mut curves.d_v,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TinyModel;
    use crate::{Allocation, Curves, ErrorUnit, Mode, ModelSummary, PlanOptions, Ridges, Rounding, WidthGrid};

    const MODULES: [Module; 3] = [Module::Mlp, Module::QueryKey, Module::ValueOutput];

    /// A plan of three layers by curves that rise with the square of what goes, layer by layer more steeply.
    fn plan() -> Plan {
        let config = TinyModel { n_layers: 3, ..TinyModel::llama() }.config();
        let (model, rounding) = (ModelSummary::of(&config), Rounding { ff: 4, head: 2, rank: 2 });
        let curve = |widths: Vec<usize>, steepness: f64| {
            let dense = widths.last().copied().unwrap_or_default() as f64;
            let errors = widths.iter().map(|&width| steepness * (1.0 - width as f64 / dense).powi(2)).collect();
            ErrorCurve { widths, errors }
        };
        let curves = model.widths.iter().enumerate().map(|(layer, widths)| {
            let grid = WidthGrid::new(*widths, model.rotary, rounding, 0.9);
            let steepness = 1.0 + layer as f64;
            LayerCurves {
                unit: ErrorUnit::Nats,
                d_ff: curve(grid.d_ff, steepness),
                d_qk: curve(grid.d_qk, 0.3 * steepness),
                d_v: curve(grid.d_v, 0.5 * steepness),
            }
        });
        let options = PlanOptions {
            sparsity: 0.3,
            mode: Mode::Best,
            methods: Mode::Best.methods(),
            unit: ErrorUnit::Nats,
            allocation: Allocation::ErrorCurves { cap: Allocation::DEFAULT_CAP },
            rounding,
            ridges: Ridges::default(),
        };
        Plan::new(&config, "fingerprint", &[0.1, 0.2, 0.3], Some(Curves::Modules(curves.collect())), &options)
            .expect("a plan")
    }

    fn width(plan: &Plan, layer: usize, module: Module) -> usize {
        let Widths { d_ff, d_qk, d_v } = plan.layers[layer].widths();
        match module {
            Module::Mlp => d_ff,
            Module::QueryKey => d_qk,
            Module::ValueOutput => d_v,
        }
    }

    #[test]
    fn holding_nothing_or_what_is_planned_changes_nothing() {
        let plan = plan();
        assert_eq!(plan.hold(&[]).expect("as it was").layers, plan.layers);
        for layer in 0..3 {
            for module in MODULES {
                let held = [HeldWidth { layer, module, width: width(&plan, layer, module) }];
                let again = plan.hold(&held).expect("as it was");
                assert!((again.totals.sparsity - plan.totals.sparsity).abs() < 0.02);
            }
        }
    }

    /// Every width of every module: it is the one in the plan, the budget is kept, and nothing is gained.
    #[test]
    fn the_others_make_up_for_what_is_held() {
        let plan = plan();
        let best = plan.predicted_error().expect("curves");
        for layer in 0..3 {
            for module in MODULES {
                let curve = curve_of(plan.layers[layer].curves.as_ref(), module).expect("curves").clone();
                for asked in curve.widths {
                    let held = plan.hold(&[HeldWidth { layer, module, width: asked }]).expect("the budget is small");
                    assert_eq!(width(&held, layer, module), asked);
                    let missed = (held.totals.sparsity - plan.target).abs();
                    assert!(missed < 0.015, "layer {layer}, {module} at {asked}: missed by {missed}");
                    let error = held.predicted_error().expect("on the curves");
                    assert!(error > best * 0.9, "layer {layer}, {module} at {asked}: {error} after {best}");
                    assert_eq!(Plan::from_json(&held.to_json()).expect("a plan"), held);
                }
            }
        }
    }

    #[test]
    fn what_is_held_may_leave_nothing_to_the_others() {
        let plan = plan();
        let all = |pick: fn(&ErrorCurve) -> usize| -> Vec<HeldWidth> {
            let layers = plan.layers.iter().enumerate();
            let one = |(layer, of_layer): (usize, &crate::LayerPlan)| {
                MODULES.map(|module| {
                    let width = curve_of(of_layer.curves.as_ref(), module).map_or(0, pick);
                    HeldWidth { layer, module, width }
                })
            };
            layers.flat_map(one).collect()
        };
        let thin = plan.hold(&all(|curve| curve.widths[0])).expect_err("too thin").to_string();
        assert!(thin.starts_with("sparsity 0.3 cannot be reached: with the widths held at least 0."), "{thin}");
        let wide = plan.hold(&all(|curve| curve.widths[curve.widths.len() - 1])).expect_err("too wide").to_string();
        assert_eq!(wide, "sparsity 0.3 cannot be reached: with the widths held at most 0.0000 is removed");
    }

    #[test]
    fn what_does_not_exist_cannot_be_held() {
        let plan = plan();
        let refused = |layer, width| {
            let held = [HeldWidth { layer, module: Module::QueryKey, width }];
            plan.hold(&held).expect_err("refused").to_string()
        };
        assert_eq!(refused(3, 2), "layer: expected less than 3, found 3");
        assert!(refused(1, 3).starts_with("width of layer 1, query-key: expected one of ["), "{}", refused(1, 3));
        let mut without = plan.clone();
        without.layers[0].curves = None;
        assert_eq!(
            without.hold(&[]).expect_err("refused").to_string(),
            "plan: expected error curves of every layer, found none"
        );
    }
}
