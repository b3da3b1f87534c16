//! Figures. Each is a function from a report to an SVG element, or nothing where there is nothing to show.

mod ablation;
mod allocation;
mod curves;
mod layer_errors;
mod lines;
mod trade_off;

pub(crate) use ablation::ablation;
pub(crate) use allocation::allocation;
pub(crate) use curves::error_curves;
pub(crate) use layer_errors::{any_promised, layer_errors};
pub(crate) use trade_off::{against_bytes, against_speed, ceiling};

use crate::CompareReport;
use crate::summary::is_paper;
use crate::svg::Svg;

/// How many hues the page knows; methods beyond share them and differ by shape.
const N_HUES: usize = 7;

/// How a method looks in every figure and table: the class of its colour, and its shape.
///
/// The paper's recipes are grey, everything else has a hue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) class: &'static str,
    pub(crate) shape: usize,
}

impl Look {
    pub(crate) fn of(report: &CompareReport, method: &str) -> Self {
        const GREYS: [&str; 2] = ["g0", "g1"];
        const HUES: [&str; N_HUES] = ["h0", "h1", "h2", "h3", "h4", "h5", "h6"];
        let names = report.methods.iter().map(|method| method.name.as_str());
        let like = |name: &&str| is_paper(name) == is_paper(method);
        let place = names.clone().filter(like).position(|name| name == method).unwrap_or(0);
        let shape = names.clone().position(|name| name == method).unwrap_or(0);
        let class = if is_paper(method) { GREYS[place % GREYS.len()] } else { HUES[place % N_HUES] };
        Self { class, shape }
    }
}

/// A method's mark, to stand in a line of text.
pub(crate) fn swatch(look: Look) -> String {
    let mut svg = Svg::new(12.0, 12.0, "");
    svg.marker(&format!("marker {}", look.class), look.shape, (6.0, 6.0), 4.0);
    svg.finish()
        .replacen("<svg ", "<svg class=\"swatch\" ", 1)
        .replacen("role=\"img\" aria-label=\"\"", "aria-hidden=\"true\"", 1)
        .replace('\n', "")
}
