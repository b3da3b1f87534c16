//! `y = x W + b`

use burn::tensor::Tensor;
use modegpt_architecture::Linear as LinearWeights;

use crate::Compute;

/// A linear map on the device.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `[d_in, d_out]`
    weight: Tensor<2>,
    /// `[1, d_out]`
    bias: Option<Tensor<2>>,
}

impl Linear {
    pub(crate) fn new(weights: LinearWeights, compute: &Compute) -> Self {
        let bias = weights.bias.map(|bias| {
            let width = bias.len();
            compute.tensor(bias, [1, width])
        });
        Self { weight: compute.matrix(weights.weight), bias }
    }

    /// `x: [rows, d_in]` → `[rows, d_out]`
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = x.matmul(self.weight.clone());
        match &self.bias {
            Some(bias) => y + bias.clone(),
            None => y,
        }
    }

    /// Splits off the bias: attention averages values with weights that sum to one, so a value's bias may be added after.
    pub(crate) fn split_bias(self) -> (Self, Option<Tensor<2>>) {
        (Self { weight: self.weight, bias: None }, self.bias)
    }
}
