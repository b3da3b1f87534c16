//! Streamed gradients equal those of one graph over the whole model, and of finite differences of the loss.

#![expect(clippy::print_stdout, reason = "what was measured is worth reading")]

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};
use modegpt::architecture::{LayerWeights, Linear, ModelConfig, NormPlacement, WeightProvider};
use modegpt::gradient::{
    GradientError, GradientOptions, Labels, LayerGradients, Loss, MAPS, RowFisher, Samples, Tape, collect_gradients,
    forward, loss_gradient,
};
use modegpt::linalg::Gram;
use modegpt::model_runtime::{Block, Compute, Embedder, Head, Point, Probe};
use modegpt::run::{self, GradientRun, GradientsFolder, RunError};
use modegpt::{Calibration, Model, Silent};
use modegpt_tests::{Replaced, dense_layer, open, stories};

const MODELS: [&str; 3] = ["opt-tiny-stories", "stories260k", "gpt2-tiny-stories"];

/// Two orders of the same f32 sums.
const RELATIVE: f64 = 1e-4;

const NEXT: GradientOptions = GradientOptions { labels: Labels::Next, row_fisher: None };

struct Collected {
    /// Of each layer, from the first.
    layers: Vec<LayerGradients>,
    /// Of the embeddings.
    first: Vec<f32>,
    loss: Loss,
}

fn collect(
    weights: &dyn WeightProvider,
    text: &Calibration,
    counted: Option<&[bool]>,
    options: GradientOptions,
) -> Collected {
    collect_on(&Compute::host(), weights, text, counted, options, 1).expect("gradients")
}

fn collect_on(
    compute: &Compute,
    weights: &dyn WeightProvider,
    text: &Calibration,
    counted: Option<&[bool]>,
    options: GradientOptions,
    batch: usize,
) -> Result<Collected, GradientError> {
    let windows = &text.windows;
    let mut tape = Tape::in_memory(weights.config(), windows.n, windows.seq_len, batch);
    let samples = Samples { ids: &windows.ids, counted };
    let mut layers = Vec::new();
    let each = |layer: usize, gradients: LayerGradients| {
        gradients.check().expect("sums that belong together");
        layers.insert(0, gradients);
        assert_eq!(layers.len(), weights.config().layers.len() - layer);
        Ok::<_, GradientError>(())
    };
    let collected = collect_gradients(weights, &samples, &options, &mut tape, compute, |_, _, _| {}, each);
    let loss = pollster::block_on(collected)?;
    let first = tape.load(0, &(0..windows.n)).expect("the tape");
    Ok(Collected { layers, first, loss })
}

/// Keeps what passes, and leaves whose gradients are those of what passes.
#[derive(Default)]
struct AllLeaves {
    zeros: BTreeMap<Point, Tensor<2>>,
    values: BTreeMap<Point, Vec<f32>>,
}

impl Probe for AllLeaves {
    fn pass(&mut self, point: Point, x: Tensor<2>) -> Tensor<2> {
        self.values.insert(point, floats(x.clone().inner()));
        let zero = x.clone().inner().zeros_like().autodiff().require_grad();
        self.zeros.insert(point, zero.clone());
        x + zero
    }
}

/// Rows that passed a point, and their gradients.
type Points = BTreeMap<Point, (Vec<f32>, Vec<f32>)>;

/// One graph over all blocks and the head: values and gradients at every point of every layer, by rows.
struct Whole {
    layers: Vec<Points>,
    first: Vec<f32>,
    loss: f64,
}

