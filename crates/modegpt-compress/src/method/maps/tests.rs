//! The laws of the metrics, on random layers: which are the same, which error is whose, and what is refused.

use std::collections::BTreeMap;

use modegpt_architecture::{FactorRanks, ModelConfig};
use modegpt_statistics::{LayerGradients, LayerStatistics};

use super::*;
use crate::{
    Methods, Mode, Orders, Ridges, compress_layer,
    testing::{Random, TinyModel, assert_close, forward, gram_of, plan, tokens_of, whole_statistics},
};

const ASVD: MapMetric = MapMetric::Asvd { alpha: MapMetric::ASVD_ALPHA };

#[derive(Clone)]
struct Sample {
    config: ModelConfig,
    weights: LayerWeights,
    statistics: LayerStatistics,
    gradients: LayerGradients,
}

impl Sample {
    fn new(model: &TinyModel) -> Self {
        let (config, weights) = (model.config(), model.weights(1));
        let statistics = whole_statistics(&config, &weights, tokens_of(model, 200).as_ref());
        let mut random = Random::new(9);
        let mut gram = |dim: usize| gram_of(random.mat(50, dim).as_ref());
        let heads = |n: usize| (0..n).map(|head| gram_of(Random::new(head as u64).mat(50, 8).as_ref())).collect();
        let gradients = LayerGradients {
            n_tokens: 100,
            loss_sum: 250.0,
            residual: gram(config.d_model),
            attention_residual: gram(config.d_model),
            query_gain: if config.is_rotary() { heads(config.n_heads) } else { Vec::new() },
            query: heads(config.n_heads),
            key: heads(config.n_kv_heads),
            row_fisher: weights.linears().map(|(name, linear)| (name, vec![2.0; linear.weight.rows])).collect(),
        };
        Self { config, weights, statistics, gradients }
    }

    fn layer(&self) -> Layer<'_> {
        let gradients = Some(&self.gradients);
        Layer { gradients, ..crate::testing::layer(0, &self.config, &self.weights, &self.statistics) }
    }

    fn try_compress(&self, rank: usize, metric: MapMetric) -> Result<CompressedLayer, Error> {
        let has = |name| self.weights.maps().any(|(other, _)| other == name);
        let ranks = FactorRanks::from_fn(|name| has(name).then_some(rank));
        let methods = Methods { maps: Some(metric), ..Methods::PAPER };
        compress_layer(
            &self.layer(),
            &LayerPlan { ranks, ..plan(48, 8, 8) },
            methods,
            Ridges::default(),
            &Orders::default(),
        )
    }

    fn compress(&self, rank: usize, metric: MapMetric) -> CompressedLayer {
        self.try_compress(rank, metric).expect("a good layer and a good plan")
    }

    fn refused(&self, metric: MapMetric) -> String {
        self.try_compress(4, metric).expect_err("must be refused").to_string()
    }
}

fn models() -> [TinyModel; 2] {
    [TinyModel::opt(), TinyModel::llama()]
}

#[track_caller]
fn assert_same(found: &CompressedLayer, expected: &CompressedLayer, tolerance: f64) {
    for ((_, found), (_, expected)) in found.weights.maps().zip(expected.weights.maps()) {
        assert_close(product(&found.weight).as_ref(), product(&expected.weight).as_ref(), tolerance);
    }
}

#[test]
fn without_anything_to_weigh_all_metrics_are_the_plain_one() {
    for model in models() {
        let mut sample = Sample::new(&model);
        let plain = sample.compress(5, MapMetric::Svd {});
        for ((name, found), (_, exact)) in plain.weights.maps().zip(sample.weights.maps()) {
            let expected = modegpt_linalg::truncated_svd(widen(&exact.weight).as_ref(), 5).expect("converges");
            assert_close(product(&found.weight).as_ref(), expected.reconstruct().as_ref(), 1e-5);
            let report = plain.report.maps.iter().find(|map| map.name == name).expect("every map is reported");
            let tail: f64 = expected.singular_values[5..].iter().map(|value| value * value).sum();
            assert!((report.energy * report.relative_error - tail).abs() < 1e-9 * report.energy);
        }
        // Equal information everywhere, a power of zero, inputs of one size.
        assert_same(&sample.compress(5, MapMetric::Fwsvd {}), &plain, 1e-5);
        assert_same(&sample.compress(5, MapMetric::Asvd { alpha: 0.0 }), &plain, 1e-5);
        let identity = |dim: usize| gram_of(Mat::<f64>::identity(dim, dim).as_ref());
        sample.statistics.mlp = identity(48);
        let inputs = sample.statistics.inputs.as_mut().expect("collected");
        (inputs.attention, inputs.output, inputs.mlp) = (identity(32), identity(32), identity(32));
        assert_same(&sample.compress(5, MapMetric::SvdLlm {}), &plain, 1e-5);
        let sizes = sample.statistics.magnitudes.as_mut().expect("collected");
        for sums in [&mut sizes.attention, &mut sizes.output, &mut sizes.mlp, &mut sizes.hidden] {
            sums.fill(3.0);
        }
        assert_same(&sample.compress(5, ASVD), &plain, 1e-5);
    }
}

