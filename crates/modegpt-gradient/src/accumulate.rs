//! Gradients of one layer while the batches come in.

use modegpt_architecture::{LayerShape, ModelConfig};
use modegpt_linalg::{GramAccumulator, HeadGrams};
use modegpt_model::{Compute, ComputeError, Point};
use modegpt_statistics::{LayerGradients, RowFisher};

use crate::Loss;
use crate::leaves::Seen;
use crate::row_fisher::RowSums;

/// Sums over the batches seen so far.
pub(crate) struct Sums {
    residual: GramAccumulator,
    attention_residual: GramAccumulator,
    query_gain: Option<HeadGrams>,
    query: HeadGrams,
    key: HeadGrams,
    row_fisher: Option<RowSums>,
}

impl Sums {
    pub(crate) fn new(config: &ModelConfig, shape: &LayerShape, row_fisher: Option<RowFisher>) -> Self {
        Self {
            residual: GramAccumulator::new(config.d_model),
            attention_residual: GramAccumulator::new(config.d_model),
            query_gain: config.is_rotary().then(|| HeadGrams::new(config.n_heads, shape.d_qk)),
            query: HeadGrams::new(config.n_heads, shape.d_qk),
            key: HeadGrams::new(config.n_kv_heads, shape.d_qk),
            row_fisher: row_fisher.map(RowSums::new),
        }
    }

    pub(crate) async fn add(&mut self, seen: &Seen, seq_len: usize, compute: &Compute) -> Result<(), ComputeError> {
        let down = seen.gradient(Point::Down);
        let n_rows = down.dims()[0];
        self.residual.add_rows(&compute.read(down).await?, n_rows);
        self.attention_residual.add_rows(&compute.read(seen.gradient(Point::Output)).await?, n_rows);
        let query = compute.read(seen.gradient(Point::Query)).await?;
        if let Some(gains) = &mut self.query_gain {
            gains.add_rows(&gain_gradients(&compute.read(seen.value(Point::Query)).await?, &query, gains.width()));
        }
        self.query.add_rows(&query);
        self.key.add_rows(&compute.read(seen.gradient(Point::Key)).await?);
        if let Some(rows) = &mut self.row_fisher {
            rows.add(seen, seq_len, compute).await?;
        }
        Ok(())
    }

    pub(crate) fn finish(self, loss: Loss) -> LayerGradients {
        LayerGradients {
            n_tokens: loss.n_tokens,
            loss_sum: loss.sum,
            residual: self.residual.finish(),
            attention_residual: self.attention_residual.finish(),
            query_gain: self.query_gain.map(HeadGrams::finish).unwrap_or_default(),
            query: self.query.finish(),
            key: self.key.finish(),
            row_fisher: self.row_fisher.map(RowSums::finish).unwrap_or_default(),
        }
    }
}

/// Gradients with respect to the complex gains of rotary pairs, see [`LayerGradients::query_gain`]. Queries and their
/// gradients are rows of heads of the given width, and so is the result.
fn gain_gradients(queries: &[f32], gradients: &[f32], width: usize) -> Vec<f32> {
    let half = width / 2;
    let mut gains = vec![0.0; queries.len()];
    let heads = queries.chunks_exact(width).zip(gradients.chunks_exact(width));
    for (gain, (q, g)) in gains.chunks_exact_mut(width).zip(heads) {
        for pair in 0..half {
            let (re, im) = (pair, pair + half);
            gain[re] = q[re] * g[re] + q[im] * g[im];
            gain[im] = q[re] * g[im] - q[im] * g[re];
        }
    }
    gains
}
