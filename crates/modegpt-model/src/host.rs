//! Kernels for the processor, where burn's take several passes over the memory or one number at a time.
//!
//! They work on tensors of the host that no gradient is recorded of. Everywhere else, and in the tests that compare them,
//! the same is spelt out in burn. Work is cut into the same parts whatever the number of threads, so that results are too.

mod activation;
mod attention;
mod exp;
mod norm;

use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

pub(crate) use activation::{Gate, activate};
pub(crate) use attention::{Layout, attend};
pub(crate) use exp::log_sum_parts;
pub(crate) use norm::normalise;

use crate::Compute;

/// Whether these kernels may be used on `x`: its values can be looked at, and autodiff need not see what happens.
pub(crate) fn takes<const D: usize>(x: &Tensor<D>, compute: &Compute) -> bool {
    compute.is_host && !x.is_autodiff()
}

/// Changes values where they are, or a copy of them if something else holds them too.
pub(crate) fn change<const D: usize>(x: Tensor<D>, work: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let device = x.device();
    let mut data = x.into_data();
    work(data.as_mut_slice().expect("activations are f32 in memory"));
    Tensor::from_data(data, (&device, DType::F32))
}

/// The values of what [`Tensor::into_data`] gave.
pub(crate) fn values(data: &TensorData) -> &[f32] {
    data.as_slice().expect("activations are f32 in memory")
}

/// Gives `work` the values in parts of at most `len`, each with its place in `values`, on all threads. A single part is
/// done at once by the caller.
pub(crate) fn in_parts(values: &mut [f32], len: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if values.len() <= len {
        return work(0, values);
    }
    values.par_chunks_mut(len).enumerate().for_each(|(part_idx, part)| work(part_idx * len, part));
}
