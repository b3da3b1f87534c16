//! Whether a device computes what it should: small pieces of the real work, each against the host.

use burn::tensor::{Device, activation::softmax};
use faer::{Mat, MatRef};
use modegpt::architecture::{LayerWeights, Linear, Matrix, ModelConfig, NormWeights};
use modegpt::calibration::ActivationGram;
use modegpt::linalg::reference;
use modegpt::model_runtime::{Block, Compute, ComputeError};
use serde::{Deserialize, Serialize};

use crate::commands::bench::measure::{matmul, matmul_flops, random_values};
use crate::device::FoundDevice;
use crate::failure::Failure;
use crate::panics;

/// Largest error of an f32 product, in units of a typical entry. Summing 4096 products one after another in f32 gives up
/// to 1e-5, rounding the factors to the ten bits of TF32 or f16 more than 1e-3.
const F32_LIMIT: f64 = 1e-4;
/// Above this not even a half-precision format explains the error.
const REDUCED_LIMIT: f64 = 2e-2;
/// Rows of the softmax miss 1 by no more.
const SOFTMAX_LIMIT: f64 = 1e-5;
/// A block's output differs from the host's by no more, relative to its largest element.
const BLOCK_LIMIT: f64 = 1e-4;
/// A Gram matrix's entries differ by no more, relative to the root of the diagonal's.
const GRAM_LIMIT: f64 = 1e-6;

/// One comparison with the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Check {
    pub(super) name: String,
    /// The largest error; absent if there was no result, or one that is not a number.
    pub(super) error: Option<f64>,
    /// What the error may be.
    pub(super) limit: f64,
    pub(super) passed: bool,
    /// Why there was no result.
    pub(super) problem: Option<String>,
}

/// What an f32 product is computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Precision {
    /// f32.
    F32,
    /// Factors are rounded to TF32, f16 or bf16.
    Reduced,
    /// Not a product.
    Broken,
}

/// The rate of a product of square matrices.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Speed {
    pub(super) gflops: f64,
    pub(super) size: usize,
}

/// Results of all tests.
#[derive(Debug, Default)]
pub(super) struct SelfTest {
    pub(super) checks: Vec<Check>,
    pub(super) precision: Option<Precision>,
    pub(super) speed: Option<Speed>,
}

/// Runs all tests, up to the first at which the driver panics: what it does after that is anyone's guess.
pub(super) fn run(found: &FoundDevice) -> SelfTest {
    type Test = fn(&FoundDevice) -> Result<f64, ComputeError>;
    let tests: [(&str, f64, Test); 4] = [
        ("matrix product", F32_LIMIT, |found| matmul_error(&found.compute)),
        ("softmax", SOFTMAX_LIMIT, |found| softmax_error(&found.compute)),
        ("decoder block", BLOCK_LIMIT, |found| block_error(&found.compute)),
        ("Gram matrix", GRAM_LIMIT, gram_error),
    ];
    let mut result = SelfTest::default();
    for (name, limit, test) in tests {
        let outcome = panics::caught(|| test(found));
        let panicked = outcome.is_err();
        result.checks.push(check(name, limit, outcome));
        if panicked {
            break;
        }
    }
    result.precision = result.checks.first().map(precision);
    if result.checks.iter().all(|check| check.problem.is_none()) {
        result.speed = panics::caught(|| speed(&found.compute)).ok().and_then(Result::ok);
    }
    result
}

fn check(name: &str, limit: f64, outcome: Result<Result<f64, ComputeError>, String>) -> Check {
    let (error, problem) = match outcome {
        Ok(Ok(error)) if error.is_finite() => (Some(error), None),
        Ok(Ok(_)) => (None, Some("the result is not a number".to_owned())),
        Ok(Err(error)) => (None, Some(error.to_string())),
        Err(message) => (None, Some(format!("the driver panicked: {message}"))),
    };
    Check { name: name.to_owned(), error, limit, passed: error.is_some_and(|error| error <= limit), problem }
}

fn precision(matmul: &Check) -> Precision {
    match matmul.error {
        Some(error) if error <= F32_LIMIT => Precision::F32,
        Some(error) if error <= REDUCED_LIMIT => Precision::Reduced,
        _ => Precision::Broken,
    }
}

