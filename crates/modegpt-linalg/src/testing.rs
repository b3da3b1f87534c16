//! Seeded random matrices and the one comparator of the unit tests.

use faer::{Mat, MatRef};

use crate::{Gram, reference};

/// Dimensions on purpose awkward: the smallest, odd ones, one past a power of two.
pub(crate) const SIZES: [usize; 5] = [1, 2, 7, 33, 65];

/// `SplitMix64`: a few lines, and the same numbers everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Mean 0, variance 1 (Box-Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn matrix(&mut self, rows: usize, columns: usize) -> Mat<f64> {
        Mat::from_fn(rows, columns, |_, _| self.normal())
    }
}

/// `XᵀX` in f64, exact to f64 rounding; `rows` is `[n_rows, dim]`.
pub(crate) fn gram_of(rows: MatRef<'_, f64>) -> Gram {
    let product = rows.transpose() * rows;
    let packed = (0..product.nrows()).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|at| product[at]).collect();
    Gram::from_packed_lower(product.nrows(), packed).expect("a triangle")
}

/// Gram of `n_rows` correlated rows; positive definite if `n_rows >= dim`.
pub(crate) fn random_gram(dim: usize, n_rows: usize, seed: u64) -> Gram {
    gram_of(correlated_rows(dim, n_rows, seed).as_ref())
}

/// Rows whose columns share a direction and differ in scale, as activations do.
pub(crate) fn correlated_rows(dim: usize, n_rows: usize, seed: u64) -> Mat<f64> {
    let mut random = Random::new(seed);
    let shared = random.matrix(n_rows, 1);
    let own = random.matrix(n_rows, dim);
    Mat::from_fn(n_rows, dim, |t, j| (own[(t, j)] + 0.7 * shared[(t, 0)]) * (1.0 + (j % 5) as f64))
}

pub(crate) fn random_kept(dim: usize, k: usize, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let scores: Vec<f64> = (0..dim).map(|_| random.uniform()).collect();
    crate::top_k(&scores, k)
}

/// Largest difference relative to the largest expected entry.
#[track_caller]
pub(crate) fn assert_close(found: MatRef<'_, f64>, expected: MatRef<'_, f64>, tolerance: f64) {
    assert_eq!(found.shape(), expected.shape());
    let difference = (found - expected).norm_max() / expected.norm_max().max(f64::MIN_POSITIVE);
    assert!(difference <= tolerance, "largest relative difference {difference:e}, tolerated {tolerance:e}");
}

/// As [`assert_close`], for two numbers.
#[track_caller]
pub(crate) fn assert_near(found: f64, expected: f64, tolerance: f64) {
    let difference = (found - expected).abs();
    assert!(difference <= tolerance * expected.abs(), "found {found:e}, expected {expected:e} within {tolerance:e}");
}

pub(crate) fn column(values: &[f64]) -> Mat<f64> {
    Mat::from_fn(values.len(), 1, |i, _| values[i])
}

#[test]
fn both_grams_agree() {
    let rows: Vec<f32> = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let matrix = Mat::from_fn(3, 2, |t, j| f64::from(rows[t * 2 + j]));
    assert_eq!(gram_of(matrix.as_ref()), reference::gram(&rows, 3, 2));
}
