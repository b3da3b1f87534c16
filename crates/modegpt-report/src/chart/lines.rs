//! Lines through points, each labelled where it ends.

use super::Look;
use crate::scale::{Kind, Scale};
use crate::svg::{Anchor, Svg, spread_apart, text_width};

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
/// Between the last point and its label.
const LEADER: f64 = 16.0;
/// Between the base lines of labels.
const LABEL_GAP: f64 = 16.0;
const LABEL_SIZE: f64 = 12.5;

/// A place in the figure, in the units of its axes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Half the length of a whisker.
    pub(crate) spread: Option<f64>,
}

/// One line.
pub(crate) struct Series {
    /// Its label; none if it belongs to another line.
    pub(crate) name: Option<String>,
    pub(crate) look: Look,
    pub(crate) points: Vec<Point>,
}

/// A horizontal line that stands for something known.
pub(crate) struct Reference {
    pub(crate) label: String,
    pub(crate) y: f64,
    /// Where on the line it was measured.
    pub(crate) x: Option<f64>,
}

/// The figure.
pub(crate) struct Lines {
    pub(crate) alt: String,
    pub(crate) x_title: String,
    pub(crate) y_title: String,
    /// Larger values to the left.
    pub(crate) x_backwards: bool,
    pub(crate) markers: bool,
    pub(crate) series: Vec<Series>,
    pub(crate) reference: Option<Reference>,
    /// The axis ends here; lines that go beyond leave the figure, and their labels say so.
    pub(crate) ceiling: Option<f64>,
}

/// A label at the right edge.
struct Label {
    text: String,
    look: Option<Look>,
    from: (f64, f64),
}

impl Lines {
    /// Draws it, with y on a logarithmic axis; `None` if there is no point to show.
    pub(crate) fn draw(&self) -> Option<String> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let names = self.series.iter().filter_map(|series| series.name.as_deref());
        let names = names.chain(self.reference.as_ref().map(|r| r.label.as_str()));
        let widest = names
            .map(|name| text_width(&shorten(name), LABEL_SIZE) + if self.ceiling.is_some() { 12.0 } else { 0.0 })
            .fold(40.0, f64::max);
        let right = WIDTH - (widest + LEADER + 14.0);
        let xs = points().map(|p| p.x).chain(self.reference.as_ref().and_then(|r| r.x));
        let x_ends = if self.x_backwards { (right, LEFT) } else { (LEFT, right) };
        let x = Scale::over(Kind::Linear, xs, x_ends)?;
        let ends = |p: &Point| [0.0, 1.0, -1.0].map(|sign| p.y + sign * p.spread.unwrap_or(0.0));
        let ys = points().flat_map(ends).chain(self.reference.as_ref().map(|r| r.y));
        let ys = ys.filter(|y| self.ceiling.is_none_or(|most| *y <= most));
        let y = Scale::over(Kind::Log, ys, (HEIGHT - BOTTOM, TOP))?;
        let mut svg = Svg::new(WIDTH, HEIGHT, &self.alt);
        self.draw_axes(&mut svg, &x, &y, right);
        let mut labels = self.draw_reference(&mut svg, &x, &y, right);
        for series in &self.series {
            labels.extend(self.draw_series(&mut svg, series, &x, &y));
        }
        draw_labels(&mut svg, &labels, right);
        Some(svg.finish())
    }

    fn draw_axes(&self, svg: &mut Svg, x: &Scale, y: &Scale, right: f64) {
        let floor = HEIGHT - BOTTOM;
        for tick in y.ticks(5) {
            let Some(at) = y.place(tick.at) else { continue };
            svg.line("grid", (LEFT, at), (right, at));
            svg.text("tick", Anchor::End, (LEFT - 7.0, at + 4.0), &tick.label);
        }
        svg.line("axis", (LEFT, floor), (right, floor));
        for tick in x.ticks(5) {
            let Some(at) = x.place(tick.at) else { continue };
            svg.line("axis", (at, floor), (at, floor + 4.0));
            svg.text("tick", Anchor::Middle, (at, floor + 17.0), &tick.label);
        }
        svg.text("title", Anchor::Middle, (f64::midpoint(LEFT, right), HEIGHT - 8.0), &self.x_title);
        svg.text("title", Anchor::Start, (LEFT + 4.0, TOP - 2.0), &self.y_title);
    }

    fn draw_reference(&self, svg: &mut Svg, x: &Scale, y: &Scale, right: f64) -> Vec<Label> {
        let Some(reference) = &self.reference else { return Vec::new() };
        let Some(at) = y.place(reference.y) else { return Vec::new() };
        svg.line("reference", (LEFT, at), (right, at));
        if let Some(x) = reference.x.and_then(|value| x.place(value)) {
            svg.circle("dense", "", (x, at), 4.0);
        }
        vec![Label { text: shorten(&reference.label), look: None, from: (right, at) }]
    }

    fn draw_series(&self, svg: &mut Svg, series: &Series, x: &Scale, y: &Scale) -> Option<Label> {
        let class = series.look.class;
        let placed: Vec<(&Point, (f64, f64))> =
            series.points.iter().filter_map(|point| Some((point, (x.place(point.x)?, y.place(point.y)?)))).collect();
        let line = below_top(&placed.iter().map(|(_, at)| *at).collect::<Vec<_>>());
        let kind = if series.name.is_some() { "series" } else { "series dashed" };
        svg.path(&format!("{kind} {class}"), "", &line);
        for (point, (px, py)) in placed.iter().filter(|(_, (_, py))| *py >= TOP) {
            let end = |sign: f64| point.spread.and_then(|spread| y.place(point.y + sign * spread));
            if let (Some(high), Some(low)) = (end(1.0), end(-1.0)) {
                svg.line(&format!("whisker {class}"), (*px, high.max(TOP)), (*px, low));
            }
            if self.markers {
                svg.marker(&format!("marker {class}"), series.look.shape, (*px, *py), 4.0);
            }
        }
        // The label belongs to the point furthest to the right.
        let name = series.name.as_deref()?;
        let (_, last) = placed.iter().copied().max_by(|a, b| a.1.0.total_cmp(&b.1.0))?;
        let (text, from) = if last.1 >= TOP {
            (shorten(name), last)
        } else {
            let leaves = line.last().map_or(last.0, |(x, _)| *x);
            (format!("{} ↑", shorten_to(name, 20)), (leaves, TOP))
        };
        Some(Label { text, look: Some(series.look), from })
    }
}