/// `[256, 4096] x [4096, 256]` against the product in f64, relative to `‖row‖ ‖column‖ / sqrt(4096)`, which is the size of
/// a typical entry.
fn matmul_error(compute: &Compute) -> Result<f64, ComputeError> {
    let (n, depth) = (256, 4096);
    let (left, right) = (random_values(n * depth, 1), random_values(depth * n, 2));
    let product = compute.tensor(left.clone(), [n, depth]).matmul(compute.tensor(right.clone(), [depth, n]));
    let found = pollster::block_on(compute.read(product))?;
    let (left, right) = (widen(&left, n, depth), widen(&right, depth, n));
    let exact = &left * &right;
    let typical = |row: usize, col: usize| left.row(row).norm_l2() * right.col(col).norm_l2() / (depth as f64).sqrt();
    Ok(largest(n, |row, col| (f64::from(found[row * n + col]) - exact[(row, col)]).abs() / typical(row, col)))
}

/// How far rows of a softmax are from summing to 1.
fn softmax_error(compute: &Compute) -> Result<f64, ComputeError> {
    let (rows, cols) = (64, 1000);
    let scores = random_values(rows * cols, 3).into_iter().map(|value| 20.0 * value).collect();
    let found = pollster::block_on(compute.read(softmax(compute.tensor(scores, [rows, cols]), 1)))?;
    let misses = found.chunks_exact(cols).map(|row| (1.0 - row.iter().copied().map(f64::from).sum::<f64>()).abs());
    Ok(misses.fold(0.0, largest_of))
}

/// A small random Llama block against the host's, there with attention spelt out as on cards, so that the host's own
/// fused attention is tested too.
fn block_error(compute: &Compute) -> Result<f64, ComputeError> {
    let (batch, tokens) = (2, 33);
    let config = tiny_config();
    let shape = [batch, tokens, config.d_model];
    let x = random_values(shape.iter().product(), 4);
    let run = |compute: &Compute| {
        let block = Block::new(tiny_weights(&config), &config.layers[0], &config, compute);
        pollster::block_on(compute.read(block.forward(compute.tensor(x.clone(), shape))))
    };
    let (found, expected) = (run(compute)?, run(&Compute::card(Device::flex(), usize::MAX))?);
    let scale = expected.iter().map(|value| f64::from(value.abs())).fold(0.0, largest_of);
    let errors = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs() / scale);
    Ok(errors.fold(0.0, largest_of))
}

/// The Gram matrix of hidden units, by the path that calibration takes on this device, against the sum in f64.
fn gram_error(found: &FoundDevice) -> Result<f64, ComputeError> {
    let (rows, d_ff) = (1024, 160);
    // Of one sign, as behind an activation function: sums only grow, which is where f32 loses most.
    let hidden: Vec<f32> = random_values(rows * d_ff, 5).into_iter().map(|value| value.max(0.0)).collect();
    let mut sum = ActivationGram::new(d_ff, found.gram_path);
    pollster::block_on(sum.add(found.compute.tensor(hidden.clone(), [rows, d_ff]), &found.compute))?;
    let (gram, _) = sum.finish();
    let exact = reference::gram(&hidden, rows, d_ff);
    let size = |i: usize, j: usize| (exact.get(i, i) * exact.get(j, j)).sqrt();
    Ok(largest(d_ff, |i, j| (gram.get(i, j) - exact.get(i, j)).abs() / size(i, j)))
}

/// Measured on small matrices first: software renderers would take minutes on large ones.
fn speed(compute: &Compute) -> Result<Speed, ComputeError> {
    const SLOW_SECS: f64 = 5e-3;
    let (small, large) = (256, 1024);
    let of = |size: usize| -> Result<(Speed, f64), ComputeError> {
        let secs = matmul(compute, [size; 3])?.median_secs;
        Ok((Speed { gflops: matmul_flops([size; 3]) / secs / 1e9, size }, secs))
    };
    let (speed, secs) = of(small)?;
    if secs > SLOW_SECS { Ok(speed) } else { Ok(of(large)?.0) }
}

/// The largest of `of(row, col)` over a square; NaN if there is one.
fn largest(n: usize, of: impl Fn(usize, usize) -> f64) -> f64 {
    (0..n * n).map(|index| of(index / n, index % n)).fold(0.0, largest_of)
}

/// A maximum that keeps NaN.
fn largest_of(one: f64, other: f64) -> f64 {
    if one >= other || one.is_nan() { one } else { other }
}

