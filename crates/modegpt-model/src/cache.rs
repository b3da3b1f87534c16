//! Keys and values of the tokens seen so far.

use burn::tensor::{DType, Tensor};
use modegpt_architecture::{LayerShape, ModelConfig};

use crate::Compute;

/// The cache of one layer, allocated once for the longest text it will see.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `[1, n_kv_heads, capacity, d_qk]`, rotated
    key: Tensor<4>,
    /// `[1, n_kv_heads, capacity, d_v]`
    value: Tensor<4>,
    filled: usize,
}

impl KvCache {
    /// An empty cache for `capacity` tokens of one sequence.
    pub fn new(config: &ModelConfig, shape: &LayerShape, capacity: usize, compute: &Compute) -> Self {
        let zeros = |width| Tensor::zeros([1, config.n_kv_heads, capacity, width], (&compute.device, DType::F32));
        Self { key: zeros(shape.d_qk), value: zeros(shape.d_v), filled: 0 }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Adds the keys and values of new tokens; gives back those of all tokens so far.
    pub(crate) fn extend(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let (start, end) = (self.filled, self.filled + key.dims()[2]);
        self.filled = end;
        (write(&mut self.key, key, start, end), write(&mut self.value, value, start, end))
    }
}

/// Writes rows `start..end` and gives rows `0..end`. The buffer is moved through, never copied: it is replaced by an empty
/// tensor meanwhile, so that it has a single owner.
fn write(buffer: &mut Tensor<4>, rows: Tensor<4>, start: usize, end: usize) -> Tensor<4> {
    let [batch, heads, _, width] = buffer.dims();
    let placeholder = Tensor::zeros([1, 1, 1, 1], (&buffer.device(), DType::F32));
    let owned = std::mem::replace(buffer, placeholder);
    *buffer = owned.slice_assign([0..batch, 0..heads, start..end, 0..width], rows);
    buffer.clone().narrow(2, 0, end)
}
