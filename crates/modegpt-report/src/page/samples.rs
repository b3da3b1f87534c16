//! What the models write.

use crate::chart::{Look, swatch};
use crate::svg::escape;
use crate::{CompareReport, number};

/// The continuation of the prompt by the dense model and by each method at one sparsity, side by side.
pub(super) fn samples(report: &CompareReport) -> String {
    let Some(sparsity) = report.shown_sparsity() else { return String::new() };
    let compressed = report.methods.iter().filter_map(|method| {
        let cell = report.cells_of(&method.name, sparsity).next()?;
        let head = format!("{}{}", swatch(Look::of(report, &method.name)), escape(&method.name));
        Some((head, cell.measured.sample.as_str()))
    });
    let all: Vec<(String, &str)> =
        std::iter::once(("dense".to_owned(), report.dense.sample.as_str())).chain(compressed).collect();
    if all.iter().all(|(_, sample)| sample.trim().is_empty()) {
        return String::new();
    }
    let mut out = format!(
        "<section>\n<h2>Samples</h2>\n<p class=\"note\">The likeliest {} tokens after “{}”, at {}, for the first draw of \
         calibration samples.</p>\n<div class=\"samples\">\n",
        report.protocol.sample_tokens,
        escape(&report.protocol.prompt),
        number::percent(sparsity),
    );
    for (head, sample) in all {
        out += &format!(
            "<figure class=\"sample\"><figcaption>{head}</figcaption><blockquote>{}</blockquote></figure>\n",
            escape(sample.trim())
        );
    }
    out + "</div>\n</section>\n"
}