fn whole(weights: &dyn WeightProvider, text: &Calibration, counted: impl Fn(usize) -> bool) -> Whole {
    let compute = Compute::host();
    let (config, windows) = (weights.config(), &text.windows);
    let embedder = Embedder::new(weights, &compute).expect("readable weights");
    let first = embedder.embed(weights, &windows.ids, windows.n, 0, &compute).expect("known ids");
    let first = first.autodiff().require_grad();
    let mut x = first.clone();
    let mut leaves = Vec::new();
    for (layer, shape) in config.layers.iter().enumerate() {
        let block = Block::new(weights.layer(layer).expect("readable weights"), shape, config, &compute);
        let mut probe = AllLeaves::default();
        x = block.probe(x, &mut probe);
        leaves.push(probe);
    }
    let n_rows = windows.n * windows.seq_len;
    let head = Head::new(weights, &compute).expect("readable weights");
    let table = compute.matrix(weights.head_rows(0..config.vocab).expect("readable weights"));
    let logits = head.hidden(x.reshape([n_rows, config.d_model])).matmul(table.transpose());
    let next = |at: usize| windows.ids.get(at + 1).map_or(0, |id| *id as i32);
    let labels = TensorData::new((0..n_rows).map(next).collect(), [n_rows, 1]);
    let labels = Tensor::<2, Int>::from_data(labels, (&compute.device, DType::I32));
    let counts = |at: usize| f32::from(u8::from(!(at + 1).is_multiple_of(windows.seq_len) && counted(at + 1)));
    let counts = compute.tensor((0..n_rows).map(counts).collect(), [n_rows, 1]);
    let loss = -(log_softmax(logits, 1).gather(1, labels) * counts).sum();
    let mut grads = loss.backward();
    let layers = leaves.into_iter().map(|leaves| {
        let AllLeaves { zeros, mut values } = leaves;
        let gradient = |zero: Tensor<2>| floats(zero.grad_remove(&mut grads).expect("a gradient"));
        let mut gradient = gradient;
        zeros
            .into_iter()
            .map(|(point, zero)| (point, (values.remove(&point).expect("a value"), gradient(zero))))
            .collect()
    });
    let layers = layers.collect();
    Whole { layers, first: floats(first.grad_remove(&mut grads).expect("a gradient")), loss: read(loss.inner()) }
}

fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("f32")
}

fn read(x: Tensor<1>) -> f64 {
    f64::from(floats(x)[0])
}

/// `‖found − expected‖ / ‖expected‖`
fn relative(found: impl IntoIterator<Item = f64>, expected: impl IntoIterator<Item = f64>) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for (found, expected) in found.into_iter().zip(expected) {
        difference += (found - expected).powi(2);
        size += expected.powi(2);
    }
    (difference / size).sqrt()
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> {
    values.iter().map(|value| f64::from(*value))
}

/// The Gram matrix of columns `columns` of rows of `stride`, as a packed triangle.
fn gram(rows: &[f32], stride: usize, columns: &Range<usize>) -> Vec<f64> {
    let n = columns.len();
    let mut sums = Vec::with_capacity(n * (n + 1) / 2);
    for i in columns.clone() {
        for j in columns.start..=i {
            sums.push(rows.chunks_exact(stride).map(|row| f64::from(row[i]) * f64::from(row[j])).sum());
        }
    }
    sums
}

fn check_heads(name: &str, found: &[Gram], rows: &[f32], n_rows: usize) {
    let stride = rows.len() / n_rows;
    let width = stride / found.len();
    for (head, found) in found.iter().enumerate() {
        let expected = gram(rows, stride, &(head * width..(head + 1) * width));
        let error = relative(found.packed_lower().iter().copied(), expected);
        assert!(error <= RELATIVE, "{name}, head {head}: {error:e}");
    }
}

