use crate::{Gram, GramAccumulator};

/// Sums one Gram matrix for each head of an activation whose rows are the heads side by side.
///
/// ```text
/// G_h = Σ_t x_hᵀ x_h,      x = [x_1 … x_H]
/// ```
///
/// Each sum is that of a [`GramAccumulator`].
///
/// ```
/// let mut heads = modegpt_linalg::HeadGrams::new(2, 1);
/// heads.add_rows(&[1.0, 10.0, 2.0, 20.0]);
/// let grams = heads.finish();
/// assert_eq!((grams[0].get(0, 0), grams[1].get(0, 0)), (5.0, 500.0));
/// ```
#[derive(Debug, Clone)]
pub struct HeadGrams {
    grams: Vec<GramAccumulator>,
    width: usize,
}

impl HeadGrams {
    /// The sums over no rows of `n_heads` heads of `width`.
    pub fn new(n_heads: usize, width: usize) -> Self {
        Self { grams: (0..n_heads).map(|_| GramAccumulator::new(width)).collect(), width }
    }

    /// Width of a head.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Adds rows: `[n_rows, n_heads * width]`.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn add_rows(&mut self, rows: &[f32]) {
        let stride = self.grams.len() * self.width;
        assert!(rows.len().is_multiple_of(stride), "`rows` should hold rows of {stride}, found {} values", rows.len());
        let n_rows = rows.len().checked_div(stride).unwrap_or(0);
        for (head, gram) in self.grams.iter_mut().enumerate() {
            gram.add_rows_strided(rows, n_rows, stride, head * self.width);
        }
    }

    /// The sums, head by head.
    pub fn finish(self) -> Vec<Gram> {
        self.grams.into_iter().map(GramAccumulator::finish).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    /// `[n_rows, n_heads * width]` of small integers, whose products are summed without rounding.
    fn rows(n_rows: usize, stride: usize) -> Vec<f32> {
        (0..n_rows * stride).map(|at| ((at * 7 + at / stride) % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn every_head_has_the_gram_of_its_columns_however_the_rows_come() {
        for (n_heads, width) in [(1, 1), (3, 5), (4, 16), (2, 33)] {
            let stride = n_heads * width;
            let rows = rows(600, stride);
            let mut sums = HeadGrams::new(n_heads, width);
            for piece in [&rows[..stride], &[], &rows[stride..]] {
                sums.add_rows(piece);
            }
            let found = sums.finish();
            assert_eq!(found.len(), n_heads);
            for (head, found) in found.iter().enumerate() {
                let columns = rows.chunks_exact(stride).flat_map(|row| &row[head * width..(head + 1) * width]);
                let columns: Vec<f32> = columns.copied().collect();
                assert_eq!(found, &reference::gram(&columns, 600, width), "head {head} of {n_heads} x {width}");
            }
        }
    }

    #[test]
    fn without_rows_or_heads_the_sums_are_empty() {
        assert_eq!(HeadGrams::new(2, 3).finish(), [Gram::zeros(3), Gram::zeros(3)]);
        let mut none = HeadGrams::new(0, 4);
        none.add_rows(&[]);
        assert_eq!((none.width(), none.finish()), (4, Vec::new()));
    }

    #[test]
    #[should_panic(expected = "`rows` should hold rows of 6, found 7 values")]
    fn half_a_row_is_refused() {
        HeadGrams::new(2, 3).add_rows(&[0.0; 7]);
    }
}