/// In the whitened metric the error is that of the outputs, which no other factors of the rank undercut.
#[test]
fn svd_llm_loses_the_tail_of_the_whitened_map_and_least_of_all() {
    for model in models() {
        let sample = Sample::new(&model);
        let whitened = sample.compress(6, MapMetric::SvdLlm {});
        for metric in [MapMetric::Svd {}, MapMetric::Fwsvd {}, ASVD] {
            let other = sample.compress(6, metric);
            for (best, other) in whitened.report.maps.iter().zip(&other.report.maps) {
                assert!(best.output_error <= other.output_error.map(|error| error + 1e-9), "{metric:?}, {}", best.name);
            }
        }
        for map in &whitened.report.maps {
            let name = map.name;
            let spectrum = spectrum(&sample.layer(), name, MapMetric::SvdLlm {}).expect("definite");
            let tail = spectrum[6..].iter().sum::<f64>() / spectrum.iter().sum::<f64>();
            assert!((map.relative_error - tail).abs() < 1e-12, "{name}");
            assert!((map.output_error.expect("known") - tail).abs() < 1e-6, "{name}: {map:?} {tail}");
        }
        let x = tokens_of(&model, 200);
        let (exact, found) = (&x * widen(&sample.weights.up.weight), &x * product(&whitened.weights.up.weight));
        let direct = (&exact - found).squared_norm_l2() / exact.squared_norm_l2();
        let up = whitened.report.maps.iter().find(|map| map.name == MapName::Up).expect("factorised");
        assert!((up.output_error.expect("known") - direct).abs() < 1e-9);
    }
}

/// `S A B = [S W]_r` with `S = diag (mean |x_i|)^α`, from the inputs themselves.
#[test]
fn asvd_truncates_the_map_whose_rows_are_scaled_by_mean_magnitudes() {
    for model in models() {
        let sample = Sample::new(&model);
        let x = tokens_of(&model, 200);
        let hidden = crate::testing::hidden(&sample.weights, x.as_ref());
        for alpha in [0.5, 1.0] {
            let small = sample.compress(6, MapMetric::Asvd { alpha });
            let maps =
                [(&sample.weights.up, &small.weights.up, &x), (&sample.weights.down, &small.weights.down, &hidden)];
            for (old, new, input) in maps {
                let size = |row: usize| input.col(row).iter().map(|value| value.abs()).sum::<f64>() / 200.0;
                let scaled = |matrix: Mat<f64>| {
                    let entry = |row, col| size(row).powf(alpha) * matrix[(row, col)];
                    Mat::from_fn(matrix.nrows(), matrix.ncols(), entry)
                };
                let cut = modegpt_linalg::truncated_svd(scaled(widen(&old.weight)).as_ref(), 6).expect("converges");
                assert_close(scaled(product(&new.weight)).as_ref(), cut.reconstruct().as_ref(), 1e-5);
            }
        }
    }
}