/// `Σ_n Σ_j (Σ_t x_ti δ_tj)²` over samples `n`, or `Σ_t Σ_j (x_ti δ_tj)²`, by the definition.
fn row_fisher(kind: RowFisher, x: &[f32], delta: &[f32], n_samples: usize, n_rows: usize) -> Vec<f64> {
    let (d_in, d_out) = (x.len() / n_rows, delta.len() / n_rows);
    let at_once = if kind == RowFisher::PerExample { n_rows / n_samples } else { 1 };
    let mut sums = vec![0.0; d_in];
    for start in (0..n_rows).step_by(at_once) {
        for (i, sum) in sums.iter_mut().enumerate() {
            for j in 0..d_out {
                let rows = start..start + at_once;
                let gradient: f64 = rows.map(|t| f64::from(x[t * d_in + i]) * f64::from(delta[t * d_out + j])).sum();
                *sum += gradient * gradient;
            }
        }
    }
    sums
}

#[test]
fn streamed_gradients_equal_those_of_one_graph() {
    for name in MODELS {
        let model = open(name);
        let text = stories(&model, 3, 48);
        let n_rows = 3 * 48;
        let found = collect(&model.checkpoint, &text, None, NEXT);
        let expected = whole(&model.checkpoint, &text, |_| true);
        assert_eq!(found.loss.n_tokens, 3 * 47);
        check_residual(name, &found, &expected);
        for (layer, (found, points)) in found.layers.iter().zip(&expected.layers).enumerate() {
            let place = |what: &str| format!("{name}, layer {layer}, {what}");
            check_heads(&place("query"), &found.query, &points[&Point::Query].1, n_rows);
            check_heads(&place("key"), &found.key, &points[&Point::Key].1, n_rows);
            if model.config().is_rotary() {
                let (q, g) = &points[&Point::Query];
                check_heads(&place("gains"), &found.query_gain, &gains(q, g, model.config()), n_rows);
            } else {
                assert!(found.query_gain.is_empty());
            }
        }
    }
}

/// Loss, gradient of the embeddings, and the Grams of what is added to the residual stream.
fn check_residual(name: &str, found: &Collected, expected: &Whole) {
    let losses = found.loss.sum / expected.loss;
    let first = relative(wide(&found.first), wide(&expected.first));
    let mut worst = 0.0_f64;
    for (found, points) in found.layers.iter().zip(&expected.layers) {
        for (found, point) in [(&found.residual, Point::Down), (&found.attention_residual, Point::Output)] {
            let expected = gram(&points[&point].1, found.dim(), &(0..found.dim()));
            worst = worst.max(relative(found.packed_lower().iter().copied(), expected));
        }
    }
    println!("{name}: embeddings differ by {first:.1e}, residual Grams by at most {worst:.1e}");
    assert!((losses - 1.0).abs() < 1e-5, "{name}: {} and {}", found.loss.sum, expected.loss);
    assert!(first <= RELATIVE && worst <= RELATIVE, "{name}: {first:e}, {worst:e}");
}

#[test]
fn a_norm_behind_the_sum_comes_between_stream_and_gradient() {
    let model = open("opt-tiny-stories");
    let mut post_norm = Replaced::edited(&model, |_, _| {});
    // What it computes makes no sense, but it computes something.
    post_norm.config.norm_placement = NormPlacement::Post;
    let text = stories(&model, 2, 24);
    let found = collect(&post_norm, &text, None, NEXT);
    check_residual("post-norm", &found, &whole(&post_norm, &text, |_| true));
}

#[test]
fn the_vocabulary_in_parts_gives_the_same() {
    let model = open("stories260k");
    let text = stories(&model, 2, 24);
    // 156 rows of the head at a time: three whole parts and a rest; 64 rows of logits.
    let parts = Compute { max_tensor_bytes: 40_000, ..Compute::host() };
    for labels in [Labels::Next, Labels::Sampled { seed: 1 }, Labels::Sampled { seed: 2 }] {
        let options = GradientOptions { labels, row_fisher: None };
        let found = collect_on(&parts, &model.checkpoint, &text, None, options, 1).expect("gradients");
        let expected = collect(&model.checkpoint, &text, None, options);
        assert!((found.loss.sum / expected.loss.sum - 1.0).abs() < 1e-6, "{labels:?}");
        let first = relative(wide(&found.first), wide(&expected.first));
        assert!(first < 1e-5, "{labels:?}: {first:e}");
    }
}

