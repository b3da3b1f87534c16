//! Errors of the residual stream, layer by layer.

use super::Look;
use super::lines::{Lines, Point, Series};
use crate::{Cell, CompareReport, Curve, MethodCurves, PerModule, Prediction, number};

/// Squared error of the residual stream behind each layer as a share of its energy, for each method at one sparsity and the
/// first seed: what was really incurred, with all layers compressed, and dashed what the error curves promised for the
/// layers up to there together. `None` if nothing was measured.
pub(crate) fn layer_errors(report: &CompareReport, sparsity: f64) -> Option<String> {
    let mut series = Vec::new();
    for method in &report.methods {
        let Some(cell) = report.cells_of(&method.name, sparsity).next() else { continue };
        let look = Look::of(report, &method.name);
        let errors = cell.layers.iter().enumerate().filter_map(|(index, layer)| Some((index, layer.incurred?)));
        let points: Vec<Point> = errors.map(point).collect();
        if points.is_empty() {
            continue;
        }
        series.push(Series { name: Some(method.name.clone()), look, points });
        let points: Vec<Point> = promised(report, cell).into_iter().enumerate().map(point).collect();
        series.push(Series { name: None, look, points });
    }
    let lines = Lines {
        alt: format!("Error of the residual stream behind each layer, by method, at {}", number::percent(sparsity)),
        x_title: "behind layer".to_owned(),
        y_title: "squared error, share of the stream's energy (log)".to_owned(),
        x_backwards: false,
        markers: report.protocol.model.n_layers <= 12,
        series,
        reference: None,
        ceiling: None,
    };
    lines.draw()
}

/// Whether a line of promises is drawn for any method.
pub(crate) fn any_promised(report: &CompareReport, sparsity: f64) -> bool {
    let cells = report.methods.iter().filter_map(|method| report.cells_of(&method.name, sparsity).next());
    cells.into_iter().any(|cell| !promised(report, cell).is_empty())
}

fn point((index, y): (usize, f64)) -> Point {
    Point { x: index as f64, y, spread: None }
}

/// Sums over the layers so far of the errors at the widths chosen; empty for a method without curves, or with curves in
/// another unit.
fn promised(report: &CompareReport, cell: &Cell) -> Vec<f64> {
    let of_method = |curves: &&MethodCurves| curves.method == cell.method && curves.unit != Prediction::NATS;
    let Some(curves) = report.curves.iter().find(of_method) else { return Vec::new() };
    let mut sum = 0.0;
    let layers = curves.layers.iter().zip(&cell.layers);
    layers
        .map_while(|(curves, facts)| {
            sum += error_of(curves, &facts.after)?;
            Some(sum)
        })
        .collect()
}

fn error_of(curves: &PerModule<Curve>, after: &PerModule<usize>) -> Option<f64> {
    let errors = curves
        .named()
        .into_iter()
        .zip(after.named())
        .map(|((_, curve), (_, width))| curve.errors.get(curve.widths.iter().position(|of| of == width)?).copied());
    errors.sum()
}
