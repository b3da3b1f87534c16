//! `y = x W + b`, or `y = (x A) B + b`

use burn::tensor::Tensor;
use modegpt_architecture::{Factors, Linear as LinearWeights, Weight as HostWeight};

use crate::Compute;

/// A linear map on the device.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    weight: Weight,
    /// `[1, d_out]`
    bias: Option<Tensor<2>>,
}

#[expect(clippy::large_enum_variant, reason = "the large variant is the usual one, and seven of them make a block")]
#[derive(Clone, Debug)]
enum Weight {
    /// `[d_in, d_out]`
    Dense(Tensor<2>),
    /// `A: [d_in, rank]` and `B: [rank, d_out]`, never multiplied out.
    Factorised(Box<[Tensor<2>; 2]>),
}

impl Linear {
    pub(crate) fn new(weights: impl Into<LinearWeights<HostWeight>>, compute: &Compute) -> Self {
        let LinearWeights { weight, bias } = weights.into();
        let bias = bias.map(|bias| {
            let width = bias.len();
            compute.tensor(bias, [1, width])
        });
        let weight = match weight {
            HostWeight::Dense(weight) => Weight::Dense(compute.matrix(weight)),
            HostWeight::Factorised(Factors { a, b }) => {
                Weight::Factorised(Box::new([compute.matrix(a), compute.matrix(b)]))
            }
        };
        Self { weight, bias }
    }

    /// `x: [rows, d_in]` → `[rows, d_out]`
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = match &self.weight {
            Weight::Dense(weight) => x.matmul(weight.clone()),
            Weight::Factorised(factors) => factors.iter().fold(x, |x, factor| x.matmul(factor.clone())),
        };
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
