//! What a comparison of compression methods found: as a value, as a table, and as a page to be read.
//!
//! A [`CompareReport`] holds every number of a grid of methods, sparsities and seeds with the protocol that it was measured
//! by. [`csv`] makes a table of it with a row for each cell, and [`page`] one HTML file with figures that needs nothing
//! else: no script, no font, no network. Both are pure functions; nothing here knows models, files or devices.
//!
//! Names, texts and samples in a report come from files and models, and are escaped wherever they go.
//!
//! ```
//! use modegpt_report::Spread;
//!
//! let seeds = Spread::of(&[21.0, 23.0]).expect("two values");
//! assert_eq!((seeds.mean, seeds.n), (22.0, 2));
//! assert!((seeds.deviation.expect("a deviation") - 2f64.sqrt()).abs() < 1e-12);
//! ```

mod chart;
mod csv;
mod number;
#[expect(clippy::format_push_string, reason = "pieces of a page are read more easily as formats, and are few")]
mod page;
mod report;
mod scale;
mod summary;
mod svg;
#[cfg(test)]
mod testing;

pub use csv::csv;
pub use page::page;
pub use report::{
    Ablation, AblationStep, CalibrationFacts, Cell, CompareReport, Curve, Draw, LayerCurves, LayerFacts, Measured,
    MethodCurves, MethodFacts, ModelFacts, PerModule, Prediction, Protocol, TaskAccuracy, TaskFacts, TextFacts,
    TextScore,
};
pub use summary::Spread;
