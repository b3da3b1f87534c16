//! Matrices on the host and the element types that checkpoints use.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single-precision number.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name that `config.json` uses for it (`torch_dtype`).
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Widens little-endian stored elements to `f32`, exactly.
    ///
    /// `bytes` holds whole elements; a remainder is ignored.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Self::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Self::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }

    /// Rounds `values` to this type, to the nearest even, as little-endian bytes.
    ///
    /// A finite value beyond the range of `f16` becomes an infinity; callers that must not lose it check first.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    }
}

/// A dense matrix on the host, row-major. A weight is stored as `[d_in, d_out]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// `rows * cols` elements, row after row.
    pub data: Vec<f32>,
}

impl Matrix {
    /// A matrix of the given shape from row-major elements.
    ///
    /// # Panics
    /// If `data` does not hold `rows * cols` elements.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), rows * cols, "a {rows} x {cols} matrix needs {} elements", rows * cols);
        Self { rows, cols, data }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// The transposed matrix.
    pub fn transposed(&self) -> Self {
        // In square tiles, so that both sides stay in the cache.
        const TILE: usize = 32;
        let mut data = vec![0.0; self.data.len()];
        for row_start in (0..self.rows).step_by(TILE) {
            for col_start in (0..self.cols).step_by(TILE) {
                for row in row_start..(row_start + TILE).min(self.rows) {
                    for col in col_start..(col_start + TILE).min(self.cols) {
                        data[col * self.rows + row] = self.data[row * self.cols + col];
                    }
                }
            }
        }
        Self { rows: self.cols, cols: self.rows, data }
    }

    /// The chosen columns, in the given order.
    pub fn select_columns(&self, columns: &[usize]) -> Self {
        let data = (0..self.rows).flat_map(|r| columns.iter().map(move |&c| self.data[r * self.cols + c])).collect();
        Self { rows: self.rows, cols: columns.len(), data }
    }

    /// Columns `start..end`.
    pub fn column_range(&self, start: usize, end: usize) -> Self {
        let data = (0..self.rows).flat_map(|r| &self.row(r)[start..end]).copied().collect();
        Self { rows: self.rows, cols: end - start, data }
    }

    /// Rows `start..end`.
    pub fn row_range(&self, start: usize, end: usize) -> Self {
        Self { rows: end - start, cols: self.cols, data: self.data[start * self.cols..end * self.cols].to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_twice_gives_the_matrix_back() {
        let matrix = Matrix::new(37, 65, (0..37 * 65).map(|i| i as f32).collect());
        assert_eq!(matrix.transposed().transposed(), matrix);
        assert_eq!(matrix.transposed().row(3)[5].to_bits(), matrix.row(5)[3].to_bits());
    }

    #[test]
    fn stored_elements_survive_decoding_and_encoding() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let bytes: Vec<u8> = [0.0f32, 1.0, -2.5, 0.15625].iter().flat_map(|v| dtype.encode(&[*v])).collect();
            assert_eq!(dtype.encode(&dtype.decode(&bytes)), bytes, "{dtype:?}");
        }
    }
}
