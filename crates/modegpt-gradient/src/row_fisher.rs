//! Squared gradients of weights, summed over rows.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use modegpt_model::{Compute, ComputeError, Point};
use modegpt_statistics::RowFisher;

use crate::leaves::Seen;

/// Every linear map by its name, with the points before and after it.
pub const MAPS: [(&str, Point, Point); 7] = [
    ("query", Point::AttentionInput, Point::Query),
    ("key", Point::AttentionInput, Point::Key),
    ("value", Point::AttentionInput, Point::Value),
    ("output", Point::OutputInput, Point::Output),
    ("gate", Point::MlpInput, Point::Gate),
    ("up", Point::MlpInput, Point::Up),
    ("down", Point::Hidden, Point::Down),
];

/// Row sums of the maps of a layer.
pub(crate) struct RowSums {
    kind: RowFisher,
    sums: BTreeMap<&'static str, Vec<f64>>,
}

impl RowSums {
    pub(crate) fn new(kind: RowFisher) -> Self {
        Self { kind, sums: BTreeMap::new() }
    }

    /// Adds what was seen of samples of `seq_len` tokens each.
    pub(crate) async fn add(&mut self, seen: &Seen, seq_len: usize, compute: &Compute) -> Result<(), ComputeError> {
        for (name, before, after) in MAPS {
            if !seen.has(after) {
                continue;
            }
            let (x, delta) = (seen.value(before), seen.gradient(after));
            let sum = self.sums.entry(name).or_insert_with(|| vec![0.0; x.dims()[1]]);
            for start in (0..x.dims()[0]).step_by(seq_len) {
                let sample = |rows: &Tensor<2>| rows.clone().narrow(0, start, seq_len);
                let squares = squares(self.kind, sample(&x), sample(&delta));
                sum.iter_mut().zip(compute.read(squares).await?).for_each(|(sum, more)| *sum += f64::from(more));
            }
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> BTreeMap<&'static str, Vec<f64>> {
        self.sums
    }
}

/// `x: [tokens, d_in]` and `delta: [tokens, d_out]` of one sample to `[d_in, 1]`.
fn squares(kind: RowFisher, x: Tensor<2>, delta: Tensor<2>) -> Tensor<2> {
    match kind {
        RowFisher::PerExample => {
            let gradient = x.transpose().matmul(delta); // [d_in, d_out]
            (gradient.clone() * gradient).sum_dim(1)
        }
        RowFisher::PerToken => {
            let lengths = (delta.clone() * delta).sum_dim(1); // [tokens, 1]
            (x.clone() * x).transpose().matmul(lengths)
        }
    }
}
