/// What can be wrong with the matrices handed to this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The packed lower triangle does not have `dim (dim + 1) / 2` values.
    #[error("a packed lower triangle of dimension {dim} holds dim (dim + 1) / 2 values, found {found}")]
    PackedLength {
        /// The dimension claimed.
        dim: usize,
        /// The number of values given.
        found: usize,
    },
    /// A matrix does not have the shape that its partner asks for.
    #[error("`{matrix}` should be {expected:?}, found {found:?}")]
    Shape {
        /// The name of the matrix in the signature.
        matrix: &'static str,
        /// Rows and columns expected.
        expected: (usize, usize),
        /// Rows and columns found.
        found: (usize, usize),
    },
    /// A matrix holds a NaN or an infinity.
    #[error("`{matrix}` holds {value} in row {row}, column {column}")]
    NotFinite {
        /// The name of the matrix in the signature.
        matrix: &'static str,
        /// Row of the first such entry.
        row: usize,
        /// Column of the first such entry.
        column: usize,
        /// The entry.
        value: f64,
    },
    /// The Cholesky factorisation met a pivot that is not positive, or lost in rounding, under every jitter tried.
    #[error("matrix of dimension {dim} is not positive definite: pivot {pivot} is {value:e}")]
    NotPositiveDefinite {
        /// Index of the pivot, as met under the largest jitter tried.
        pivot: usize,
        /// Its value before the square root.
        value: f64,
        /// The dimension of the matrix.
        dim: usize,
    },
    /// The ridge is negative or not a number.
    #[error("ridge should be finite and not negative, found {value}")]
    Ridge {
        /// The ridge given.
        value: f64,
    },
    /// A diagonal metric holds a negative or infinite weight, or a NaN.
    #[error("weights of metric `{metric}` should be finite and not negative, found {value} at {index}")]
    Weight {
        /// The name of the metric in the signature.
        metric: &'static str,
        /// Index of the first such weight.
        index: usize,
        /// The weight.
        value: f64,
    },
    /// A metric is zero, so that nothing can be told from anything else.
    #[error("metric `{metric}` is zero")]
    NoWeight {
        /// The name of the metric in the signature.
        metric: &'static str,
    },
    /// The kept indices are not ascending, distinct and below the dimension.
    #[error("kept indices should be ascending, distinct and below {dim}, found {index} at position {position}")]
    Kept {
        /// The first index that breaks the rule.
        index: usize,
        /// Where it stands in the list.
        position: usize,
        /// The dimension.
        dim: usize,
    },
    /// The rank exceeds the dimension.
    #[error("rank should be at most {largest}, found {rank}")]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// The largest rank possible.
        largest: usize,
    },
    /// An eigenvalue or singular value iteration did not converge.
    #[error("decomposition of a {rows} x {columns} matrix did not converge")]
    NoConvergence {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
    },
}
