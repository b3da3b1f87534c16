use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};

use crate::Gram;

/// Rows whose products are added up in f32 before they go to f64.
///
/// More rows make fewer additions in f64, which wait for memory. Measured on 8192 rows of 1536: 95, 110, 123 and 115
/// GFLOP/s (counted as `2 n d²`, one AVX-512 core) for 128, 256, 512 and 1024 rows.
const MAX_BLOCK_ROWS: usize = 512;

/// Rows of one product, so that no f32 sum is a longer chain than this: two chains of 256 instead of one of 512 bring the
/// largest relative error of activations of one sign from 9e-7 to 4e-7, at no cost in speed.
const MAX_CHAIN_ROWS: usize = 256;

/// Below this dimension one thread is faster than waking others.
const MIN_PARALLEL_DIM: usize = 256;

/// Sums `xᵀ x` over rows of f32 activations: f32 products of at most 512 rows, added up in f64.
///
/// ```text
/// G = Σ_b f64( X_bᵀ X_b )        lower triangle only, half the work of the full product
/// ```
///
/// The relative error is below 1e-6 of `√(G_ii G_jj)`, however different the scales of the columns. Hand over hundreds
/// of rows at a time: each call adds up one triangle of f64. NaN and infinity are carried into the sum, where
/// [`Gram::is_finite`] finds them.
#[derive(Debug, Clone)]
pub struct GramAccumulator {
    gram: Gram,
    /// Row-major `dim x dim`; empty until rows arrive, since products from elsewhere need none.
    product: Vec<f32>,
}

impl GramAccumulator {
    /// The sum over no rows of width `dim`.
    pub fn new(dim: usize) -> Self {
        Self { gram: Gram::zeros(dim), product: Vec::new() }
    }

    /// Adds `n_rows` contiguous rows; `rows` is `[n_rows, dim]`.
    pub fn add_rows(&mut self, rows: &[f32], n_rows: usize) {
        let dim = self.gram.dim();
        assert_eq!(rows.len(), n_rows * dim, "`rows` should hold {n_rows} rows of {dim}");
        self.add_rows_strided(rows, n_rows, dim, 0);
    }

    /// Adds the columns `first_column..first_column + dim` of wider rows, such as one head's slice.
    ///
    /// `rows` is `[n_rows, row_stride]`, of which the last row may end after the slice.
    pub fn add_rows_strided(&mut self, rows: &[f32], n_rows: usize, row_stride: usize, first_column: usize) {
        let dim = self.gram.dim();
        assert!(
            first_column.checked_add(dim).is_some_and(|end| end <= row_stride),
            "columns from {first_column}, {dim} of them, should lie within rows of {row_stride}"
        );
        if n_rows == 0 || dim == 0 {
            return;
        }
        let needed = (n_rows - 1) * row_stride + first_column + dim;
        assert!(rows.len() >= needed, "`rows` should hold at least {needed} values, found {}", rows.len());
        for first_row in (0..n_rows).step_by(MAX_BLOCK_ROWS) {
            let block = &rows[first_row * row_stride + first_column..];
            self.add_row_block(block, MAX_BLOCK_ROWS.min(n_rows - first_row), row_stride);
        }
    }

    /// Adds a finished product `X_bᵀ X_b` of at most 512 rows, computed elsewhere (on a GPU) in f32.
    ///
    /// `block` is `[dim, dim]`, row-major; only the lower triangle is read.
    pub fn add_block(&mut self, block: &[f32]) {
        let dim = self.gram.dim();
        assert_eq!(block.len(), dim * dim, "`block` should be {dim} x {dim}");
        self.gram.add_product(block);
    }

    /// The sum.
    pub fn finish(self) -> Gram {
        self.gram
    }

    fn add_row_block(&mut self, block: &[f32], n_rows: usize, row_stride: usize) {
        let dim = self.gram.dim();
        self.product.resize(dim * dim, 0.0);
        for first_row in (0..n_rows).step_by(MAX_CHAIN_ROWS) {
            let rows = &block[first_row * row_stride..];
            let n_rows = MAX_CHAIN_ROWS.min(n_rows - first_row);
            let transposed = MatRef::from_column_major_slice_with_stride(rows, dim, n_rows, row_stride); // [dim, n_rows]
            let accum = if first_row == 0 { Accum::Replace } else { Accum::Add };
            multiply_by_transpose(&mut self.product, accum, transposed);
        }
        self.gram.add_product(&self.product);
    }
}