/// `‖diag √I (W - A B)‖²` is least of all metrics by Fisher-weighted SVD, `Σ_i I_i ‖W_i - (A B)_i‖²`.
#[test]
fn fwsvd_loses_least_of_what_the_rows_are_worth() {
    let mut sample = Sample::new(&TinyModel::llama());
    let mut random = Random::new(4);
    for row in sample.gradients.row_fisher.values_mut() {
        for information in row.iter_mut() {
            *information = random.uniform().powi(3);
        }
    }
    let lost = |layer: &CompressedLayer| {
        let worth = &sample.gradients.row_fisher["down"];
        let rest = widen(&sample.weights.down.weight) - product(&layer.weights.down.weight);
        worth.iter().zip(rest.row_iter()).map(|(worth, row)| worth * row.squared_norm_l2()).sum::<f64>()
    };
    let weighted = sample.compress(7, MapMetric::Fwsvd {});
    assert!(lost(&weighted) < 0.9 * lost(&sample.compress(7, MapMetric::Svd {})));
    let report = weighted.report.maps.iter().find(|map| map.name == MapName::Down).expect("factorised");
    assert!((lost(&weighted) - report.relative_error * report.energy).abs() < 1e-5 * report.energy);
}

/// With what each token's value is, attention delivers it and the bias with it; the output bias makes up for the factors.
#[test]
fn the_value_bias_still_does_what_it_did() {
    let sample = Sample::new(&TinyModel::opt());
    let small = sample.compress(9, MapMetric::SvdLlm {});
    let (old, new) = (&sample.weights, &small.weights);
    let one = Mat::<f64>::zeros(1, 32);
    let rows =
        forward(&Linear { weight: Matrix::new(32, 32, vec![0.0; 1024]), ..old.value.clone() }, one.as_ref(), true);
    let before = forward(&old.output, rows.as_ref(), true);
    let mut after = rows * product(&new.output.weight);
    for (sum, &bias) in after.row_mut(0).iter_mut().zip(new.output.bias.as_ref().expect("a bias")) {
        *sum += f64::from(bias);
    }
    assert_close(after.as_ref(), before.as_ref(), 1e-5);
    assert_ne!(new.output.bias, old.output.bias);
    assert_eq!(new.value.bias, old.value.bias);
}

#[test]
fn maps_without_a_rank_stay_bit_for_bit_and_are_reported_as_dense() {
    let sample = Sample::new(&TinyModel::llama());
    let ranks = FactorRanks { key: Some(3), up: Some(4), ..FactorRanks::default() };
    let methods = Mode::SvdLlm.methods();
    let layer_plan = LayerPlan { ranks, ..plan(48, 8, 8) };
    let small =
        compress_layer(&sample.layer(), &layer_plan, methods, Ridges::default(), &Orders::default()).expect("fine");
    assert_eq!(small.shape.ranks, ranks);
    let old: LayerWeights<Weight> = sample.weights.clone().into();
    assert_eq!((&small.weights.query, &small.weights.down), (&old.query, &old.down));
    let told: Vec<_> = small.report.maps.iter().map(|map| (map.name, map.rank)).collect();
    let expected: Vec<_> = MapName::ALL.into_iter().map(|name| (name, ranks.get(name))).collect();
    assert_eq!(told, expected);
    let before = sample.config.linear_params(&sample.config.layers[0]) as f64;
    let after = sample.config.linear_params(&small.shape) as f64;
    assert!((small.report.sparsity - (1.0 - after / before)).abs() < 1e-12);
    assert!(small.report.value_output.relative_error == 0.0 && small.report.mlp.relative_error > 0.0);
}

#[test]
fn statistics_that_are_missing_are_refused_by_layer_and_module() {
    let mut sample = Sample::new(&TinyModel::llama());
    sample.gradients.row_fisher = BTreeMap::new();
    assert_eq!(
        sample.refused(MapMetric::Fwsvd {}),
        "layer 0, query-key: Fisher information of rows expected one number for each input, \
         found gradients collected without it"
    );
    sample.statistics.magnitudes = None;
    assert_eq!(
        sample.refused(ASVD),
        "layer 0, query-key: statistic `magnitudes` expected the mean magnitudes of the inputs of whole maps, \
         found statistics collected without it"
    );
    sample.statistics.inputs = None;
    assert!(sample.refused(MapMetric::SvdLlm {}).contains("statistic `inputs`"));
    // Nothing but the report needs them.
    let plain = sample.compress(4, MapMetric::Svd {});
    assert!(plain.report.maps.iter().all(|map| map.output_error.is_none() == (map.name != MapName::Down)));
}

