//! Between the `f32` weights of a model and the `f64` matrices that decompositions work on.

use faer::{Mat, MatRef};
use modegpt_architecture::{Linear, Matrix};

use crate::{Error, Layer, Module};

/// Where in a model an error happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) layer: usize,
    pub(crate) module: Module,
}

impl Module {
    /// This module of `layer`.
    pub(crate) fn of(self, layer: &Layer<'_>) -> Place {
        Place { layer: layer.index, module: self }
    }
}

impl Place {
    pub(crate) fn numerics(self, source: modegpt_linalg::Error) -> Error {
        Error::Numerics { layer: self.layer, module: self.module, source }
    }

    /// Refuses what is not as expected.
    pub(crate) fn expect<T: PartialEq + std::fmt::Debug>(
        self,
        name: &'static str,
        expected: &T,
        found: &T,
    ) -> Result<(), Error> {
        if expected == found {
            return Ok(());
        }
        Err(self.mismatch(name, format!("{expected:?}"), format!("{found:?}")))
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers hand over literals, numbers and formatted text alike")]
    pub(crate) fn mismatch(self, name: &'static str, expected: impl ToString, found: impl ToString) -> Error {
        let (expected, found) = (expected.to_string(), found.to_string());
        Error::Mismatch { layer: self.layer, module: self.module, name, expected, found }
    }

    pub(crate) fn check_finite(self, tensor: &'static str, values: &[f32]) -> Result<(), Error> {
        if values.iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        Err(Error::NotFinite { layer: self.layer, module: self.module, tensor })
    }

    /// Rounds `weight` to `f32`, the only place where precision is given up.
    pub(crate) fn round(self, tensor: &'static str, weight: MatRef<'_, f64>) -> Result<Matrix, Error> {
        let (rows, cols) = weight.shape();
        let data: Vec<f32> = (0..rows).flat_map(|r| (0..cols).map(move |c| weight[(r, c)] as f32)).collect();
        self.check_finite(tensor, &data)?;
        Ok(Matrix::new(rows, cols, data))
    }
}

/// `matrix` in double precision.
pub(crate) fn widen(matrix: &Matrix) -> Mat<f64> {
    Mat::from_fn(matrix.rows, matrix.cols, |row, col| f64::from(matrix.data[row * matrix.cols + col]))
}

/// The linear map to the chosen outputs only, in the given order.
pub(crate) fn select_outputs(linear: &Linear, kept: &[usize]) -> Linear {
    Linear {
        weight: linear.weight.select_columns(kept),
        bias: linear.bias.as_ref().map(|bias| kept.iter().map(|&output| bias[output]).collect()),
    }
}
