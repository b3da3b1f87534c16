//! The figures with their captions.

use crate::chart::{
    Look, ablation, against_bytes, against_speed, allocation, any_promised, ceiling, error_curves, layer_errors, swatch,
};
use crate::svg::escape;
use crate::{AblationStep, CompareReport, number};

/// Figures are numbered in the order in which they appear.
struct Numbered {
    html: String,
    n: usize,
}

impl Numbered {
    /// Adds a figure of several panels, unless there are none. A panel may have a head.
    fn add(&mut self, class: &str, panels: &[(String, String)], caption: &str) {
        if panels.is_empty() {
            return;
        }
        self.n += 1;
        // What is wider than a small window is scrolled, by keys too.
        let focus = if class.contains("wide") { " tabindex=\"0\"" } else { "" };
        self.html += &format!("<figure>\n<div class=\"panels {class}\"{focus}>\n");
        for (head, svg) in panels {
            let head = if head.is_empty() { String::new() } else { format!("<h3>{head}</h3>\n") };
            self.html += &format!("<div class=\"panel\">{head}{svg}</div>\n");
        }
        self.html += &format!("</div>\n<figcaption><b>Figure {}.</b> {caption}</figcaption>\n</figure>\n", self.n);
    }
}

/// All figures that the report has something for.
pub(super) fn figures(report: &CompareReport) -> String {
    let mut all = Numbered { html: String::new(), n: 0 };
    for (index, text) in report.protocol.texts.iter().enumerate() {
        // Speed and bytes do not depend on the text.
        let speed = if index == 0 { against_speed(report, index) } else { None };
        let panels: Vec<_> =
            [against_bytes(report, index), speed].into_iter().flatten().map(|svg| (String::new(), svg)).collect();
        let mut caption = trade_off_caption(report, &text.name);
        if ceiling(report, index).is_some() {
            caption += " Lines that end in ↑ go beyond the axis; their numbers stand in the table.";
        }
        all.add("two", &panels, &caption);
    }
    if let Some(sparsity) = report.shown_sparsity() {
        add_ablation(&mut all, report);
        add_allocation(&mut all, report, sparsity);
        add_curves(&mut all, report, sparsity);
        let errors: Vec<_> = layer_errors(report, sparsity).map(|svg| (String::new(), svg)).into_iter().collect();
        let promised = if any_promised(report, sparsity) {
            " Dashed: what the error curves promised, added up over the layers."
        } else {
            ""
        };
        let caption = format!(
            "Error that layers really incur at {}: squared distance of the residual stream from the dense model’s, behind \
             each layer with all layers compressed, as a share of its energy.{promised}{}",
            number::percent(sparsity),
            first_seed(report),
        );
        all.add("one", &errors, &caption);
    }
    if all.n == 0 { String::new() } else { format!("<section>\n<h2>Figures</h2>\n{}</section>\n", all.html) }
}

fn trade_off_caption(report: &CompareReport, text: &str) -> String {
    let whiskers =
        if report.n_seeds() > 1 { " Whiskers are standard deviations over draws of calibration samples." } else { "" };
    let n = report.sparsities.len();
    let points = if n == 1 { "one sparsity".to_owned() } else { format!("{n} sparsities") };
    format!("Perplexity on {}: what a model costs to keep and to run. Each method at {points}.{whiskers}", escape(text))
}

fn first_seed(report: &CompareReport) -> &'static str {
    if report.n_seeds() > 1 { " First draw of samples." } else { "" }
}

fn add_ablation(all: &mut Numbered, report: &CompareReport) {
    let Some(found) = &report.ablation else { return };
    let steps: Vec<&AblationStep> = found.added.iter().chain(&found.left_out).collect();
    let panels = [("One decision after another", &found.added), ("Everything but one decision", &found.left_out)];
    let panels: Vec<_> = panels
        .into_iter()
        .filter_map(|(head, part)| Some((head.to_owned(), ablation(report, part, &steps)?)))
        .collect();
    let dots = if report.n_seeds() > 1 { " Dots are single draws of calibration samples." } else { "" };
    let caption = format!("What each decision is worth at {}.{dots}", number::percent(found.sparsity));
    all.add("two", &panels, &caption);
}

fn add_allocation(all: &mut Numbered, report: &CompareReport, sparsity: f64) {
    let panels: Vec<_> = report
        .methods
        .iter()
        .filter_map(|method| {
            let head = format!("{}{}", swatch(Look::of(report, &method.name)), escape(&method.name));
            Some((head, allocation(report, &method.name, sparsity)?))
        })
        .collect();
    let caption = format!(
        "Where {} was taken from: share removed of each layer’s MLP, query–key (QK) and value–output (VO) weights{}.",
        number::percent(sparsity),
        if report.n_seeds() > 1 { ", mean over draws" } else { "" },
    );
    all.add("small", &panels, &caption);
}

fn add_curves(all: &mut Numbered, report: &CompareReport, sparsity: f64) {
    for curves in &report.curves {
        let Some(svg) = error_curves(report, curves, sparsity) else { continue };
        let n = curves.layers.len();
        let caption = format!(
            "What layers offered to {}{}: predicted error ({}) of each module at every width, from the first layer \
             <span class=\"ramp\"></span> to the last of {n}. Dots: the widths chosen at {}.{}",
            swatch(Look::of(report, &curves.method)),
            escape(&curves.method),
            escape(&curves.unit),
            number::percent(sparsity),
            first_seed(report),
        );
        all.add("one wide", &[(String::new(), svg)], &caption);
    }
}