/// What is nowhere worth anything is cut by its plain singular values, at no cost.
#[test]
fn silent_maps_and_layers_cost_nothing() {
    let mut sample = Sample::new(&TinyModel::llama());
    let plain = sample.compress(4, MapMetric::Svd {});
    sample.gradients.row_fisher.insert("down", vec![0.0; 48]);
    sample.statistics.mlp = Gram::zeros(48);
    sample.statistics.magnitudes.as_mut().expect("collected").hidden.fill(0.0);
    for metric in [MapMetric::Fwsvd {}, ASVD, MapMetric::SvdLlm {}] {
        let small = sample.compress(4, metric);
        assert_eq!(small.weights.down, plain.weights.down, "{metric:?}");
        let told = small.report.maps.iter().find(|map| map.name == MapName::Down).expect("factorised");
        assert_eq!((told.relative_error, told.energy, told.rank), (0.0, 0.0, Some(4)), "{metric:?}");
        let others = small.report.maps.iter().filter(|map| map.name != MapName::Down);
        assert!(others.map(|map| map.relative_error).all(|error| error > 0.0), "{metric:?}");
        let curve = &curves(&sample.layer(), 3, 0.9, metric).expect("fine")[&MapName::Down];
        assert!(curve.errors.iter().all(|&error| error == 0.0), "{metric:?}");

        let mut silent = sample.clone();
        silent.gradients.row_fisher.values_mut().for_each(|rows| rows.fill(0.0));
        let inputs = silent.statistics.inputs.as_mut().expect("collected");
        for gram in [&mut inputs.attention, &mut inputs.output, &mut inputs.mlp] {
            *gram = Gram::zeros(gram.dim());
        }
        let sizes = silent.statistics.magnitudes.as_mut().expect("collected");
        for sums in [&mut sizes.attention, &mut sizes.output, &mut sizes.mlp] {
            sums.fill(0.0);
        }
        let small = silent.compress(4, metric);
        assert_same(&small, &plain, 1e-12);
        assert!(small.report.mlp.relative_error <= 0.0);
        let curves = curves(&silent.layer(), 3, 0.9, metric).expect("fine");
        assert!(curves.values().flat_map(|curve| &curve.errors).all(|&error| error == 0.0), "{metric:?}");
    }
}

#[test]
fn a_gram_of_rank_one_and_dead_channels_give_finite_factors_and_are_told() {
    for metric in [MapMetric::SvdLlm {}, ASVD] {
        let mut sample = Sample::new(&TinyModel::opt());
        sample.statistics.mlp = gram_of(Random::new(3).mat(1, 48).as_ref());
        let inputs = sample.statistics.inputs.as_mut().expect("collected");
        let mut x = Random::new(5).mat(100, 32);
        x.col_mut(7).fill(0.0);
        inputs.mlp = gram_of(x.as_ref());
        sample.statistics.magnitudes.as_mut().expect("collected").mlp[7] = 0.0;
        let small = sample.compress(6, metric);
        let of = |name| small.report.maps.iter().find(|map| map.name == name).expect("factorised");
        assert!(of(MapName::Up).fallbacks > 0 && small.report.mlp.fallbacks > 0, "{metric:?}");
        if metric == (MapMetric::SvdLlm {}) {
            assert!(of(MapName::Down).fallbacks > 0 && of(MapName::Down).output_error.expect("known") < 1e-6);
        }
    }
}

#[test]
fn curves_are_what_compression_then_loses() {
    let sample = Sample::new(&TinyModel::llama());
    for metric in [MapMetric::Svd {}, MapMetric::Fwsvd {}, ASVD, MapMetric::SvdLlm {}] {
        let curves = curves(&sample.layer(), 3, 0.9, metric).expect("fine");
        assert_eq!(curves.len(), 7);
        let small = sample.compress(6, metric);
        for map in &small.report.maps {
            let curve = &curves[&map.name];
            assert!(curve.errors.is_sorted_by(|a, b| a >= b), "{metric:?}, {}", map.name);
            let at = curve.ranks.binary_search(&6).expect("on the grid");
            let expected = match metric {
                // ½ Σ I ‖ΔW‖² over 100 tokens.
                MapMetric::Fwsvd {} => 0.5 * map.relative_error * map.energy / 100.0,
                _ => map.relative_error,
            };
            assert!((curve.errors[at] - expected).abs() <= 1e-9 * expected, "{metric:?}, {}", map.name);
        }
    }
}