/// The part of a line that lies in the figure, up to where it leaves through the top.
fn below_top(line: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (index, &(x, y)) in line.iter().enumerate() {
        let crossing = |(px, py): (f64, f64)| (px + (x - px) * (TOP - py) / (y - py), TOP);
        match (index.checked_sub(1).map(|before| line[before]), y >= TOP) {
            (Some(before), true) if before.1 < TOP => kept.extend([crossing(before), (x, y)]),
            (_, true) => kept.push((x, y)),
            (Some(before), false) if before.1 >= TOP => {
                kept.push(crossing(before));
                break;
            }
            (_, false) => {}
        }
    }
    kept
}

fn draw_labels(svg: &mut Svg, labels: &[Label], right: f64) {
    let wanted: Vec<f64> = labels.iter().map(|label| label.from.1).collect();
    let placed = spread_apart(&wanted, LABEL_GAP, (TOP + 4.0, HEIGHT - BOTTOM));
    for (label, at) in labels.iter().zip(placed) {
        let elbow = (right + LEADER - 5.0, at);
        let (x, y) = label.from;
        // Level to the edge first, so that no leader crosses the figure.
        svg.path("leader", "", &[(x.max(right - 2.0), y), elbow]);
        if x < right - 12.0 {
            svg.path("leader", "", &[(x + 6.0, y), (right - 2.0, y)]);
        }
        if let Some(look) = label.look {
            svg.marker(&format!("marker {}", look.class), look.shape, (right + LEADER, at), 3.5);
        }
        svg.text("label", Anchor::Start, (right + LEADER + 8.0, at + 4.0), &label.text);
    }
}

/// Names are as long as their authors like.
pub(crate) fn shorten(name: &str) -> String {
    shorten_to(name, 22)
}

/// The beginning of a name, with an ellipsis where it is too long.
pub(crate) fn shorten_to(name: &str, most: usize) -> String {
    if name.chars().count() <= most {
        return name.to_owned();
    }
    name.chars().take(most - 1).chain(['…']).collect()
}
