//! The refit on the compressed prefix against its definition: whole streams in memory, sums in f64, no shortcut.

use burn::tensor::Tensor;
use modegpt::architecture::{DType, LayerWeights, Matrix, ModelConfig, WeightProvider};
use modegpt::calibration::{Collect, GramPath, forward_with_units};
use modegpt::compress::{Methods, Mode, PrefixRefit, Target, refit_down, refit_output};
use modegpt::linalg::Gram;
use modegpt::model_runtime::{Block, Compute, Embedder, Half};
use modegpt::run::{CalibrationRun, CompressionOptions, PlanRequest, PlanSource, compress};
use modegpt::statistics::PrefixStatistics;
use modegpt_tests::{open, open_folder, stories};

const N_SAMPLES: usize = 8;
const SEQ_LEN: usize = 128;
const TOKENS_PER_UNIT: f64 = 8.0;

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().try_to_vec::<f32>().expect("f32").into_iter().map(f64::from).collect()
}

/// Samples with both their streams before the next half, and for how many tokens each token counts.
struct Streams {
    original: Tensor<3>,
    compressed: Tensor<3>,
    counts: Vec<f64>,
}

/// The sums over all tokens for the last map of that half of `block`; `wanted` behind it is the stream of each of the samples.
fn sums(block: &Block, half: Half, samples: &[Streams], wanted: &[Vec<f64>]) -> PrefixStatistics {
    let mut sums: Option<PrefixStatistics> = None;
    for (streams, wanted) in samples.iter().zip(wanted) {
        let (_, units) = forward_with_units(block, half, streams.compressed.clone());
        let (k, d_model) = (units.dims()[1], streams.compressed.dims()[2]);
        let (units, before) = (values(units), values(streams.compressed.clone()));
        let mut packed = vec![0.0; k * (k + 1) / 2];
        let (mut cross, mut unit_sum, mut target_sum) = (vec![0.0; k * d_model], vec![0.0; k], vec![0.0; d_model]);
        let mut weight_sum = 0.0;
        for (token, z) in units.chunks_exact(k).enumerate() {
            let row = token * d_model..(token + 1) * d_model;
            let y = &wanted[row.clone()];
            let target: Vec<f64> = y.iter().zip(&before[row]).map(|(y, x)| y - x).collect();
            let weight = streams.counts[token] / y.iter().map(|value| value * value).sum::<f64>();
            weight_sum += weight;
            for i in 0..k {
                unit_sum[i] += weight * z[i];
                (0..=i).for_each(|j| packed[i * (i + 1) / 2 + j] += weight * z[i] * z[j]);
                (0..d_model).for_each(|j| cross[i * d_model + j] += weight * z[i] * target[j]);
            }
            (0..d_model).for_each(|j| target_sum[j] += weight * target[j]);
        }
        let gram = Gram::from_packed_lower(k, packed).expect("a triangle");
        let more = PrefixStatistics { gram, cross, unit_sum, target_sum, weight_sum };
        let Some(sums) = &mut sums else {
            sums = Some(more);
            continue;
        };
        let add = |sum: &mut [f64], more: &[f64]| sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        sums.gram.add(&more.gram).expect("of one size");
        add(&mut sums.cross, &more.cross);
        add(&mut sums.unit_sum, &more.unit_sum);
        add(&mut sums.target_sum, &more.target_sum);
        sums.weight_sum += more.weight_sum;
    }
    sums.expect("samples")
}

/// What texts may begin with: each token of every 16th place once, counting as often as it stands there, and as often as all of
/// these what the tokenizer puts first; together they count as an eighth of all tokens.
fn openings(ids: &[u32], prefix_ids: &[u32]) -> Vec<(u32, f64)> {
    let places: Vec<u32> = ids.iter().copied().step_by(16).collect();
    let mut openings: Vec<(u32, f64)> = Vec::new();
    let first = prefix_ids.first().map(|first| vec![*first; places.len()]).unwrap_or_default();
    for id in places.into_iter().chain(first) {
        match openings.iter_mut().find(|(known, _)| *known == id) {
            Some((_, count)) => *count += 1.0,
            None => openings.push((id, 1.0)),
        }
    }
    let total: f64 = openings.iter().map(|(_, count)| count).sum();
    openings.iter().map(|(id, count)| (*id, count / total * ids.len() as f64 / 8.0)).collect()
}

/// The largest difference as a share of the largest value.
fn distance(found: &Matrix, expected: &Matrix) -> f32 {
    let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    let pairs = || found.data.iter().zip(&expected.data);
    assert_eq!((found.rows, found.cols), (expected.rows, expected.cols));
    most(&mut pairs().map(|(f, e)| (f - e).abs())) / most(&mut expected.data.iter().map(|e| e.abs()))
}

#[test]
fn a_half_whose_units_are_known_gives_what_it_gives_otherwise() {
    let compute = Compute::host();
    for name in ["stories260k", "opt-tiny-stories", "gpt2-tiny-stories"] {
        let model = open(name);
        let config = model.config();
        let embedder = Embedder::new(&model.checkpoint, &compute).expect("embeddings");
        let ids = stories(&model, 2, 16).windows.ids;
        let before = embedder.embed(&model.checkpoint, &ids, 2, 0, &compute).expect("the stream before layer 0");
        let weights = model.checkpoint.layer(0).expect("a layer");
        let block = Block::new(weights, &config.layers[0], config, &compute);
        for half in [Half::Attention, Half::Mlp] {
            let (whole, units) = forward_with_units(&block, half, before.clone());
            assert_eq!(values(block.finish_half(half, before.clone(), units)), values(whole), "{name}, {half:?}");
        }
    }
}

