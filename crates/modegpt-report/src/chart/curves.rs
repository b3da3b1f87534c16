//! What each layer would have lost at every width, and where it was cut.

use crate::scale::{Kind, Scale};
use crate::svg::{Anchor, Svg};
use crate::{CompareReport, Curve, LayerFacts, MethodCurves, PerModule};

const PANEL: f64 = 250.0;
const PANEL_GAP: f64 = 30.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 30.0;
const HEIGHT: f64 = 300.0;
const BOTTOM: f64 = 46.0;

/// How to get at a module of a layer.
type Module = (&'static str, fn(&PerModule<Curve>) -> &Curve, fn(&PerModule<usize>) -> usize);

const MODULES: [Module; 3] = [
    ("MLP", |c| &c.mlp, |w| w.mlp),
    ("query–key", |c| &c.query_key, |w| w.query_key),
    ("value–output", |c| &c.value_output, |w| w.value_output),
];

/// Error against the share of width removed, a line for each layer and a panel for each module, with a dot at the width
/// that the method chose at `sparsity`, for the first seed.
pub(crate) fn error_curves(report: &CompareReport, curves: &MethodCurves, sparsity: f64) -> Option<String> {
    let cut: &[LayerFacts] = report.cells_of(&curves.method, sparsity).next().map_or(&[], |cell| &cell.layers);
    let errors = curves.layers.iter().flat_map(|layer| layer.named().map(|(_, curve)| curve));
    let errors = errors.flat_map(|curve| curve.errors.iter().copied());
    // Far below the largest nothing is decided.
    let largest = errors.clone().filter(|error| error.is_finite()).fold(0.0, f64::max);
    let y = Scale::over(Kind::Log, errors.filter(|e| *e >= 1e-7 * largest), (HEIGHT - BOTTOM, TOP))?;
    let alt = format!("Error of each module against the share of its width removed, {}", curves.method);
    let width = LEFT + 3.0 * PANEL + 2.0 * PANEL_GAP + 14.0;
    let mut svg = Svg::new(width, HEIGHT, &alt);
    for (panel, module) in MODULES.into_iter().enumerate() {
        draw_panel(&mut svg, panel, module, curves, cut, &y);
    }
    for tick in y.ticks(5) {
        if let Some(at) = y.place(tick.at) {
            svg.text("tick", Anchor::End, (LEFT - 7.0, at + 4.0), &tick.label);
        }
    }
    svg.text("title", Anchor::Middle, (LEFT + 1.5 * PANEL + PANEL_GAP, HEIGHT - 8.0), "share of the width removed, %");
    Some(svg.finish())
}

fn draw_panel(
    svg: &mut Svg,
    panel: usize,
    (name, curve_of, width_of): Module,
    curves: &MethodCurves,
    cut: &[LayerFacts],
    y: &Scale,
) {
    let left = LEFT + panel as f64 * (PANEL + PANEL_GAP);
    let x = Scale::exact((0.0, 1.0), (left, left + PANEL));
    let floor = HEIGHT - BOTTOM;
    for tick in y.ticks(5) {
        if let Some(at) = y.place(tick.at) {
            svg.line("grid", (left, at), (left + PANEL, at));
        }
    }
    svg.text("label", Anchor::Middle, (left + PANEL / 2.0, TOP - 12.0), name);
    svg.line("axis", (left, floor), (left + PANEL, floor));
    for (share, label) in [(0.0, "0"), (0.25, "25"), (0.5, "50"), (0.75, "75"), (1.0, "100")] {
        if let Some(at) = x.place(share) {
            svg.line("axis", (at, floor), (at, floor + 4.0));
            svg.text("tick", Anchor::Middle, (at, floor + 17.0), label);
        }
    }
    let n_layers = curves.layers.len();
    let mut dots = Vec::new();
    for (index, layer) in curves.layers.iter().enumerate() {
        let depth = index as f64 / (n_layers.max(2) - 1) as f64;
        let colour = format!("--depth:{:.0}%", 100.0 * depth);
        let line = draw_curve(curve_of(layer), &x, y, floor);
        svg.path("depth", &colour, &line);
        let chosen = cut.get(index).map(|facts| width_of(&facts.after));
        dots.extend(chosen.and_then(|width| place_of(curve_of(layer), width, &x, y, floor)).map(|at| (at, colour)));
    }
    for (at, colour) in dots {
        svg.circle("depth-dot", &colour, at, 3.2);
    }
}

fn draw_curve(curve: &Curve, x: &Scale, y: &Scale, floor: f64) -> Vec<(f64, f64)> {
    curve.widths.iter().filter_map(|width| place_of(curve, *width, x, y, floor)).collect()
}

/// Where a width of a curve lies; errors too small to be shown lie on the floor.
fn place_of(curve: &Curve, width: usize, x: &Scale, y: &Scale, floor: f64) -> Option<(f64, f64)> {
    let full = *curve.widths.last()?;
    let error = *curve.errors.get(curve.widths.iter().position(|w| *w == width)?)?;
    let removed = 1.0 - width as f64 / full.max(1) as f64;
    let at = if error > 0.0 { y.place(error)?.min(floor) } else { floor };
    Some((x.place(removed)?, at))
}