/// The lower triangle of `transposed transposedᵀ`, into or onto the row-major `product`.
fn multiply_by_transpose(product: &mut [f32], accum: Accum, transposed: MatRef<'_, f32>) {
    let dim = transposed.nrows();
    triangular::matmul(
        MatMut::from_row_major_slice_mut(product, dim, dim),
        BlockStructure::TriangularLower,
        accum,
        transposed,
        BlockStructure::Rectangular,
        transposed.transpose(),
        BlockStructure::Rectangular,
        1.0,
        if dim < MIN_PARALLEL_DIM { Par::Seq } else { faer::get_global_parallelism() },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{Random, SIZES};

    /// Largest difference relative to `√(G_ii G_jj)`, in which f32 rounding is the same for columns of any scale.
    fn largest_relative_difference(found: &Gram, expected: &Gram) -> f64 {
        let scale: Vec<f64> = expected.diagonal().iter().map(|energy| energy.sqrt()).collect();
        let pairs = (0..expected.dim()).flat_map(|i| (0..=i).map(move |j| (i, j)));
        pairs.map(|(i, j)| (found.get(i, j) - expected.get(i, j)).abs() / (scale[i] * scale[j])).fold(0.0, f64::max)
    }

    fn accumulate(rows: &[f32], n_rows: usize, dim: usize) -> Gram {
        let mut accumulator = GramAccumulator::new(dim);
        accumulator.add_rows(rows, n_rows);
        accumulator.finish()
    }

    /// Column `j` is scaled by `1e-4 … 1e4`; every other one is a positive activation, whose sums only grow.
    fn ill_scaled_rows(n_rows: usize, dim: usize) -> Vec<f32> {
        let mut random = Random::new(5);
        let scales: Vec<f64> = (0..dim).map(|j| 10f64.powi(j as i32 % 9 - 4)).collect();
        (0..n_rows * dim)
            .map(|at| {
                let value = random.normal() * scales[at % dim];
                (if at % 2 == 0 { value } else { value.abs() }) as f32
            })
            .collect()
    }

    #[test]
    fn agrees_with_f64_on_ill_scaled_columns() {
        for dim in SIZES {
            for n_rows in [1, 511, 512, 513, 3000] {
                let rows = ill_scaled_rows(n_rows, dim);
                let expected = reference::gram(&rows, n_rows, dim);
                let difference = largest_relative_difference(&accumulate(&rows, n_rows, dim), &expected);
                assert!(difference <= 1e-6, "{n_rows} x {dim}: {difference:e}");
            }
        }
    }

    #[test]
    fn large_enough_for_threads_agrees_with_f64() {
        let (n_rows, dim) = (600, MIN_PARALLEL_DIM + 1);
        let rows = ill_scaled_rows(n_rows, dim);
        let difference =
            largest_relative_difference(&accumulate(&rows, n_rows, dim), &reference::gram(&rows, n_rows, dim));
        assert!(difference <= 1e-6, "{difference:e}");
    }

    #[test]
    fn parts_sum_to_the_whole() {
        let (n_rows, dim) = (1300, 33);
        let rows = ill_scaled_rows(n_rows, dim);
        let whole = accumulate(&rows, n_rows, dim);
        for at in [0, 1, 512, 1024, 1299] {
            let (head, tail) = rows.split_at(at * dim);
            let mut accumulator = GramAccumulator::new(dim);
            accumulator.add_rows(head, at);
            accumulator.add_rows(tail, n_rows - at);
            let difference = largest_relative_difference(&accumulator.finish(), &whole);
            assert!(difference <= if at % MAX_BLOCK_ROWS == 0 { 1e-15 } else { 1e-6 }, "{at}: {difference:e}");
        }
    }

    #[test]
    fn strided_slice_is_the_slice() {
        let (n_rows, wide, dim) = (700, 40, 8);
        let rows = ill_scaled_rows(n_rows, wide);
        for first_column in [0, 3, 32] {
            let slice: Vec<f32> =
                rows.chunks_exact(wide).flat_map(|row| row[first_column..first_column + dim].to_vec()).collect();
            let mut accumulator = GramAccumulator::new(dim);
            let end = (n_rows - 1) * wide + first_column + dim;
            accumulator.add_rows_strided(&rows[..end], n_rows, wide, first_column);
            let expected = reference::gram(&slice, n_rows, dim);
            let difference = largest_relative_difference(&accumulator.finish(), &expected);
            assert!(difference <= 1e-6, "{first_column}: {difference:e}");
        }
    }

    #[test]
    fn finished_block_is_added_from_its_lower_triangle() {
        let mut accumulator = GramAccumulator::new(2);
        accumulator.add_rows(&[1.0, 2.0], 1);
        accumulator.add_block(&[10.0, f32::NAN, 20.0, 30.0]);
        assert_eq!(accumulator.finish().packed_lower(), [11.0, 22.0, 34.0]);
    }

    #[test]
    fn nan_is_not_lost() {
        let mut rows = vec![1.0; 20];
        rows[7] = f32::NAN;
        assert!(!accumulate(&rows, 10, 2).is_finite());
    }

    #[test]
    fn nothing_sums_to_zero() {
        assert_eq!(accumulate(&[], 0, 3), Gram::zeros(3));
        assert_eq!(accumulate(&[], 5, 0), Gram::zeros(0));
    }

    #[test]
    #[should_panic(expected = "should lie within rows of 4")]
    fn slice_beyond_the_row_panics() {
        GramAccumulator::new(3).add_rows_strided(&[0.0; 8], 2, 4, 2);
    }
}
