//! Whole layers: what must not change, what must be refused, and how the parts come together.

use faer::Mat;
use modegpt_architecture::{Matrix, ModelConfig};
use modegpt_linalg::Gram;
use modegpt_statistics::LayerStatistics;

use super::*;
use crate::testing::{Random, TinyModel, assert_close, attend, forward, hidden, plan, statistics};

fn models() -> [TinyModel; 4] {
    let shared_with_bias = TinyModel { biases: true, ..TinyModel::llama() };
    [TinyModel::opt(), TinyModel::llama(), TinyModel::default(), shared_with_bias]
}

fn by_paper(layer: &Layer<'_>, plan: &LayerPlan) -> Result<CompressedLayer<Matrix>, Error> {
    let compressed = compress_layer(layer, plan, Methods::PAPER, Ridges::default(), &Orders::default())?;
    let CompressedLayer { weights, shape, units, report } = compressed;
    Ok(CompressedLayer { weights: weights.into_dense().expect("modules stay dense"), shape, units, report })
}

struct Sample {
    config: ModelConfig,
    weights: LayerWeights,
    statistics: LayerStatistics,
    x: Mat<f64>,
}

impl Sample {
    fn new(model: &TinyModel) -> Self {
        let (config, weights, x) = (model.config(), model.weights(1), Random::new(2).mat(300, model.d_model));
        let statistics = statistics(&config, &weights, x.as_ref());
        Self { config, weights, statistics, x }
    }

    fn compress(&self, plan: &LayerPlan) -> Result<CompressedLayer<Matrix>, Error> {
        let Self { config, weights, statistics, .. } = self;
        by_paper(&crate::testing::layer(0, config, weights, statistics), plan)
    }

    fn compressed(&self, plan: &LayerPlan) -> CompressedLayer<Matrix> {
        self.compress(plan).expect("a good layer and a good plan")
    }

    fn refused(&self, plan: &LayerPlan) -> String {
        self.compress(plan).expect_err("must be refused").to_string()
    }
}

#[test]
fn dense_widths_return_the_very_same_layer() {
    for model in models() {
        let layer = Sample::new(&model);
        let same = layer.compressed(&plan(48, 8, 8));
        assert_eq!(same.weights, layer.weights);
        assert_eq!(same.shape, layer.config.layers[0]);
        assert!(same.report.sparsity == 0.0 && same.report.mlp.relative_error == 0.0);
    }
}

#[test]
fn modules_do_not_touch_each_other() {
    for model in models() {
        let layer = Sample::new(&model);
        let original = &layer.weights;
        let all = layer.compressed(&plan(24, 4, 4)).weights;
        let mlp = layer.compressed(&plan(24, 8, 8)).weights;
        assert_eq!((&mlp.up, &mlp.gate, &mlp.down), (&all.up, &all.gate, &all.down));
        assert_eq!((&mlp.query, &mlp.value, &mlp.output), (&original.query, &original.value, &original.output));
        let query_key = layer.compressed(&plan(48, 4, 8)).weights;
        assert_eq!((&query_key.query, &query_key.key), (&all.query, &all.key));
        assert_eq!((&query_key.up, &query_key.value), (&original.up, &original.value));
        let value_output = layer.compressed(&plan(48, 8, 4)).weights;
        assert_eq!((&value_output.value, &value_output.output), (&all.value, &all.output));
        assert_eq!((&value_output.down, &value_output.key), (&original.down, &original.key));
    }
}

