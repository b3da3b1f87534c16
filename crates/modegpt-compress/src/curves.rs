//! What every layer and module would lose at every width, and the widths at which the whole model loses least.
//!
//! Each module offers a curve: its error against its width. All errors are in one unit, so that they can be compared
//! between modules and layers. The budget is spent greedily along the lower convex hulls of the curves, always where the
//! error per parameter removed is least; up to the last step this is the best that any choice of widths on the hulls can
//! do.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, ModelSummary, Rounding, Widths, model_summary::field_error};

/// The unit of errors that are compared between layers and modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorUnit {
    /// `½ tr(E G)`: by how much the loss of a token rises, in nats and to second order, with `E` the Gram matrix of the
    /// errors and `G` that of the gradients of the loss.
    Nats,
    /// `tr(E)` as a share of the energy of the residual stream.
    ResidualEnergy,
}

impl ErrorUnit {
    /// The name that files carry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::ResidualEnergy => "residual-energy",
        }
    }
}

/// Words, for people.
impl fmt::Display for ErrorUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nats => "nats",
            Self::ResidualEnergy => "shares of the residual energy",
        })
    }
}

/// Errors of one module at the widths that it can take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorCurve {
    /// Ascending; the last is the present width.
    pub widths: Vec<usize>,
    /// Error of a token at each width; the last is 0.
    pub errors: Vec<f64>,
}

/// The curves of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerCurves {
    /// The unit of all three.
    pub unit: ErrorUnit,
    /// Of the MLP.
    pub d_ff: ErrorCurve,
    /// Of query and key.
    pub d_qk: ErrorCurve,
    /// Of value and output.
    pub d_v: ErrorCurve,
}

/// The widths that the modules of a layer may take: multiples, and the present width.
#[derive(Clone, Debug, PartialEq)]
pub struct WidthGrid {
    /// Of the MLP, ascending.
    pub d_ff: Vec<usize>,
    /// Of query and key, ascending.
    pub d_qk: Vec<usize>,
    /// Of value and output, ascending.
    pub d_v: Vec<usize>,
}

impl WidthGrid {
    /// Multiples of `rounding`, from `1 - cap` of the present widths up to them.
    pub fn new(present: Widths, rotary: bool, rounding: Rounding, cap: f64) -> Self {
        let pair = if rotary && !rounding.head.is_multiple_of(2) { 2 } else { 1 };
        let grid = |width: usize, multiple: usize| -> Vec<usize> {
            let lowest = ((1.0 - cap) * width as f64 / multiple as f64).ceil().max(1.0) as usize;
            let multiples = (lowest..).map(|n| n * multiple).take_while(|&w| w < width);
            multiples.chain([width]).collect()
        };
        Self {
            d_ff: grid(present.d_ff, rounding.ff),
            d_qk: grid(present.d_qk, rounding.head * pair),
            d_v: grid(present.d_v, rounding.head),
        }
    }
}

impl WidthGrid {
    /// Curves on this grid that are zero everywhere: enough to find out which sizes can be reached.
    pub fn free(&self, unit: ErrorUnit) -> LayerCurves {
        let curve = |widths: &[usize]| ErrorCurve { widths: widths.to_vec(), errors: vec![0.0; widths.len()] };
        LayerCurves { unit, d_ff: curve(&self.d_ff), d_qk: curve(&self.d_qk), d_v: curve(&self.d_v) }
    }
}

impl ErrorCurve {
    /// # Errors
    /// [`Error::PlanField`] for a curve that no decomposition makes.
    fn check(&self, place: &str, width: usize) -> Result<(), Error> {
        let ascending = self.widths.is_sorted_by(|a, b| a < b) && self.widths.first().is_some_and(|&w| w > 0);
        if !ascending || self.widths.last() != Some(&width) {
            return Err(field_error(format!("{place}.widths"), format!("ascending widths up to {width}"), "others"));
        }
        if self.errors.len() != self.widths.len() || !self.errors.iter().all(|e| e.is_finite() && *e >= 0.0) {
            return Err(field_error(
                format!("{place}.errors"),
                "one finite error of at least 0 for each width",
                "others",
            ));
        }
        Ok(())
    }

    /// The positions, descending from the last, at which the lower convex hull of error against removed width bends.
    fn hull(&self) -> Vec<usize> {
        let mut hull: Vec<usize> = Vec::new();
        for at in (0..self.widths.len()).rev() {
            // A corner above the line from its neighbour before to the new point is none. Those on the line stay, so that
            // of a long edge that does not fit, a part can be taken: of units that cost nothing, for one.
            while hull.len() >= 2
                && self.slope(hull[hull.len() - 2], hull[hull.len() - 1]) > self.slope(hull[hull.len() - 2], at)
            {
                hull.pop();
            }
            hull.push(at);
        }
        hull
    }

