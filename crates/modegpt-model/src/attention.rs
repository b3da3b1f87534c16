//! Causal attention with few or many key-value heads and heads of any width.

use burn::tensor::{
    DType, Tensor, TensorData,
    activation::softmax,
    module::{attention, attention_fallback},
    ops::AttentionModuleOptions,
};
use modegpt_architecture::{Linear as LinearWeights, ModelConfig, Weight};

use crate::{Compute, KvCache, Point, Probe, host, linear::Linear, rope::RotaryTables};

/// Queries that attend at once on the host where gradients are recorded. Of 1024 tokens of SmolLM2-135M, 256 took 99 ms of processor time where all at
/// once took 135, of 2048 tokens 178 instead of 237; blocks of 128, 384 and 512 were no better on both.
const QUERY_BLOCK: usize = 256;

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
        let x_rows = x.dims()[0];
        let x = probe.pass(Point::AttentionInput, x);
        let query = probe.pass(Point::Query, self.query.forward(x.clone()));
        let key = probe.pass(Point::Key, self.key.forward(x.clone()));
        let value = probe.pass(Point::Value, self.value.forward(x));

        // Many tokens come alone or first: there is nothing in the cache that they could see.
        let is_text = x_rows > batch && cache.as_ref().is_none_or(|cache| cache.is_empty());
        let heads = if is_text && [&query, &key, &value].iter().all(|x| host::takes(x, compute)) {
            self.attend_on_host(query, key, value, batch, rotary, cache)
        } else {
            let mut query = split_heads(query, batch, self.n_heads);
            let mut key = split_heads(key, batch, self.n_kv_heads);
            let mut value = split_heads(value, batch, self.n_kv_heads);
            if let Some(tables) = rotary {
                query = tables.rotate(query);
                key = tables.rotate(key);
            }
            if let Some(cache) = cache {
                (key, value) = cache.extend(key, value);
            }
            join_heads(self.attend(query, key, value, compute))
        };
        let heads = probe.pass(Point::Attention, heads);
        let heads = match &self.value_bias {
            Some(bias) => heads + bias.clone(),
            None => heads,
        };
        let heads = probe.pass(Point::OutputInput, heads);
        probe.pass(Point::Output, self.output(heads))
    }

    /// The output map, of what attention delivers: `[rows, n_heads * d_v]` → `[rows, d_model]`
    pub(crate) fn output(&self, heads: Tensor<2>) -> Tensor<2> {
        self.output.forward(heads)
    }

    /// Rows in, `[rows, heads * width]`, and rows out, `[rows, n_heads * d_v]`.
    fn attend_on_host(
        &self,
        query: Tensor<2>,
        key: Tensor<2>,
        value: Tensor<2>,
        batch: usize,
        rotary: Option<&RotaryTables>,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let [rows, width] = [query.dims()[0], value.dims()[1] / self.n_kv_heads * self.n_heads];
        let rotate = |x: Tensor<2>, n_heads| match rotary {
            Some(tables) => tables.rotate_rows(x, n_heads),
            None => x,
        };
        let (query, key) = (rotate(query, self.n_heads), rotate(key, self.n_kv_heads));
        if let Some(cache) = cache {
            let split = |x: &Tensor<2>| split_heads(x.clone(), batch, self.n_kv_heads);
            cache.extend(split(&key), split(&value));
        }
        let device = query.device();
        let [query, key, value] = [query, key, value].map(Tensor::into_data);
        let layout = host::Layout {
            batch,
            tokens: rows / batch,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            scale: self.scale as f32,
        };
        let out = host::attend(host::values(&query), host::values(&key), host::values(&value), layout);
        Tensor::from_data(TensorData::new(out, [rows, width]), (&device, DType::F32))
    }

    /// Keys and values of the kv heads in, `[batch, n_heads, queries, d_v]` out. The last query sees every key.
    fn attend(&self, query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, compute: &Compute) -> Tensor<4> {
        let [batch, n_heads, n_queries, _] = query.dims();
        let n_keys = key.dims()[2];
        let options = AttentionModuleOptions { scale: Some(self.scale), softcap: None, is_causal: true };
        let group = self.n_heads / self.n_kv_heads;
        // The host's kernel shares kv heads by itself, but its derivative does not.
        let (key, value) = (repeat_heads(key, group), repeat_heads(value, group));
        if compute.is_host && n_queries > 1 {
            return attend_in_blocks(&query, &key, &value, options);
        }
        if n_queries == 1 {
            let scores = query.matmul(key.swap_dims(2, 3)) * self.scale;
            return softmax(scores, 3).matmul(value);
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

/// Causal attention on the host, some queries at a time, each block with the keys up to its last query only: the kernel
/// computes whatever it is given, also what causality hides.
fn attend_in_blocks(
    query: &Tensor<4>,
    key: &Tensor<4>,
    value: &Tensor<4>,
    options: AttentionModuleOptions,
) -> Tensor<4> {
    let (n_queries, n_keys) = (query.dims()[2], key.dims()[2]);
    let before = n_keys - n_queries;
    let blocks = (0..n_queries).step_by(QUERY_BLOCK).map(|start| {
        let end = (start + QUERY_BLOCK).min(n_queries);
        let seen = |x: &Tensor<4>| x.clone().narrow(2, 0, before + end);
        attention(query.clone().narrow(2, start, end - start), seen(key), seen(value), None, None, options)
    });
    Tensor::cat(blocks.collect(), 2)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `[1, heads, tokens, width]`, the same every time, no two alike.
    fn values(heads: usize, tokens: usize, width: usize, seed: f32) -> Tensor<4> {
        let n = heads * tokens * width;
        let values = (0..n).map(|at| (seed + 0.731 * at as f32).sin()).collect();
        Compute::host().tensor(values, [1, heads, tokens, width])
    }

    /// Just below, at and just past a block, several blocks, and keys that came before the first query.
    #[test]
    fn blocks_of_queries_see_what_each_query_sees() {
        let (heads, kv_heads, width, width_of_value) = (4, 2, 6, 5);
        for (n_queries, n_keys) in [(2, 2), (255, 255), (256, 256), (257, 257), (700, 700), (300, 411)] {
            let query = values(heads, n_queries, width, 0.1);
            let key = values(kv_heads, n_keys, width, 0.2);
            let value = values(kv_heads, n_keys, width_of_value, 0.3);
            let options = AttentionModuleOptions { scale: Some(0.7), softcap: None, is_causal: true };
            let found = attend_in_blocks(&query, &key, &value, options);
            assert_eq!(found.dims(), [1, heads, n_queries, width_of_value]);
            let (key, value) = (repeat_heads(key, heads / kv_heads), repeat_heads(value, heads / kv_heads));
            // Each query by itself, with the keys up to its own.
            for query_idx in [0, 1, 254, 255, 256, 257, 511, 512, n_queries - 1] {
                if query_idx >= n_queries {
                    continue;
                }
                let n_seen = n_keys - n_queries + query_idx + 1;
                let row = |x: &Tensor<4>| x.clone().narrow(2, query_idx, 1);
                let seen = |x: &Tensor<4>| x.clone().narrow(2, 0, n_seen);
                let scores = row(&query).matmul(seen(&key).swap_dims(2, 3)) * 0.7;
                let expected = softmax(scores, 3).matmul(seen(&value));
                let difference = (row(&found) - expected).abs().max().into_scalar::<f32>();
                assert!(difference <= 1e-6, "query {query_idx} of {n_queries}, {n_keys} keys: {difference:e}");
            }
        }
    }
}
