//! A model so small that it is computed twice in no time, and the plain way to compute it.

use std::ops::Range;

use burn::tensor::Device;
use modegpt_architecture::{
    LayerWeights, Linear, Matrix, ModelConfig, NormWeights, OuterWeights, Weight, WeightError, WeightProvider,
};
use modegpt_model::{Block, Compute, Embedder, Head};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::json;

/// Tokens of the vocabulary: a prime, so that no part of it is as long as the others.
pub(crate) const VOCAB: usize = 53;
/// The longest text.
pub(crate) const CONTEXT: usize = 40;

/// A random Llama with two layers and shared key-value heads.
pub(crate) struct TinyModel {
    config: ModelConfig,
    embedding: Matrix,
    layers: Vec<LayerWeights>,
}

impl TinyModel {
    pub(crate) fn new(seed: u64) -> Self {
        let config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": 16,
            "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "tie_word_embeddings": true,
        });
        let config = ModelConfig::from_json(&config).expect("a good configuration");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let embedding = random(&mut rng, VOCAB, 16);
        let layers = (0..2).map(|_| layer(&mut rng)).collect();
        Self { config, embedding, layers }
    }
}

fn random(rng: &mut ChaCha8Rng, rows: usize, cols: usize) -> Matrix {
    let value = |_| (f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32;
    Matrix::new(rows, cols, (0..rows * cols).map(value).collect())
}

fn norm() -> NormWeights {
    NormWeights { weight: Some(vec![1.0; 16]), bias: None }
}

fn layer(rng: &mut ChaCha8Rng) -> LayerWeights {
    let mut linear = |d_in, d_out| Linear { weight: random(rng, d_in, d_out), bias: None };
    LayerWeights {
        attention_norm: norm(),
        query: linear(16, 16),
        key: linear(16, 8),
        value: linear(16, 8),
        output: linear(16, 16),
        mlp_norm: norm(),
        gate: Some(linear(16, 24)),
        up: linear(16, 24),
        down: linear(24, 16),
    }
}

impl WeightProvider for TinyModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layer(&self, index: usize) -> Result<LayerWeights<Weight>, WeightError> {
        Ok(self.layers[index].clone().into())
    }

    fn outer(&self) -> Result<OuterWeights, WeightError> {
        Ok(OuterWeights { final_norm: Some(norm()), project_in: None, project_out: None })
    }

    fn embedding_rows(&self, ids: &[u32]) -> Result<Matrix, WeightError> {
        let rows = ids.iter().flat_map(|id| self.embedding.row(*id as usize)).copied().collect();
        Ok(Matrix::new(ids.len(), 16, rows))
    }

    fn position_rows(&self, _range: Range<usize>) -> Result<Option<Matrix>, WeightError> {
        Ok(None)
    }

    fn head_rows(&self, range: Range<usize>) -> Result<Matrix, WeightError> {
        self.embedding_rows(&range.map(|id| id as u32).collect::<Vec<u32>>())
    }
}

/// The processor as it is, and as a card that can hold but a small part of the head.
pub(crate) fn devices() -> [Compute; 2] {
    [Compute::host(), Compute::card(Device::flex(), 7 * 4 * 16)]
}

/// `n` ids that look like a text.
pub(crate) fn ids(seed: u64, n: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.next_u32() % VOCAB as u32).collect()
}

/// `ln p` of every token of the vocabulary behind every token of one text, computed by itself and in f64.
pub(crate) fn log_probabilities(model: &TinyModel, ids: &[u32]) -> Vec<Vec<f64>> {
    let compute = Compute::host();
    let embedder = Embedder::new(model, &compute).expect("weights");
    let mut x = embedder.embed(model, ids, 1, 0, &compute).expect("known ids");
    for (index, shape) in model.config.layers.iter().enumerate() {
        x = Block::new(model.layers[index].clone(), shape, &model.config, &compute).forward(x);
    }
    let x = x.reshape([ids.len(), 16]);
    let head = Head::new(model, &compute).expect("weights");
    let logits = pollster::block_on(head.logits(model, x, &compute)).expect("finite");
    let row = |logits: &[f32]| -> Vec<f64> {
        let log_sum = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        logits.iter().map(|logit| f64::from(*logit) - log_sum).collect()
    };
    logits.chunks_exact(VOCAB).map(row).collect()
}

/// Index of the largest.
pub(crate) fn likeliest(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, idx| if row[idx] > row[best] { idx } else { best })
}