/// What is wanted behind a half is halfway between the stream of the original model and the compressed one with what the
/// original half adds: to the original stream if it is attention, to the compressed one if it is the MLP. Beside the samples
/// there are their openings. The output of the same plan without the refit is where it begins.
#[test]
fn the_refit_is_the_one_of_its_definition() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let compute = Compute::host();
    for name in ["stories260k", "opt-tiny-stories"] {
        let model = open(name);
        let calibration = stories(&model, N_SAMPLES, SEQ_LEN);
        let run = CalibrationRun {
            collect: Collect { logits: true, ..Collect::default() },
            batch_tokens: 3 * SEQ_LEN,
            ..CalibrationRun::new(&model, &calibration, &compute, GramPath::Host)
        };
        let compressed = |label: &str, plan: PlanSource| {
            let options = CompressionOptions { dtype: Some(DType::F32), ..CompressionOptions::new(plan) };
            let target = folder.path().join(format!("{name}-{label}"));
            let result = pollster::block_on(compress(&run, &options, &target)).expect("compresses");
            (open_folder(&target), result.plan)
        };
        let request = PlanRequest::new(Target::Sparsity(0.3), Mode::Best);
        let (begun, mut plan) = compressed("begun", PlanSource::Make(request));
        assert_eq!((plan.methods.prefix, plan.ridges.prefix), (PrefixRefit::None, TOKENS_PER_UNIT));
        for maps in [PrefixRefit::Output, PrefixRefit::All] {
            plan.methods = Methods { prefix: maps, ..plan.methods };
            let (refitted, _) = compressed(&format!("{maps:?}"), PlanSource::Given(Box::new(plan.clone())));

            let config = model.config();
            let dense = |model: &modegpt::Model, layer| -> LayerWeights {
                model.checkpoint.layer(layer).expect("a layer").into_dense().expect("no products")
            };
            let embedder = Embedder::new(&model.checkpoint, &compute).expect("embeddings");
            let ids = &calibration.windows.ids;
            let (first_ids, first_counts): (Vec<u32>, Vec<f64>) =
                openings(ids, model.tokenizer.prefix_ids()).into_iter().unzip();
            assert!(first_ids.len() > 10, "{first_ids:?}");
            let streams_of = |ids: &[u32], n_samples: usize, counts: Vec<f64>| {
                let embedded = embedder.embed(&model.checkpoint, ids, n_samples, 0, &compute);
                let original = embedded.expect("the stream before layer 0");
                Streams { compressed: original.clone(), original, counts }
            };
            let mut samples = [
                streams_of(ids, N_SAMPLES, vec![1.0; ids.len()]),
                streams_of(&first_ids, first_ids.len(), first_counts),
            ];
            let n_layers = config.layers.len();
            let mut farthest: f32 = 0.0;
            for layer in 0..n_layers {
                let whole = Block::new(dense(&model, layer), &config.layers[layer], config, &compute);
                let shape = &begun.config().layers[layer];
                let small = ModelConfig { layers: vec![shape.clone()], ..config.clone() };
                let block = |weights: &LayerWeights| Block::new(weights.clone(), shape, &small, &compute);
                let mut weights = dense(&begun, layer);
                let begins = weights.clone();
                for half in [Half::Attention, Half::Mlp] {
                    let wanted = samples.each_mut().map(|Streams { original, compressed, .. }| {
                        let behind = whole.forward_half(half, original.clone());
                        let erroneous = match half {
                            Half::Attention => compressed.clone() + (behind.clone() - original.clone()),
                            Half::Mlp => whole.forward_half(half, compressed.clone()),
                        };
                        *original = behind;
                        let pairs = values(original.clone()).into_iter().zip(values(erroneous));
                        pairs.map(|(y, of_stream)| f64::midpoint(y, of_stream)).collect::<Vec<f64>>()
                    });
                    let map = if half == Half::Attention { &weights.output } else { &weights.down };
                    let ridge = TOKENS_PER_UNIT * map.weight.rows as f64 / ids.len() as f64;
                    if half == Half::Attention || maps == PrefixRefit::All {
                        let refit = if half == Half::Attention { refit_output } else { refit_down };
                        let seen = sums(&block(&weights), half, &samples, &wanted);
                        weights = refit(layer, &weights, &seen, ridge).expect("regular").0;
                    }
                    for streams in &mut samples {
                        streams.compressed = block(&weights).forward_half(half, streams.compressed.clone());
                    }
                }
                let found = dense(&refitted, layer);
                for (map, found, expected, begins) in [
                    ("output", &found.output, &weights.output, &begins.output),
                    ("down", &found.down, &weights.down, &begins.down),
                ] {
                    let differs = distance(&found.weight, &expected.weight);
                    assert!(differs < 1e-4, "{name}, {maps:?}, layer {layer}, {map} map: {differs}");
                    farthest = farthest.max(distance(&found.weight, &begins.weight));
                }
            }
            assert!(farthest > 0.01, "{name}, {maps:?}: no map moved by more than {farthest}");
        }
    }
}