#[test]
fn widths_and_report_are_those_of_the_plan() {
    for model in models() {
        let layer = Sample::new(&model);
        let CompressedLayer { weights, shape, units, report } = layer.compressed(&plan(20, 6, 3));
        assert_eq!(Widths::from(&shape), Widths { d_ff: 20, d_qk: 6, d_v: 3 });
        assert_eq!(Widths::from(&weights.widths(&layer.config)), Widths::from(&shape));
        assert_eq!(weights.output.weight.rows, 3 * layer.config.n_heads);
        assert_eq!((weights.down.weight.rows, units.len()), (20, 20));
        assert_eq!(weights.up.weight, layer.weights.up.weight.select_columns(&units));
        assert_eq!(shape.rotary_pairs.is_some(), model.rotary);
        assert!(shape.rotary_pairs.iter().flatten().all(|pairs| pairs.len() == 3 && pairs.is_sorted()));
        assert_eq!((report.before, report.after), ((&layer.config.layers[0]).into(), (&shape).into()));
        let params = |shape| layer.config.linear_params(shape) as f64;
        let removed = 1.0 - params(&shape) / params(&layer.config.layers[0]);
        assert!((report.sparsity - removed).abs() < 1e-15);
        for module in [report.mlp, report.query_key, report.value_output] {
            assert!(module.relative_error > 0.0 && module.relative_error < 1.0, "{module:?}");
        }
    }
}

#[test]
fn the_same_plan_gives_the_same_bits() {
    for model in models() {
        let (one, two) = (Sample::new(&model), Sample::new(&model));
        let plan = plan(17, 4, 5);
        assert_eq!(one.compressed(&plan), two.compressed(&plan));
    }
}

/// The error that the report gives is the one that the layer makes on its calibration tokens.
#[test]
fn the_mlp_of_the_layer_makes_the_reported_error() {
    for model in models() {
        let layer = Sample::new(&model);
        let CompressedLayer { weights, report, .. } = layer.compressed(&plan(30, 8, 8));
        let output = |weights: &LayerWeights| forward(&weights.down, hidden(weights, layer.x.as_ref()).as_ref(), false);
        let exact = output(&layer.weights);
        let error = (output(&weights) - &exact).squared_norm_l2() / exact.squared_norm_l2();
        assert!((report.mlp.relative_error - error).abs() < 1e-5 * error, "{error} {:?}", report.mlp);
    }
}

#[test]
fn compressing_twice_is_possible_and_keeps_counting_original_pairs() {
    let layer = Sample::new(&TinyModel::llama());
    let first = layer.compressed(&plan(40, 6, 6));
    let config = ModelConfig { layers: vec![first.shape.clone()], ..layer.config.clone() };
    let statistics = statistics(&config, &first.weights, layer.x.as_ref());
    let again = |plan: &LayerPlan| by_paper(&crate::testing::layer(0, &config, &first.weights, &statistics), plan);
    let second = again(&plan(24, 2, 4)).expect("fine");
    let pairs = |shape: &LayerShape| shape.rotary_pairs.clone().expect("rotary");
    for (before, after) in pairs(&first.shape).iter().zip(pairs(&second.shape)) {
        assert!(after.len() == 1 && before.contains(&after[0]), "{before:?} {after:?}");
    }
    assert_eq!(pairs(&second.shape), pairs(&layer.compressed(&plan(48, 2, 8)).shape));
    // A second time at the same width is no change, and the pairs stay known.
    let same = again(&plan(40, 6, 6)).expect("fine");
    assert_eq!((same.weights, same.shape), (first.weights.clone(), first.shape.clone()));
}

#[test]
fn compressing_values_again_loses_nothing_of_what_was_kept() {
    let layer = Sample::new(&TinyModel::opt());
    let first = layer.compressed(&plan(48, 8, 4));
    let attention: Vec<Mat<f64>> = (0..4).map(|_| Mat::identity(300, 300)).collect();
    let output =
        |weights: &LayerWeights| attend(&layer.config, &attention, &weights.value, &weights.output, layer.x.as_ref());
    // Truncation to 2 directly or by way of 4 keeps the same subspace.
    let config = ModelConfig { layers: vec![first.shape.clone()], ..layer.config.clone() };
    let statistics = statistics(&config, &first.weights, layer.x.as_ref());
    let again = crate::testing::layer(0, &config, &first.weights, &statistics);
    let second = by_paper(&again, &plan(48, 8, 2)).expect("fine");
    let direct = layer.compressed(&plan(48, 8, 2));
    assert_close(output(&second.weights).as_ref(), output(&direct.weights).as_ref(), 1e-5);
}

