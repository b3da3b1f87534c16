//! What is derived from the numbers of a report.

use crate::{Cell, CompareReport};

/// Mean and spread over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the sample, with `n - 1`; `None` of a single value.
    pub deviation: Option<f64>,
    /// How many values.
    pub n: usize,
}

impl Spread {
    /// Of finite values; `None` if there are none, or if one is not finite.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        Some(Self { mean, deviation, n })
    }
}

/// The recipes of the paper that others are measured against.
const PAPERS: [&str; 2] = ["paper", "paper-uniform"];

/// Whether a method is the paper's, with either allocation.
pub(crate) fn is_paper(method: &str) -> bool {
    PAPERS.contains(&method)
}

impl CompareReport {
    /// The cells of a method at a sparsity, by seed.
    pub(crate) fn cells_of<'a>(&'a self, method: &'a str, sparsity: f64) -> impl Iterator<Item = &'a Cell> + 'a {
        self.cells.iter().filter(move |cell| cell.method == method && same(cell.sparsity, sparsity))
    }

    /// Mean and spread over seeds of something about a method at a sparsity.
    pub(crate) fn spread(&self, method: &str, sparsity: f64, value: impl Fn(&Cell) -> Option<f64>) -> Option<Spread> {
        let values: Option<Vec<f64>> = self.cells_of(method, sparsity).map(value).collect();
        Spread::of(&values?)
    }

    /// Mean and spread over seeds of the perplexity of a method on a text of the protocol.
    pub fn perplexity(&self, method: &str, sparsity: f64, text: usize) -> Option<Spread> {
        self.spread(method, sparsity, |cell| Some(cell.measured.texts.get(text)?.perplexity))
    }

    /// Mean over seeds of `ln perplexity(cell) - ln perplexity(dense)` on a text.
    pub(crate) fn rise(&self, method: &str, sparsity: f64, text: usize) -> Option<Spread> {
        self.spread(method, sparsity, |cell| self.rise_of(cell, text))
    }

    /// `ln perplexity(cell) - ln perplexity(dense)` on a text.
    pub(crate) fn rise_of(&self, cell: &Cell, text: usize) -> Option<f64> {
        let (dense, small) = (self.dense.texts.get(text)?, cell.measured.texts.get(text)?);
        Some(small.perplexity.ln() - dense.perplexity.ln())
    }

    /// The least mean rise of the paper's recipes at a sparsity.
    pub(crate) fn paper_rise(&self, sparsity: f64, text: usize) -> Option<f64> {
        let rises = PAPERS.iter().filter_map(|method| self.rise(method, sparsity, text));
        rises.map(|rise| rise.mean).min_by(f64::total_cmp).filter(|rise| *rise > 0.0)
    }

    /// The mean rise of ln perplexity by a method, as a share of that by the better of `paper` and `paper-uniform` at the
    /// same sparsity; `None` if the report has neither.
    pub fn share_of_paper(&self, method: &str, sparsity: f64, text: usize) -> Option<f64> {
        Some(self.rise(method, sparsity, text)?.mean / self.paper_rise(sparsity, text)?)
    }

    /// The sparsity that figures of single models show: the listed one closest to 30 %.
    pub(crate) fn shown_sparsity(&self) -> Option<f64> {
        let distance = |sparsity: &f64| (sparsity - 0.3).abs();
        self.sparsities.iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b)))
    }

    /// Seeds in the order drawn.
    pub(crate) fn n_seeds(&self) -> usize {
        self.protocol.calibration.draws.len()
    }
}

/// Whether two sparsities are the same as written.
pub(crate) fn same(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::report;

    #[test]
    fn spread_is_that_of_a_sample() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
        assert_eq!(Spread::of(&[3.0]), Some(Spread { mean: 3.0, deviation: None, n: 1 }));
        let spread = Spread::of(&[1.0, 2.0, 3.0]).expect("three values");
        assert_eq!(spread, Spread { mean: 2.0, deviation: Some(1.0), n: 3 });
    }

    #[test]
    fn rises_are_shares_of_the_better_paper_recipe() {
        let report = report();
        let paper = report.rise("paper", 0.3, 0).expect("cells").mean;
        let uniform = report.rise("paper-uniform", 0.3, 0).expect("cells").mean;
        assert!(uniform < paper);
        assert_eq!(report.share_of_paper("paper-uniform", 0.3, 0), Some(1.0));
        let best = report.rise("best", 0.3, 0).expect("cells").mean;
        let share = report.share_of_paper("best", 0.3, 0).expect("a share");
        assert!((share - best / uniform).abs() < 1e-12);
        assert_eq!(report.share_of_paper("best", 0.9, 0), None);
        assert_eq!(report.share_of_paper("unheard-of", 0.3, 0), None);
    }

    #[test]
    fn without_the_paper_there_is_no_share() {
        let mut report = report();
        report.cells.retain(|cell| !is_paper(&cell.method));
        assert_eq!(report.share_of_paper("best", 0.3, 0), None);
    }
}
