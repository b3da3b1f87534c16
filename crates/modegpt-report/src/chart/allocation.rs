//! How much each layer and module gave.

use super::Look;
use crate::svg::{Anchor, Svg};
use crate::{CompareReport, LayerFacts, PerModule, number};

const WIDTH: f64 = 340.0;
const LEFT: f64 = 34.0;
const RIGHT: f64 = 42.0;
const ROW: f64 = 40.0;
const ROW_GAP: f64 = 16.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 34.0;

/// Share removed of each module of each layer by one method at one sparsity, as the mean over seeds: a row of bars for
/// each module, a bar for each layer. All methods of the report share one axis.
pub(crate) fn allocation(report: &CompareReport, method: &str, sparsity: f64) -> Option<String> {
    let layers = mean_removed(report, method, sparsity)?;
    let most = report.methods.iter().filter_map(|method| mean_removed(report, &method.name, sparsity)).flatten();
    let most = most.flat_map(|layer| layer.named().map(|(_, share)| *share)).fold(0.0, f64::max);
    let ceiling = [0.25, 0.5, 0.75].into_iter().find(|step| most <= *step).unwrap_or(1.0);
    let alt = format!("Share removed of each module by layer, {method} at {}", number::percent(sparsity));
    let mut svg = Svg::new(WIDTH, TOP + 3.0 * ROW + 2.0 * ROW_GAP + BOTTOM, &alt);
    let look = Look::of(report, method);
    for row in 0..3 {
        draw_row(&mut svg, row, &layers, ceiling, look);
    }
    draw_layer_axis(&mut svg, layers.len());
    Some(svg.finish())
}

/// Shares removed, clamped to what a bar can show, layer by layer.
fn mean_removed(report: &CompareReport, method: &str, sparsity: f64) -> Option<Vec<PerModule<f64>>> {
    let cells: Vec<&[LayerFacts]> = report.cells_of(method, sparsity).map(|cell| cell.layers.as_slice()).collect();
    let n_layers = cells.iter().map(|layers| layers.len()).min()?;
    if n_layers == 0 {
        return None;
    }
    let mean = |layer: usize, of: fn(&PerModule<f64>) -> f64| {
        let values = cells.iter().map(|layers| of(&layers[layer].removed));
        let sum: f64 = values.filter(|share| share.is_finite()).map(|share| share.clamp(0.0, 1.0)).sum();
        sum / cells.len() as f64
    };
    let layer = |index| PerModule {
        mlp: mean(index, |removed| removed.mlp),
        query_key: mean(index, |removed| removed.query_key),
        value_output: mean(index, |removed| removed.value_output),
    };
    Some((0..n_layers).map(layer).collect())
}

fn draw_row(svg: &mut Svg, row: usize, layers: &[PerModule<f64>], ceiling: f64, look: Look) {
    let top = TOP + row as f64 * (ROW + ROW_GAP);
    let floor = top + ROW;
    let (name, _) = layers[0].named()[row];
    svg.text("label", Anchor::Start, (0.0, floor - ROW / 2.0 + 4.0), name);
    svg.line("grid", (LEFT, top), (WIDTH - RIGHT, top));
    svg.text("tick", Anchor::Start, (WIDTH - RIGHT + 4.0, top + 4.0), &number::percent(ceiling));
    svg.text("tick", Anchor::Start, (WIDTH - RIGHT + 4.0, floor + 4.0), "0");
    let slot = slot(layers.len());
    let bar = (0.76 * slot).min(18.0);
    for (index, layer) in layers.iter().enumerate() {
        let height = ROW * *layer.named()[row].1 / ceiling;
        let left = LEFT + index as f64 * slot + (slot - bar) / 2.0;
        svg.rect(&format!("bar {}", look.class), (left, floor - height), (bar, height));
    }
    svg.line("axis", (LEFT, floor), (WIDTH - RIGHT, floor));
}

fn draw_layer_axis(svg: &mut Svg, n_layers: usize) {
    let floor = TOP + 3.0 * ROW + 2.0 * ROW_GAP;
    let slot = slot(n_layers);
    let every = [1, 2, 5, 10, 20, 50].into_iter().find(|every| slot * *every as f64 >= 24.0).unwrap_or(100);
    for index in (0..n_layers).step_by(every) {
        let at = LEFT + (index as f64 + 0.5) * slot;
        svg.text("tick", Anchor::Middle, (at, floor + 14.0), &index.to_string());
    }
    svg.text("title", Anchor::Middle, (f64::midpoint(LEFT, WIDTH - RIGHT), floor + 28.0), "layer");
}

fn slot(n_layers: usize) -> f64 {
    (WIDTH - LEFT - RIGHT) / n_layers as f64
}
