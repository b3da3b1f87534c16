use faer::Mat;

use crate::Error;

/// A Gram matrix `G = Σ_t x_tᵀ x_t`: a sum over tokens, neither averaged nor centred.
///
/// Symmetric and positive semi-definite up to rounding; of size `dim x dim`, but only the lower triangle is stored, row
/// by row: `G₀₀, G₁₀, G₁₁, G₂₀, …`. A Gram of dimension 11008 (one Llama-2-7B MLP) takes 0.45 GiB this way.
///
/// # Examples
/// ```
/// use modegpt_linalg::GramAccumulator;
///
/// let mut accumulator = GramAccumulator::new(2);
/// accumulator.add_rows(&[1.0, 2.0, 3.0, 4.0], 2);
/// let gram = accumulator.finish();
/// assert_eq!(gram.packed_lower(), [10.0, 14.0, 20.0]); // 1 + 9, 2 + 12, 4 + 16
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    dim: usize,
    packed: Vec<f64>,
}

impl Gram {
    /// The sum over no tokens.
    pub fn zeros(dim: usize) -> Self {
        Self { dim, packed: vec![0.0; dim * (dim + 1) / 2] }
    }

    /// Takes over a packed lower triangle, as [`packed_lower`](Self::packed_lower) gives it.
    ///
    /// The values are not looked at: functions that compute with a Gram refuse one that [is not
    /// finite](Self::is_finite).
    ///
    /// # Errors
    /// [`Error::PackedLength`] if there are not `dim (dim + 1) / 2` values.
    pub fn from_packed_lower(dim: usize, packed: Vec<f64>) -> Result<Self, Error> {
        let expected = dim.checked_add(1).and_then(|next| dim.checked_mul(next)).map(|twice| twice / 2);
        if expected == Some(packed.len()) {
            Ok(Self { dim, packed })
        } else {
            Err(Error::PackedLength { dim, found: packed.len() })
        }
    }

    /// The lower triangle, row by row: `dim (dim + 1) / 2` values.
    pub fn packed_lower(&self) -> &[f64] {
        &self.packed
    }

    /// Number of rows, and of columns.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The entry in row `i`, column `j`, of either triangle.
    pub fn get(&self, i: usize, j: usize) -> f64 {
        let (row, column) = if i >= j { (i, j) } else { (j, i) };
        assert!(row < self.dim, "entry ({i}, {j}) should lie within a gram of dimension {}", self.dim);
        self.lower_row(row)[column]
    }

    /// `G_ii`: the energy `Σ_t x_ti²` of every coordinate.
    pub fn diagonal(&self) -> Vec<f64> {
        (0..self.dim).map(|i| self.lower_row(i)[i]).collect()
    }

    /// `trace / dim`, the unit in which ridges are given; 0 if `dim` is 0.
    pub fn mean_diagonal(&self) -> f64 {
        if self.dim == 0 { 0.0 } else { self.trace() / self.dim as f64 }
    }

    /// `Σ_i G_ii`, the energy of all coordinates together.
    pub fn trace(&self) -> f64 {
        self.diagonal().iter().sum()
    }

    /// The whole matrix, both triangles.
    pub fn to_mat(&self) -> Mat<f64> {
        Mat::from_fn(self.dim, self.dim, |i, j| self.get(i, j))
    }

    /// `G_JJ`: the rows and columns in `kept`, in that order.
    pub fn submatrix(&self, kept: &[usize]) -> Mat<f64> {
        self.block(kept, kept)
    }

    /// `G_IJ`: the given rows and columns, in that order.
    pub(crate) fn block(&self, rows: &[usize], columns: &[usize]) -> Mat<f64> {
        Mat::from_fn(rows.len(), columns.len(), |i, j| self.get(rows[i], columns[j]))
    }

    /// Adds the sum over other tokens.
    ///
    /// # Errors
    /// [`Error::Shape`] if the dimensions differ.
    pub fn add(&mut self, other: &Self) -> Result<(), Error> {
        if self.dim != other.dim {
            let (expected, found) = ((self.dim, self.dim), (other.dim, other.dim));
            return Err(Error::Shape { matrix: "other", expected, found });
        }
        for (sum, value) in self.packed.iter_mut().zip(&other.packed) {
            *sum += value;
        }
        Ok(())
    }

    /// A mean of this matrix `F`, an estimate from little, and another `H`, of which more is known; the trace stays that of `F`:
    ///
    /// ```text
    /// (1 - w) F + w (tr F / tr H) H
    /// ```
    ///
    /// `weight` is `w`, in `[0, 1]`. If `H` is zero it is `F` itself.
    ///
    /// # Errors
    /// [`Error::Shape`] if the dimensions differ.
    pub fn drawn_towards(&self, other: &Self, weight: f64) -> Result<Self, Error> {
        if self.dim != other.dim {
            let (expected, found) = ((self.dim, self.dim), (other.dim, other.dim));
            return Err(Error::Shape { matrix: "other", expected, found });
        }
        let trace = other.trace();
        if trace <= 0.0 {
            return Ok(self.clone());
        }
        let scale = weight * self.trace() / trace;
        let entries = self.packed.iter().zip(&other.packed);
        Ok(Self { dim: self.dim, packed: entries.map(|(f, h)| (1.0 - weight) * f + scale * h).collect() })
    }

    /// The matrix with everything off its diagonal times `share`: positive semidefinite still, if `share` is in `[0, 1]`.
    #[must_use]
    pub fn with_off_diagonal(mut self, share: f64) -> Self {
        let mut packed = self.packed.as_mut_slice();
        for row in 0..self.dim {
            let (others, rest) = packed.split_at_mut(row);
            for value in others {
                *value *= share;
            }
            packed = &mut rest[1..];
        }
        self
    }

