//! The device that computes, and what must be known of it.

use burn::tensor::{DType, Device, Tensor, TensorData};
use modegpt_architecture::Matrix;

/// A device with the two facts on which the arithmetic depends.
#[derive(Clone, Debug)]
pub struct Compute {
    /// Where tensors live.
    pub device: Device,
    /// Whether that is the host itself. Then fused attention is exact f32 and reading a tensor costs nothing; on a card
    /// attention is spelt out, because fused kernels there may round to half precision.
    pub is_host: bool,
    /// The largest tensor in bytes that may be made: what the device can bind at once.
    pub max_tensor_bytes: usize,
}

/// Why the device could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// The device failed while computing or reading back.
    #[error("the device failed: {0}")]
    Device(String),
    /// A result is not a number.
    #[error("{what} holds values that are not finite: the weights or the input are broken, or the device is")]
    NotFinite {
        /// What was computed.
        what: String,
    },
    /// More tokens than the model has positions for.
    #[error("{found} tokens do not fit the model's context of {most}")]
    TooLong {
        /// Tokens asked for.
        found: usize,
        /// The model's context.
        most: usize,
    },
    /// The weights could not be had.
    #[error(transparent)]
    Weights(#[from] modegpt_architecture::WeightError),
}

impl Compute {
    /// The processor, through burn's flex backend.
    pub fn host() -> Self {
        Self { device: Device::flex(), is_host: true, max_tensor_bytes: usize::MAX }
    }

    /// A card with the given limit on a single tensor.
    pub fn card(device: Device, max_tensor_bytes: usize) -> Self {
        Self { device, is_host: false, max_tensor_bytes }
    }

    /// Brings row-major values to the device.
    pub fn tensor<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), (&self.device, DType::F32))
    }

    /// Brings a matrix to the device.
    pub fn matrix(&self, matrix: Matrix) -> Tensor<2> {
        self.tensor(matrix.data, [matrix.rows, matrix.cols])
    }

    /// Brings values back to the host, row-major.
    ///
    /// # Errors
    /// [`ComputeError::Device`] if the device fails.
    pub async fn read<const D: usize>(&self, tensor: Tensor<D>) -> Result<Vec<f32>, ComputeError> {
        let data = tensor.into_data_async().await.map_err(|e| ComputeError::Device(format!("{e:?}")))?;
        data.try_into_vec::<f32>().map_err(|e| ComputeError::Device(format!("{e:?}")))
    }

    /// Gives unused memory back, so that a dropped layer does not linger.
    pub fn release(&self) {
        if !self.is_host {
            self.device.memory_cleanup();
        }
    }
}