/// By complex numbers: `∂L/∂a + i ∂L/∂b = conj(z) · 2 ∂L/∂conj(z)` of each pair `z`.
fn gains(queries: &[f32], gradients: &[f32], config: &ModelConfig) -> Vec<f32> {
    let (width, half) = (config.d_head, config.d_head / 2);
    let mut gains = vec![0.0; queries.len()];
    for head in (0..queries.len()).step_by(width) {
        for pair in head..head + half {
            let (re, im) = (queries[pair], -queries[pair + half]);
            let (g_re, g_im) = (gradients[pair], gradients[pair + half]);
            gains[pair] = re * g_re - im * g_im;
            gains[pair + half] = re * g_im + im * g_re;
        }
    }
    gains
}

#[test]
fn row_fisher_equals_its_definition() {
    for name in MODELS {
        let model = open(name);
        let text = stories(&model, 2, 24);
        let expected = whole(&model.checkpoint, &text, |_| true);
        for kind in [RowFisher::PerExample, RowFisher::PerToken] {
            let options = GradientOptions { row_fisher: Some(kind), ..NEXT };
            let found = collect_on(&Compute::host(), &model.checkpoint, &text, None, options, 2).expect("gradients");
            for (found, points) in found.layers.iter().zip(&expected.layers) {
                for (map, before, after) in MAPS {
                    let Some((_, delta)) = points.get(&after) else {
                        assert!(!found.row_fisher.contains_key(map));
                        continue;
                    };
                    let expected = row_fisher(kind, &points[&before].0, delta, 2, 48);
                    let error = relative(found.row_fisher[map].iter().copied(), expected);
                    assert!(error <= RELATIVE, "{name}, {map}, {kind:?}: {error:e}");
                }
            }
        }
    }
}

/// The loss of the text, layer by layer in f32, the softmax in f64. `edit` may change the embeddings.
fn loss(weights: &dyn WeightProvider, ids: &[u32], edit: impl Fn(&mut Vec<f32>)) -> f64 {
    let compute = Compute::host();
    let config = weights.config();
    let embedder = Embedder::new(weights, &compute).expect("readable weights");
    let mut first = floats(embedder.embed(weights, ids, 1, 0, &compute).expect("known ids"));
    edit(&mut first);
    let mut x = compute.tensor(first, [1, ids.len(), config.d_model]);
    for (index, shape) in config.layers.iter().enumerate() {
        x = Block::new(weights.layer(index).expect("readable weights"), shape, config, &compute).forward(x);
    }
    let head = Head::new(weights, &compute).expect("readable weights");
    let x = x.reshape([ids.len(), config.d_model]);
    let logits = pollster::block_on(head.logits(weights, x, &compute)).expect("logits");
    let nll =
        |(row, label): (&[f32], &u32)| wide(row).map(f64::exp).sum::<f64>().ln() - f64::from(row[*label as usize]);
    logits.chunks_exact(config.vocab).zip(&ids[1..]).map(nll).sum()
}

#[test]
fn gradient_of_the_embeddings_equals_finite_differences() {
    for name in MODELS {
        let model = open(name);
        let text = stories(&model, 1, 32);
        let gradient = collect(&model.checkpoint, &text, None, NEXT).first;
        let length = wide(&gradient).map(|g| g * g).sum::<f64>().sqrt();
        let d_model = model.config().d_model;
        // Along the whole gradient, along that of one token, and along single coordinates.
        let largest = (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()));
        let ranges = [0..gradient.len(), 5 * d_model..6 * d_model, largest.map(|at| at..at + 1).expect("a gradient")];
        for range in ranges {
            let part: f64 = wide(&gradient[range.clone()]).map(|g| g * g).sum::<f64>().sqrt();
            let at = |step: f64| {
                loss(&model.checkpoint, &text.windows.ids, |x| {
                    for at in range.clone() {
                        x[at] += (step * f64::from(gradient[at]) / part) as f32;
                    }
                })
            };
            // Long enough for the digits of an f32 forward pass, short beside the curvature.
            let step = 0.02 / part.max(0.1 * length);
            let slope = (at(step) - at(-step)) / (2.0 * step);
            println!("{name}, {range:?}: {slope:.5} by differences, {part:.5} by the tape");
            assert!((slope / part - 1.0).abs() < 0.02, "{name}, {range:?}: {slope} and {part}");
        }
    }
}

