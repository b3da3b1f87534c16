//! What every layer and module would lose at every width, and the widths at which the whole model loses least.
//!
//! Each module offers a curve: its error against its width. All errors are in one unit, so that they can be compared
//! between modules and layers. The budget is spent where the error per parameter removed is least ([`descend`]).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Error, ModelSummary, Rounding, Widths,
    descent::{Offer, descend},
    model_summary::field_error,
};

/// The unit of errors that are compared between layers and modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorUnit {
    /// `½ tr(E G)`: by how much the loss of a token rises, in nats and to second order, with `E` the Gram matrix of the
    /// errors and `G` that of the gradients of the loss.
    Nats,
    /// `tr(E)` as a share of the energy of the residual stream.
    ResidualEnergy,
    /// Of a map that becomes a product: its error in the metric of the method, as a share of what the map carries there.
    MapEnergy,
}

impl ErrorUnit {
    /// The name that files carry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::ResidualEnergy => "residual-energy",
            Self::MapEnergy => "map-energy",
        }
    }
}

/// Words, for people.
impl fmt::Display for ErrorUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nats => "nats",
            Self::ResidualEnergy => "shares of the residual energy",
            Self::MapEnergy => "shares of what each map carries",
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

    /// With `unit` parameters for each unit of width.
    fn offer(&self, unit: u64) -> Offer {
        Offer { params: self.widths.iter().map(|&width| width as u64 * unit).collect(), errors: self.errors.clone() }
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

/// The widths at which the errors of all modules together are least, for a share `sparsity` of the linear weights removed:
/// see [`descend`]. Ties go to the earlier layer, and to the MLP before query–key before value–output.
///
/// # Errors
/// [`Error::Unreachable`] if the lowest widths of the curves leave more parameters than asked for, by over 0.5 %.
pub(crate) fn allocate(model: &ModelSummary, curves: &[LayerCurves], sparsity: f64) -> Result<Vec<Widths>, Error> {
    let of_layer = |layer: &LayerCurves| {
        [layer.d_ff.offer(model.mlp_unit()), layer.d_qk.offer(model.head_unit()), layer.d_v.offer(model.head_unit())]
    };
    let offers: Vec<Offer> = curves.iter().flat_map(of_layer).collect();
    let total = model.block_params() as f64;
    let (sizes, excess) = descend(&offers, sparsity * total);
    if excess > 0.005 * total {
        let reachable = format!("the widths allowed remove at most {:.4}", sparsity - excess / total);
        return Err(Error::Unreachable { name: "sparsity", asked: sparsity.to_string(), reachable });
    }
    let layers = curves.iter().zip(sizes.chunks_exact(3));
    Ok(layers
        .map(|(layer, at)| Widths {
            d_ff: layer.d_ff.widths[at[0]],
            d_qk: layer.d_qk.widths[at[1]],
            d_v: layer.d_v.widths[at[2]],
        })
        .collect())
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