    /// Whether every entry is zero: nothing was ever active.
    pub fn is_zero(&self) -> bool {
        self.packed.iter().all(|&value| value == 0.0)
    }

    /// Whether no entry is NaN or infinite.
    pub fn is_finite(&self) -> bool {
        self.packed.iter().all(|value| value.is_finite())
    }

    /// Adds a product computed elsewhere, of which the lower triangle is read; `product` is row-major.
    pub(crate) fn add_product(&mut self, product: &[f32]) {
        let mut packed = self.packed.as_mut_slice();
        for (i, product_row) in product.chunks_exact(self.dim.max(1)).enumerate() {
            let (row, rest) = packed.split_at_mut(i + 1);
            for (sum, &value) in row.iter_mut().zip(product_row) {
                *sum += f64::from(value);
            }
            packed = rest;
        }
    }

    /// # Errors
    /// [`Error::NotFinite`] with the first entry that is not.
    pub(crate) fn check_finite(&self, matrix: &'static str) -> Result<(), Error> {
        for row in 0..self.dim {
            if let Some(column) = self.lower_row(row).iter().position(|value| !value.is_finite()) {
                return Err(Error::NotFinite { matrix, row, column, value: self.get(row, column) });
            }
        }
        Ok(())
    }

    fn lower_row(&self, i: usize) -> &[f64] {
        &self.packed[i * (i + 1) / 2..][..=i]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SIZES, random_gram};

    #[test]
    fn packed_round_trip() {
        for dim in SIZES.into_iter().chain([0]) {
            let gram = random_gram(dim, 3, 1);
            let again = Gram::from_packed_lower(dim, gram.packed_lower().to_vec()).expect("a right length");
            assert_eq!(gram, again);
            assert_eq!(gram.packed_lower().len(), dim * (dim + 1) / 2);
        }
    }

    #[test]
    fn only_what_is_off_the_diagonal_is_shared_out() {
        let gram = random_gram(5, 9, 3);
        let half = gram.clone().with_off_diagonal(0.5);
        for (i, j) in (0..5).flat_map(|i| (0..5).map(move |j| (i, j))) {
            let share = if i == j { 1.0 } else { 0.5 };
            assert_eq!(half.get(i, j).to_bits(), (share * gram.get(i, j)).to_bits());
        }
        assert_eq!(gram.clone().with_off_diagonal(1.0), gram);
    }

    #[test]
    fn drawn_towards_another_keeps_the_trace() {
        let (few, many) = (random_gram(6, 3, 1), random_gram(6, 50, 2));
        let half = few.drawn_towards(&many, 0.5).expect("equal dimensions");
        assert!((half.trace() / few.trace() - 1.0).abs() < 1e-12);
        let scale = few.trace() / many.trace();
        for (i, j) in [(0, 0), (3, 1), (2, 5)] {
            let expected = 0.5 * few.get(i, j) + 0.5 * scale * many.get(i, j);
            assert!((half.get(i, j) - expected).abs() < 1e-12 * few.trace());
        }
        assert_eq!(few.drawn_towards(&many, 0.0).expect("equal dimensions"), few);
        assert_eq!(few.drawn_towards(&Gram::zeros(6), 0.5).expect("equal dimensions"), few);
        few.drawn_towards(&Gram::zeros(5), 0.5).expect_err("another dimension");
    }

    #[test]
    fn lying_length_is_refused() {
        for (dim, found) in [(2, 2), (2, 4), (0, 1), (usize::MAX, 3), (1 << 40, 3)] {
            let error = Gram::from_packed_lower(dim, vec![0.0; found]).expect_err("a wrong length");
            assert_eq!(error, Error::PackedLength { dim, found });
        }
    }

    #[test]
    fn matrix_is_symmetric_and_agrees_with_every_view() {
        for dim in SIZES {
            let gram = random_gram(dim, 5, 2);
            let matrix = gram.to_mat();
            assert_eq!(matrix, matrix.transpose().to_owned());
            let diagonal: Vec<f64> = (0..dim).map(|i| matrix[(i, i)]).collect();
            assert_eq!(gram.diagonal(), diagonal);
            assert!((gram.mean_diagonal() * dim as f64 - gram.trace()).abs() <= 1e-14 * gram.trace());
            let reversed: Vec<usize> = (0..dim).rev().collect();
            assert_eq!(gram.submatrix(&reversed), matrix.as_ref().reverse_rows_and_cols().to_owned());
        }
    }

    #[test]
    fn add_is_entrywise_and_refuses_another_dimension() {
        let (one, two) = (random_gram(7, 9, 3), random_gram(7, 9, 4));
        let mut sum = one.clone();
        sum.add(&two).expect("equal dimensions");
        assert_eq!(sum.to_mat(), one.to_mat() + two.to_mat());
        let error = sum.add(&Gram::zeros(6)).expect_err("another dimension");
        assert_eq!(error, Error::Shape { matrix: "other", expected: (7, 7), found: (6, 6) });
    }

    #[test]
    fn infinity_is_found_where_it_is() {
        let gram = Gram::from_packed_lower(2, vec![1.0, f64::INFINITY, 1.0]).expect("a right length");
        assert!(!gram.is_finite());
        let error = gram.check_finite("gram").expect_err("an infinity");
        assert_eq!(error, Error::NotFinite { matrix: "gram", row: 1, column: 0, value: f64::INFINITY });
        assert!(Gram::zeros(2).is_finite() && Gram::zeros(2).is_zero());
    }
}
