//! What can go wrong with statistics.

/// Why statistics cannot be merged or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two values that belong together differ in shape.
    #[error("statistic `{field}`: expected {expected}, found {found}")]
    Shape {
        /// The statistic.
        field: &'static str,
        /// What would fit.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A sum is NaN or infinite.
    #[error("statistic `{field}` holds a value that is not finite")]
    NotFinite {
        /// The statistic.
        field: &'static str,
    },
    /// A Gram matrix has a negative number on its diagonal, where only sums of squares belong.
    #[error("statistic `{field}`: diagonal element {index} is negative ({value})")]
    NegativeDiagonal {
        /// The statistic.
        field: &'static str,
        /// Position on the diagonal.
        index: usize,
        /// The number found there.
        value: f64,
    },
    /// A sum of magnitudes is negative.
    #[error("statistic `{field}`: element {index} is negative ({value})")]
    NegativeMagnitude {
        /// The statistic.
        field: &'static str,
        /// Which input.
        index: usize,
        /// The number found there.
        value: f64,
    },
    /// The number of tokens left the range of 64 bits.
    #[error("statistic `n_tokens`: the sum of {left} and {right} exceeds 64 bits")]
    TooManyTokens {
        /// One count.
        left: u64,
        /// The other.
        right: u64,
    },
    /// The bytes are not a safetensors file.
    #[error("statistics are not a valid safetensors file: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// The header of the statistics is absent or unreadable.
    #[error("statistics header: {reason}")]
    Header {
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written in another format.
    #[error("statistics have format version {found}, expected {expected}")]
    Version {
        /// The version that can be read.
        expected: u32,
        /// The version found.
        found: u32,
    },
    /// A tensor is absent.
    #[error("statistics lack the tensor `{name}`")]
    MissingTensor {
        /// Its name.
        name: &'static str,
    },
    /// A tensor is present that the format does not know.
    #[error("statistics hold the unknown tensor `{name}`")]
    UnknownTensor {
        /// Its name.
        name: String,
    },
}