/// One of the maps.
type Pick = fn(&mut LayerWeights) -> &mut Linear;

#[test]
fn row_fisher_equals_finite_differences_of_weights() {
    let model = open("stories260k");
    let text = stories(&model, 2, 16);
    let options = GradientOptions { row_fisher: Some(RowFisher::PerExample), ..NEXT };
    let layer = 2;
    let found = &collect(&model.checkpoint, &text, None, options).layers[layer].row_fisher;
    let maps: [(&str, Pick); 4] = [
        ("key", |w| &mut w.key),
        ("value", |w| &mut w.value),
        ("output", |w| &mut w.output),
        ("down", |w| &mut w.down),
    ];
    for (map, pick) in maps {
        // The row that matters most, whose differences stand out of rounding.
        let rows = &found[map];
        let row = (0..rows.len()).max_by(|a, b| rows[*a].total_cmp(&rows[*b])).expect("rows");
        let d_out = pick(&mut dense_layer(&model, layer)).weight.cols;
        let mut sum = 0.0;
        for ids in &text.windows {
            for column in 0..d_out {
                let at = |step: f32| {
                    let edit = move |index: usize, weights: &mut LayerWeights| {
                        if index == layer {
                            pick(weights).weight.data[row * d_out + column] += step;
                        }
                    };
                    let edited = Replaced::edited(&model, edit);
                    loss(&edited, ids, |_| {})
                };
                sum += ((at(0.01) - at(-0.01)) / 0.02).powi(2);
            }
        }
        println!("{map}, row {row}: {sum:.4} by differences, {:.4} by the tape", rows[row]);
        assert!((sum / rows[row] - 1.0).abs() < 0.05, "{map}: {sum} and {}", rows[row]);
    }
}

#[test]
fn batches_change_nothing_but_rounding() {
    let model = open("stories260k");
    let text = stories(&model, 5, 20);
    for labels in [Labels::Next, Labels::Sampled { seed: 4 }] {
        let options = GradientOptions { labels, row_fisher: Some(RowFisher::PerExample) };
        let one = collect_on(&Compute::host(), &model.checkpoint, &text, None, options, 1).expect("gradients");
        let two = collect_on(&Compute::host(), &model.checkpoint, &text, None, options, 2).expect("gradients");
        assert!((one.loss.sum / two.loss.sum - 1.0).abs() < 1e-6);
        assert!(relative(wide(&one.first), wide(&two.first)) < 1e-5);
        for (one, two) in one.layers.iter().zip(&two.layers) {
            for map in modegpt::statistics::LINEARS {
                let (one, two) = (&one.row_fisher[map], &two.row_fisher[map]);
                assert!(relative(one.iter().copied(), two.iter().copied()) < 1e-5, "{map}");
            }
        }
    }
}

