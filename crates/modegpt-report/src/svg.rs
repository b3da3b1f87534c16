//! Drawing figures as SVG text.

use std::fmt::Write;

/// Text made safe to stand in HTML, between tags or in quotes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // What no document may contain, and what turns the direction of text.
            '\t' | '\n' => out.push(character),
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// Which end of a text stands at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// The shapes that tell series apart without colour.
const N_SHAPES: usize = 6;

/// A drawing; places are in its own units, from the top left.
pub(crate) struct Svg {
    width: f64,
    height: f64,
    label: String,
    body: String,
}

impl Svg {
    /// An empty drawing; `label` says what it shows to those who cannot see it.
    pub(crate) fn new(width: f64, height: f64, label: &str) -> Self {
        Self { width, height, label: escape(label), body: String::new() }
    }

    pub(crate) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.put(&format!(
            r#"<line class="{class}" x1="{}" y1="{}" x2="{}" y2="{}"/>"#,
            place(x1),
            place(y1),
            place(x2),
            place(y2)
        ));
    }

    /// A line through points; nothing for fewer than two.
    pub(crate) fn path(&mut self, class: &str, style: &str, points: &[(f64, f64)]) {
        if points.len() < 2 {
            return;
        }
        let mut d = String::new();
        for (index, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{} {}", if index == 0 { 'M' } else { 'L' }, place(*x), place(*y));
        }
        self.put(&format!(r#"<path class="{class}"{} d="{d}"/>"#, style_attribute(style)));
    }

    pub(crate) fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let (width, height) = (place(width.max(0.0)), place(height.max(0.0)));
        self.put(&format!(
            r#"<rect class="{class}" x="{}" y="{}" width="{width}" height="{height}"/>"#,
            place(x),
            place(y)
        ));
    }

    pub(crate) fn circle(&mut self, class: &str, style: &str, (x, y): (f64, f64), radius: f64) {
        let style = style_attribute(style);
        self.put(&format!(
            r#"<circle class="{class}"{style} cx="{}" cy="{}" r="{}"/>"#,
            place(x),
            place(y),
            place(radius)
        ));
    }

    /// One of a few shapes, about as large as a circle of `radius`.
    pub(crate) fn marker(&mut self, class: &str, shape: usize, (x, y): (f64, f64), radius: f64) {
        let r = radius;
        let corners: &[(f64, f64)] = match shape % N_SHAPES {
            0 => return self.circle(class, "", (x, y), r),
            1 => &[(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
            2 => &[(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
            3 => &[(0.0, -1.2), (1.15, 0.85), (-1.15, 0.85)],
            4 => &[(0.0, 1.2), (1.15, -0.85), (-1.15, -0.85)],
            _ => &[(-1.2, 0.0), (-0.6, -1.05), (0.6, -1.05), (1.2, 0.0), (0.6, 1.05), (-0.6, 1.05)],
        };
        let mut d = String::new();
        for (index, (dx, dy)) in corners.iter().enumerate() {
            let _ = write!(d, "{}{} {}", if index == 0 { 'M' } else { 'L' }, place(x + r * dx), place(y + r * dy));
        }
        self.put(&format!(r#"<path class="{class}" d="{d}Z"/>"#));
    }

    /// A text whose base line is at `y`.
    pub(crate) fn text(&mut self, class: &str, anchor: Anchor, (x, y): (f64, f64), text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.put(&format!(
            r#"<text class="{class}" x="{}" y="{}" text-anchor="{anchor}">{}</text>"#,
            place(x),
            place(y),
            escape(text)
        ));
    }

    /// The whole element.
    pub(crate) fn finish(self) -> String {
        let Self { width, height, label, body } = self;
        let size = format!("0 0 {} {}", place(width), place(height));
        format!("<svg viewBox=\"{size}\" role=\"img\" aria-label=\"{label}\">\n{body}</svg>\n")
    }

    fn put(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }
}

fn style_attribute(style: &str) -> String {
    if style.is_empty() { String::new() } else { format!(r#" style="{style}""#) }
}

/// A coordinate with as many digits as can be seen.
fn place(value: f64) -> String {
    debug_assert!(value.is_finite(), "scales show finite values only");
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

/// About how wide a text of this size is in a sans-serif face, on the safe side.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    0.6 * size * text.chars().count() as f64
}

/// Moves labels apart along one axis, each as little as possible, so that neighbours are `gap` apart and all lie between
/// `low` and `high`, or begin at `low` where there is no room for all.
pub(crate) fn spread_apart(wanted: &[f64], gap: f64, (low, high): (f64, f64)) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    // Blocks of labels that touch: where the block begins if each of its labels had its way on average.
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for &index in &order {
        let mut block = (wanted[index], 1_usize);
        loop {
            block.0 = block.0.min(high - (block.1 - 1) as f64 * gap).max(low);
            let Some((start, n)) = blocks.pop() else { break };
            if start + n as f64 * gap <= block.0 {
                blocks.push((start, n));
                break;
            }
            let both = n + block.1;
            let mean = n as f64 * start + block.1 as f64 * (block.0 - n as f64 * gap);
            block = (mean / both as f64, both);
        }
        blocks.push(block);
    }
    let mut placed = vec![0.0; wanted.len()];
    let positions = blocks.iter().flat_map(|&(start, n)| (0..n).map(move |i| start + i as f64 * gap));
    for (&index, position) in order.iter().zip(positions) {
        placed[index] = position;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        let escaped = escape("</text><script>alert('1')</script> & \"x\"\u{0}\u{202e}");
        assert!(!escaped.contains(['<', '>', '"', '\'', '\u{0}', '\u{202e}']), "{escaped}");
        assert!(escaped.starts_with("&lt;/text&gt;&lt;script&gt;"));
    }

    #[test]
    fn labels_are_moved_apart_and_stay_inside() {
        for wanted in [vec![], vec![5.0], vec![5.0, 5.0, 5.0], vec![0.0, 100.0, 50.0, 52.0], vec![99.0, 98.0, 97.0]] {
            let placed = spread_apart(&wanted, 13.0, (0.0, 100.0));
            let mut sorted = placed.clone();
            sorted.sort_by(f64::total_cmp);
            assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= 13.0 - 1e-9), "{wanted:?} {placed:?}");
            assert!(placed.iter().all(|at| (-1e-9..=100.0 + 1e-9).contains(at)), "{wanted:?} {placed:?}");
        }
        assert_eq!(spread_apart(&[10.0, 60.0], 13.0, (0.0, 100.0)), [10.0, 60.0]);
        assert_eq!(spread_apart(&[50.0, 50.0], 10.0, (0.0, 100.0)), [45.0, 55.0]);
    }

    #[test]
    fn a_line_needs_two_points() {
        let mut svg = Svg::new(10.0, 10.0, "a \"figure\"");
        svg.path("c", "", &[(1.0, 1.0)]);
        assert!(!svg.body.contains("path"));
        svg.path("c", "", &[(1.0, 1.0), (2.25, 3.0)]);
        let text = svg.finish();
        assert!(text.contains(r#"d="M1 1L2.2 3""#), "{text}");
        assert!(text.contains("a &quot;figure&quot;"), "{text}");
    }
}
