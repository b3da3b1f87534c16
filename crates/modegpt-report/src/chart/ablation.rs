//! What each decision is worth.

use crate::scale::Scale;
use crate::svg::{Anchor, Svg};
use crate::{AblationStep, CompareReport, Spread, number};

const WIDTH: f64 = 480.0;
const LEFT: f64 = 206.0;
const RIGHT: f64 = 62.0;
const ROW: f64 = 26.0;
const BAR: f64 = 14.0;
const TOP: f64 = 6.0;
const BOTTOM: f64 = 40.0;

/// Bars of the mean rise of ln perplexity on the first text, a row for each step and a dot for each seed. Steps of one
/// report share one axis, given by `all`.
pub(crate) fn ablation(report: &CompareReport, steps: &[AblationStep], all: &[&AblationStep]) -> Option<String> {
    let rises = |step: &AblationStep| -> Vec<f64> {
        step.cells.iter().filter_map(|cell| report.rise_of(cell, 0)).filter(|rise| rise.is_finite()).collect()
    };
    let values: Vec<f64> = all.iter().flat_map(|step| rises(step)).collect();
    if steps.is_empty() || values.is_empty() {
        return None;
    }
    let (low, high) = values.iter().fold((0.0_f64, 0.0_f64), |(low, high), v| (low.min(*v), high.max(*v)));
    let high = if high > low { high } else { low + 1.0 };
    let x = Scale::exact((1.06 * low, 1.06 * high), (LEFT, WIDTH - RIGHT));
    let height = TOP + ROW * steps.len() as f64 + BOTTOM;
    let mut svg = Svg::new(WIDTH, height, "Rise of ln perplexity over the dense model, by decision");
    draw_axis(&mut svg, &x, height - BOTTOM);
    for (row, step) in steps.iter().enumerate() {
        let middle = TOP + ROW * (row as f64 + 0.5);
        svg.text("label", Anchor::End, (LEFT - 10.0, middle + 4.0), &super::lines::shorten_to(&step.label, 28));
        draw_bar(&mut svg, &x, middle, &rises(step));
    }
    Some(svg.finish())
}

fn draw_axis(svg: &mut Svg, x: &Scale, floor: f64) {
    for tick in x.ticks(4) {
        let Some(at) = x.place(tick.at) else { continue };
        svg.line("grid", (at, TOP), (at, floor));
        svg.text("tick", Anchor::Middle, (at, floor + 14.0), &tick.label);
    }
    let title = "rise of ln perplexity over the dense model";
    svg.text("title", Anchor::Middle, (f64::midpoint(LEFT, WIDTH - RIGHT), floor + 32.0), title);
}

fn draw_bar(svg: &mut Svg, x: &Scale, middle: f64, rises: &[f64]) {
    let (Some(zero), Some(spread)) = (x.place(0.0), Spread::of(rises)) else { return };
    let Some(end) = x.place(spread.mean) else { return };
    svg.rect("bar step", (zero.min(end), middle - BAR / 2.0), ((end - zero).abs(), BAR));
    if rises.len() > 1 {
        for at in rises.iter().filter_map(|rise| x.place(*rise)) {
            svg.circle("seed", "", (at, middle), 2.4);
        }
    }
    let furthest = rises.iter().filter_map(|rise| x.place(*rise)).fold(end.max(zero), f64::max);
    svg.text("value", Anchor::Start, (furthest + 7.0, middle + 4.0), &number::decimals(spread.mean, 3));
    svg.line("axis", (zero, middle - ROW / 2.0), (zero, middle + ROW / 2.0));
}