#[test]
fn only_tokens_that_count_have_a_loss() {
    let model = open("opt-tiny-stories");
    let mut text = stories(&model, 2, 30);
    // A prompt of 10 tokens, a completion, and in the second sample 8 tokens that fill it up.
    let counted: Vec<bool> = (0..60).map(|at| at % 30 >= 10 && at < 52).collect();
    let found = collect(&model.checkpoint, &text, Some(&counted), NEXT);
    assert_eq!(found.loss.n_tokens, 20 + 12);
    let expected = whole(&model.checkpoint, &text, |at| counted[at]);
    assert!((found.loss.sum / expected.loss - 1.0).abs() < 1e-5);
    assert!(relative(wide(&found.first), wide(&expected.first)) < RELATIVE);

    let d_model = model.config().d_model;
    assert!(found.first[51 * d_model..].iter().all(|g| *g == 0.0), "what fills a sample up has no gradient");
    text.windows.ids[52..].fill(7);
    let other = collect(&model.checkpoint, &text, Some(&counted), NEXT);
    assert!(relative(wide(&other.first), wide(&found.first)) < 1e-6, "nor does it matter what it is");

    let none = vec![false; 60];
    let refused = collect_on(&Compute::host(), &model.checkpoint, &text, Some(&none), NEXT, 1);
    assert!(matches!(refused, Err(GradientError::NothingCounted)));
}

/// The gradient at the last stream for one seed, and the loss.
fn last_gradient(model: &Model, text: &Calibration, seed: u64) -> (Vec<f32>, Loss) {
    let (compute, windows) = (Compute::host(), &text.windows);
    let mut tape = Tape::in_memory(model.config(), windows.n, windows.seq_len, 4);
    let samples = Samples { ids: &windows.ids, counted: None };
    let weights = &model.checkpoint;
    pollster::block_on(forward(weights, &samples, &mut tape, &compute, |_| {})).expect("a forward pass");
    let labels = Labels::Sampled { seed };
    let loss = loss_gradient(weights, &samples, labels, &mut tape, &compute, |_, _| {});
    let loss = pollster::block_on(loss).expect("a loss");
    (tape.load(model.config().layers.len(), &(0..windows.n)).expect("the tape"), loss)
}

#[test]
fn gradients_of_sampled_labels_vanish_in_the_mean() {
    for name in ["stories260k", "opt-tiny-stories"] {
        let model = open(name);
        let text = stories(&model, 2, 64);
        let n_seeds = 48;
        let mut sum = vec![0.0; 2 * 64 * model.config().d_model];
        let (mut energy, mut losses) = (0.0, 0.0);
        for seed in 0..n_seeds {
            let (gradient, loss) = last_gradient(&model, &text, seed);
            energy += wide(&gradient).map(|g| g * g).sum::<f64>();
            losses += loss.sum / loss.n_tokens as f64 / n_seeds as f64;
            sum.iter_mut().zip(wide(&gradient)).for_each(|(sum, g)| *sum += g);
        }
        // Independent draws of mean zero: the energy of the sum is the sum of the energies. With labels of the text the
        // same for all seeds it would be 48 times that.
        let ratio = sum.iter().map(|s| s * s).sum::<f64>() / energy;
        let entropy = mean_entropy(&model, &text);
        println!("{name}: energy ratio {ratio:.3}, loss {losses:.4}, entropy {entropy:.4}");
        assert!((0.7..1.4).contains(&ratio), "{name}: {ratio}");
        assert!((losses / entropy - 1.0).abs() < 0.05, "{name}: loss {losses}, entropy {entropy}");
        assert_eq!(last_gradient(&model, &text, 5), last_gradient(&model, &text, 5));
        assert_ne!(last_gradient(&model, &text, 5), last_gradient(&model, &text, 6));
    }
}

/// What the loss of sampled labels is in the mean.
fn mean_entropy(model: &Model, text: &Calibration) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for ids in &text.windows {
        let logits = modegpt_tests::logits(model, ids, &Compute::host());
        for row in logits.chunks_exact(model.config().vocab).take(ids.len() - 1) {
            let total = wide(row).map(f64::exp).sum::<f64>().ln();
            sum -= wide(row).map(|logit| (logit - total).exp() * (logit - total)).sum::<f64>();
            n += 1.0;
        }
    }
    sum / n
}