    /// Error gained for each unit of width removed between two positions.
    fn slope(&self, from: usize, to: usize) -> f64 {
        (self.errors[to] - self.errors[from]) / (self.widths[from] - self.widths[to]) as f64
    }
}

impl LayerCurves {
    /// # Errors
    /// [`Error::PlanField`] for curves that are not those of a layer with the widths `present`.
    pub(crate) fn check(&self, place: &str, present: Widths) -> Result<(), Error> {
        self.d_ff.check(&format!("{place}.d_ff"), present.d_ff)?;
        self.d_qk.check(&format!("{place}.d_qk"), present.d_qk)?;
        self.d_v.check(&format!("{place}.d_v"), present.d_v)
    }
}

/// One module on its way down.
struct Descent<'a> {
    curve: &'a ErrorCurve,
    /// Position in the curve.
    at: usize,
    /// Corners still ahead, the next one last.
    corners: Vec<usize>,
    /// Parameters of each unit of width.
    unit: u64,
}

impl<'a> Descent<'a> {
    fn new(curve: &'a ErrorCurve, unit: u64) -> Self {
        let mut corners = curve.hull();
        corners.reverse();
        let at = corners.pop().unwrap_or(0);
        Self { curve, at, corners, unit }
    }

    fn params_to(&self, position: usize) -> f64 {
        (self.curve.widths[self.at] - self.curve.widths[position]) as f64 * self.unit as f64
    }

    /// Error for each parameter removed on the way to `position`.
    fn price(&self, position: usize) -> f64 {
        self.curve.slope(self.at, position) / self.unit as f64
    }

    fn width(&self) -> usize {
        self.curve.widths[self.at]
    }
}

/// The widths at which the errors of all modules together are least, for a share `sparsity` of the linear weights removed.
///
/// Whole edges of the hulls are taken, cheapest first, while they fit; what is left is made up in single steps of the
/// curves, cheapest first, as long as they bring the parameters closer to the target. Ties go to the earlier layer, and to
/// the MLP before query–key before value–output.
///
/// # Errors
/// [`Error::Unreachable`] if the lowest widths of the curves leave more parameters than asked for, by over 0.5 %.
pub(crate) fn allocate(model: &ModelSummary, curves: &[LayerCurves], sparsity: f64) -> Result<Vec<Widths>, Error> {
    let mut modules: Vec<Descent<'_>> = curves
        .iter()
        .flat_map(|layer| {
            [
                Descent::new(&layer.d_ff, model.mlp_unit()),
                Descent::new(&layer.d_qk, model.head_unit()),
                Descent::new(&layer.d_v, model.head_unit()),
            ]
        })
        .collect();
    let total = model.block_params() as f64;
    let mut excess = sparsity * total;
    let fits = |excess: f64, params: f64| params <= excess;
    while let Some(index) = cheapest(&modules, |module| {
        module.corners.last().copied().filter(|&corner| fits(excess, module.params_to(corner)))
    }) {
        let corner = modules[index].corners.pop().unwrap_or_default();
        excess -= modules[index].params_to(corner);
        modules[index].at = corner;
    }
    // A step of less than twice the excess brings the parameters closer to the target.
    while let Some(index) =
        cheapest(&modules, |module| module.at.checked_sub(1).filter(|&next| module.params_to(next) < 2.0 * excess))
    {
        let next = modules[index].at - 1;
        excess -= modules[index].params_to(next);
        modules[index].at = next;
    }
    if excess > 0.005 * total {
        let reachable = format!("the widths allowed remove at most {:.4}", sparsity - excess / total);
        return Err(Error::Unreachable { name: "sparsity", asked: sparsity.to_string(), reachable });
    }
    let layers = modules.chunks_exact(3);
    Ok(layers.map(|m| Widths { d_ff: m[0].width(), d_qk: m[1].width(), d_v: m[2].width() }).collect())
}

/// The module whose `next` position costs least for each parameter removed, the first of equals.
fn cheapest(modules: &[Descent<'_>], next: impl Fn(&Descent<'_>) -> Option<usize>) -> Option<usize> {
    let offers = modules.iter().enumerate().filter_map(|(index, module)| Some((index, module.price(next(module)?))));
    offers.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(index, _)| index)
}

/// Sum over all modules of the errors at these widths, where the curves know them.
pub(crate) fn predicted(curves: &[LayerCurves], widths: &[Widths]) -> f64 {
    let at = |curve: &ErrorCurve, width: usize| {
        curve.widths.binary_search(&width).map_or(f64::NAN, |position| curve.errors[position])
    };
    let layer = |(c, w): (&LayerCurves, &Widths)| at(&c.d_ff, w.d_ff) + at(&c.d_qk, w.d_qk) + at(&c.d_v, w.d_v);
    curves.iter().zip(widths).map(layer).sum()
}

#[cfg(test)]
mod tests;