#[test]
fn plans_out_of_range_are_refused() {
    let layer = Sample::new(&TinyModel::llama());
    let check = |plan: LayerPlan, expected: &str| assert_eq!(layer.refused(&plan), expected);
    check(plan(49, 8, 8), "plan, field `layers[0].d_ff`: expected 1 to 48, found 49");
    check(plan(48, 10, 8), "plan, field `layers[0].d_qk`: expected 1 to 8, found 10");
    check(plan(48, 5, 8), "plan, field `layers[0].d_qk`: expected an even width, since positions are rotary, found 5");
    check(plan(48, 8, 0), "plan, field `layers[0].d_v`: expected 1 to 8, found 0");
    check(LayerPlan { index: 1, ..plan(48, 8, 8) }, "plan, field `layers[0].index`: expected 0, found 1");
}

#[test]
fn unusable_statistics_are_refused_even_if_nothing_changes() {
    let check = |change: fn(&mut LayerStatistics), expected: &str| {
        let mut layer = Sample::new(&TinyModel::llama());
        change(&mut layer.statistics);
        for plan in [plan(48, 8, 8), plan(24, 4, 4)] {
            assert_eq!(layer.refused(&plan), expected);
        }
    };
    check(|s| s.n_tokens = 0, "layer 0: the statistics hold no tokens");
    check(|s| s.mlp_sum[3] = f64::NAN, "layer 0: statistic `mlp_sum` holds a value that is not finite");
    check(|s| s.value[1] = Gram::zeros(7), "layer 0: statistic `value`: expected [8, 8], found [8, 7]");
    check(
        |s| s.value[1] = Gram::from_packed_lower(8, vec![f64::NAN; 36]).expect("a triangle"),
        "layer 0: statistic `value` holds a value that is not finite",
    );
    check(
        |s| (s.mlp, s.mlp_sum) = (Gram::zeros(47), vec![0.0; 47]),
        "layer 0, mlp: statistic `mlp` expected [48], found [47]",
    );
    check(|s| s.query.truncate(2), "layer 0, query-key: statistic `query` expected [8, 8, 8, 8], found [8, 8]");
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let check = |change: fn(&mut LayerWeights), expected: &str| {
        let mut layer = Sample::new(&TinyModel::opt());
        change(&mut layer.weights);
        assert_eq!(layer.refused(&plan(24, 4, 4)), expected);
    };
    check(|w| w.gate = Some(w.up.clone()), "layer 0, mlp: a gate expected false, found true");
    check(|w| w.key = w.up.clone(), "layer 0, query-key: key expected (32, 32), found (32, 48)");
    check(|w| w.down.bias = Some(vec![0.0; 3]), "layer 0, mlp: down expected 32, found 3");
    check(|w| w.value.weight.data[5] = f32::NAN, "layer 0, value-output: `value` holds a value that is not finite");
    check(|w| w.up.weight.data.truncate(7), "layer 0, mlp: up expected 1536, found 7");
}

#[test]
fn shapes_with_wrong_pairs_are_refused() {
    let layer = Sample::new(&TinyModel::llama());
    let first = layer.compressed(&plan(48, 4, 8));
    let statistics = statistics(&layer.config, &first.weights, layer.x.as_ref());
    for pairs in [None, Some(vec![vec![0, 1]]), Some(vec![vec![1, 0], vec![0, 1]]), Some(vec![vec![0, 4], vec![0, 1]])]
    {
        let shape = LayerShape { rotary_pairs: pairs, ..first.shape.clone() };
        let again = crate::testing::layer(0, &layer.config, &first.weights, &statistics);
        let refused = by_paper(&Layer { shape: &shape, ..again }, &plan(48, 2, 8));
        let message = refused.expect_err("wrong pairs").to_string();
        assert!(message.starts_with("layer 0, query-key: ") && message.contains("pairs"), "{message}");
    }
}