#[test]
fn every_layer_is_loaded_once_forward_and_once_backward() {
    let model = open("stories260k");
    let text = stories(&model, 3, 12);
    let edited = Replaced::edited(&model, |_, _| {});
    collect(&edited, &text, None, NEXT);
    assert_eq!(edited.asked(), [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]);
}

#[test]
fn what_cannot_be_differentiated_is_refused() {
    let model = open("stories260k");
    let text = stories(&model, 2, 12);
    let mut bad = text.clone();
    bad.windows.ids.pop();
    let refused = collect_on(&Compute::host(), &model.checkpoint, &bad, None, NEXT, 1).err().expect("too few tokens");
    assert_eq!(refused.to_string(), "tokens: expected 24 (2 samples of 12 tokens), found 23");
    let refused =
        collect_on(&Compute::host(), &model.checkpoint, &text, Some(&[true]), NEXT, 1).err().expect("too short a mask");
    assert_eq!(refused.to_string(), "mask of tokens that count: expected 24 (2 samples of 12 tokens), found 1");
    let mut bad = text.clone();
    bad.windows.ids[3] = 512;
    let refused = collect_on(&Compute::host(), &model.checkpoint, &bad, None, NEXT, 1).err().expect("an unknown token");
    assert_eq!(refused.to_string(), "token 3 has the id 512, but the vocabulary ends at 512");

    let edit = |index: usize, weights: &mut LayerWeights| {
        if index == 3 {
            weights.down.weight.data[0] = f32::NAN;
        }
    };
    let broken = Replaced::edited(&model, edit);
    let refused =
        collect_on(&Compute::host(), &broken, &text, None, NEXT, 1).err().expect("a weight that is no number");
    assert!(refused.to_string().starts_with("layer 3: the output holds values that are not finite"), "{refused}");
}

#[test]
fn a_folder_holds_what_was_collected_wherever_the_tape_was() {
    let model = open("opt-tiny-stories");
    let text = stories(&model, 3, 40);
    let options = GradientOptions { labels: Labels::Sampled { seed: 9 }, row_fisher: Some(RowFisher::PerExample) };
    let expected = collect(&model.checkpoint, &text, None, options);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let compute = Compute::host();
    let run = |max_host_bytes| GradientRun {
        model: &model,
        samples: &text,
        counted: None,
        options,
        compute: &compute,
        batch_tokens: 40,
        max_host_bytes,
        reporter: &Silent,
    };
    let write = |name: &str, max_host_bytes| {
        let (run, target) = (run(max_host_bytes), folder.path().join(name));
        pollster::block_on(run::collect_gradients(&run, &target, modegpt::checkpoint::Existing::Refuse))
    };
    let in_memory = write("memory", None).expect("gradients");
    let plan = run(None).memory_plan();
    let enough = plan.host_bytes - plan.stream_bytes;
    assert!(run(Some(enough)).memory_plan().stream_on_disk);
    write("disk", Some(enough)).expect("gradients");
    let refused = write("nowhere", Some(enough - 1)).expect_err("too little memory");
    assert!(matches!(refused, RunError::Memory { .. }), "{refused}");
    for (layer, expected) in expected.layers.iter().enumerate() {
        let name = GradientsFolder::file_name(layer);
        let (found, header) = GradientsFolder::new(&in_memory).read(layer, model.fingerprint()).expect("a file");
        assert_eq!(&found, expected);
        assert_eq!((header.layer, header.labels, header.n_samples), (layer, options.labels, 3));
        let bytes = |at: &std::path::Path| std::fs::read(at.join(&name)).expect("a file");
        assert_eq!(bytes(&in_memory), bytes(&folder.path().join("disk")), "{name}");
    }
    assert!(GradientsFolder::new(&in_memory).read(0, "another").is_err());
    let names = std::fs::read_dir(folder.path().join("disk")).expect("a folder").count();
    assert_eq!(names, model.config().layers.len(), "no scratch file is left");
}