fn widen(values: &[f32], rows: usize, cols: usize) -> Mat<f64> {
    let values = MatRef::from_row_major_slice(values, rows, cols);
    Mat::from_fn(rows, cols, |row, col| f64::from(values[(row, col)]))
}

/// Rotary positions, shared kv heads and a gated MLP: every kind of kernel that the families use.
fn tiny_config() -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 32, "hidden_size": 64, "intermediate_size": 176,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    ModelConfig::from_json(&json).expect("a valid configuration")
}

fn tiny_weights(config: &ModelConfig) -> LayerWeights {
    let (d, d_ff) = (config.d_model, config.layers[0].d_ff);
    let (d_q, d_kv) = (config.n_heads * config.d_head, config.n_kv_heads * config.d_head);
    let linear = |rows: usize, cols: usize, seed: u64| {
        let scale = (3.0 / rows as f32).sqrt();
        let data = random_values(rows * cols, seed).into_iter().map(|value| scale * value).collect();
        Linear { weight: Matrix::new(rows, cols, data), bias: None }
    };
    let norm = || NormWeights { weight: Some(vec![1.0; d]), bias: None };
    LayerWeights {
        attention_norm: norm(),
        query: linear(d, d_q, 11),
        key: linear(d, d_kv, 12),
        value: linear(d, d_kv, 13),
        output: linear(d_q, d, 14),
        mlp_norm: norm(),
        gate: Some(linear(d, d_ff, 15)),
        up: linear(d, d_ff, 16),
        down: linear(d_ff, d, 17),
    }
}

impl Speed {
    /// `12.3 GFLOP/s (matrices of 256 x 256)`
    pub(super) fn describe(self) -> String {
        format!("{:.1} GFLOP/s (matrices of {size} x {size})", self.gflops, size = self.size)
    }
}

/// A failed test of the device that is asked for, as the failure of the command.
pub(super) fn require(precision: Option<Precision>, checks: &[Check], name: &str) -> Result<(), Failure> {
    if checks.iter().all(|check| check.passed) && precision == Some(Precision::F32) {
        return Ok(());
    }
    let failed: Vec<&str> = checks.iter().filter(|check| !check.passed).map(|check| check.name.as_str()).collect();
    Err(Failure::request(format!("`{name}` does not compute f32 correctly: {}", failed.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_passes_every_test() {
        let result = run(&crate::device::cpu());
        assert_eq!(result.precision, Some(Precision::F32));
        assert_eq!(result.checks.len(), 4);
        for check in &result.checks {
            assert!(check.passed, "{check:?}");
        }
        assert!(result.speed.is_some_and(|speed| speed.gflops > 0.0));
        assert!(require(result.precision, &result.checks, "cpu").is_ok());
    }

    /// The product's limit tells f32 from what TF32 and bf16 do to its factors.
    #[test]
    fn reduced_precision_is_told_from_f32() {
        let (n, depth) = (256, 4096);
        let (left, right) = (random_values(n * depth, 1), random_values(depth * n, 2));
        let exact = widen(&left, n, depth) * widen(&right, depth, n);
        for (mantissa_bits, expected) in [(23, Precision::F32), (10, Precision::Reduced), (7, Precision::Reduced)] {
            let unit = 1u32 << (23 - mantissa_bits);
            let round = |value: &f32| f32::from_bits((value.to_bits() + unit / 2) & !(unit - 1));
            let rounded = |values: &[f32]| values.iter().map(round).collect::<Vec<_>>();
            let found = widen(&rounded(&left), n, depth) * widen(&rounded(&right), depth, n);
            let typical = (depth as f64).sqrt() / 3.0;
            let error = largest(n, |row, col| (found[(row, col)] - exact[(row, col)]).abs() / typical);
            let found = precision(&check("product", F32_LIMIT, Ok(Ok(error))));
            assert_eq!(found, expected, "{mantissa_bits} bits: {error}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_broken() {
        let nan = check("product", F32_LIMIT, Ok(Ok(largest_of(f64::NAN, 1.0))));
        assert!(!nan.passed && nan.problem.is_some());
        assert_eq!(precision(&nan), Precision::Broken);
        assert!(largest_of(1.0, f64::NAN).is_nan());
        assert_eq!(precision(&check("product", F32_LIMIT, Ok(Ok(0.5)))), Precision::Broken);
        let panicked = check("product", F32_LIMIT, Err("lost".to_owned()));
        assert!(!panicked.passed && require(Some(precision(&panicked)), &[panicked], "gl").is_err());
    }
}
