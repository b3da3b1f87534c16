//! Causal attention with few or many key-value heads and heads of any width.

use burn::tensor::{
    Tensor,
    activation::softmax,
    module::{attention, attention_fallback},
    ops::AttentionModuleOptions,
};
use modegpt_architecture::{Linear as LinearWeights, ModelConfig, Weight};

use crate::{Compute, KvCache, Point, Probe, linear::Linear, rope::RotaryTables};

/// ```text
/// a_j = softmax(q_j k_g(j)ᵀ / sqrt(d_head)) v_g(j),   y = Σ_j a_j W_O,j + b_O
/// ```
///
/// for query heads `j` and their kv head `g(j)`; `d_head` is the width before compression.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    query: Linear,
    key: Linear,
    /// Without its bias, which is added to the heads' outputs: rows of the softmax sum to one.
    value: Linear,
    /// `[1, n_heads * d_v]`
    value_bias: Option<Tensor<2>>,
    output: Linear,
    n_heads: usize,
    n_kv_heads: usize,
    scale: f64,
}

impl Attention {
    /// From the maps of query, key, value and output.
    pub(crate) fn new(
        [query, key, value, output]: [LinearWeights<Weight>; 4],
        config: &ModelConfig,
        compute: &Compute,
    ) -> Self {
        let (value, value_bias) = Linear::new(value, compute).split_bias();
        let group = config.group_size();
        let value_bias = value_bias.map(|bias| {
            let width = bias.dims()[1] / config.n_kv_heads;
            bias.reshape([config.n_kv_heads, 1, width])
                .expand([config.n_kv_heads, group, width])
                .reshape([1, config.n_heads * width])
        });
        Self {
            query: Linear::new(query, compute),
            key: Linear::new(key, compute),
            value,
            value_bias,
            output: Linear::new(output, compute),
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            scale: 1.0 / (config.d_head as f64).sqrt(),
        }
    }

    /// `x: [batch * tokens, d_model]`, same shape out.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        batch: usize,
        rotary: Option<&RotaryTables>,
        cache: Option<&mut KvCache>,
        compute: &Compute,
        probe: &mut dyn Probe,
    ) -> Tensor<2> {
        let x = probe.pass(Point::AttentionInput, x);
        let query = probe.pass(Point::Query, self.query.forward(x.clone()));
        let key = probe.pass(Point::Key, self.key.forward(x.clone()));
        let value = probe.pass(Point::Value, self.value.forward(x));

        let mut query = split_heads(query, batch, self.n_heads);
        let mut key = split_heads(key, batch, self.n_kv_heads);
        let mut value = split_heads(value, batch, self.n_kv_heads);
        if let Some(tables) = rotary {
            query = tables.rotate_query(query);
            key = tables.rotate_key(key);
        }
        if let Some(cache) = cache {
            (key, value) = cache.extend(key, value);
        }
        let group = self.n_heads / self.n_kv_heads;
        let heads = self.attend(query, repeat_heads(key, group), repeat_heads(value, group), compute);
        let heads = probe.pass(Point::Attention, join_heads(heads));
        let heads = match &self.value_bias {
            Some(bias) => heads + bias.clone(),
            None => heads,
        };
        let heads = probe.pass(Point::OutputInput, heads);
        probe.pass(Point::Output, self.output.forward(heads))
    }

    /// Equal numbers of heads in, `[batch, n_heads, queries, d_v]` out. The last query sees every key.
    fn attend(&self, query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, compute: &Compute) -> Tensor<4> {
        let [batch, n_heads, n_queries, _] = query.dims();
        let n_keys = key.dims()[2];
        if n_queries == 1 {
            let scores = query.matmul(key.swap_dims(2, 3)) * self.scale;
            return softmax(scores, 3).matmul(value);
        }
        let options = AttentionModuleOptions { scale: Some(self.scale), softcap: None, is_causal: true };
        if compute.is_host {
            return attention(query, key, value, None, None, options);
        }
        // Spelt out on cards, some heads at a time, so that the scores stay within what can be bound.
        let bytes_per_head = batch * n_queries * n_keys * 4;
        let at_once = (compute.max_tensor_bytes / bytes_per_head).clamp(1, n_heads);
        let parts = (0..n_heads).step_by(at_once).map(|start| {
            let count = at_once.min(n_heads - start);
            let part = |x: &Tensor<4>| x.clone().narrow(1, start, count);
            attention_fallback(part(&query), part(&key), part(&value), None, None, options)
        });
        Tensor::cat(parts.collect(), 1)
    }
}

/// `[batch * tokens, heads * width]` → `[batch, heads, tokens, width]`
fn split_heads(x: Tensor<2>, batch: usize, heads: usize) -> Tensor<4> {
    let [rows, columns] = x.dims();
    x.reshape([batch, rows / batch, heads, columns / heads]).swap_dims(1, 2)
}

/// `[batch, heads, tokens, width]` → `[batch * tokens, heads * width]`
fn join_heads(x: Tensor<4>) -> Tensor<2> {
    let [batch, heads, tokens, width] = x.dims();
    x.swap_dims(1, 2).reshape([batch * tokens, heads * width])
}

/// Each kv head `times` over, beside itself: `[batch, heads, tokens, width]` → `[batch, heads * times, tokens, width]`
fn repeat_heads(x: Tensor<4>, times: usize) -> Tensor<4> {
    if times == 1 {
        return x;
    }
    let [batch, heads, tokens, width] = x.dims();
    x.reshape([batch, heads, 1, tokens, width]).expand([batch, heads, times, tokens, width]).reshape([
        batch,
        heads * times,
        tokens,
        width,
    ])
}
