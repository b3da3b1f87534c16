//! A plan comes back from its text, explains what is wrong with it, and fits one model only.

use serde_json::{Value, json};

use super::*;
use crate::testing::TinyModel;

fn options(sparsity: f64, allocation: Allocation, config: &ModelConfig) -> PlanOptions {
    PlanOptions {
        sparsity,
        mode: Mode::Paper,
        methods: Methods::PAPER,
        unit: ErrorUnit::ResidualEnergy,
        allocation,
        rounding: Rounding::default_for(config),
        ridges: Ridges::default(),
    }
}

fn tiny_plan() -> (ModelConfig, Plan) {
    let config = TinyModel { n_layers: 3, rotary: true, ..TinyModel::default() }.config();
    let influences = [0.7, 0.1 + 0.2, 1.0 / 3.0];
    let allocation = Allocation::by_block_influence(&config, &influences).expect("finite");
    let plan = Plan::new(&config, "abc", &influences, None, &options(0.3, allocation, &config)).expect("reachable");
    (config, plan)
}

fn edited(plan: &Plan, path: &str, value: Value) -> Result<Plan, Error> {
    let mut json: Value = serde_json::from_str(&plan.to_json()).expect("a plan is JSON");
    *json.pointer_mut(path).expect("the path exists") = value;
    Plan::from_json(&json.to_string())
}

#[test]
fn text_gives_the_same_plan_back() {
    let (_, plan) = tiny_plan();
    assert_eq!(Plan::from_json(&plan.to_json()).expect("valid"), plan);
    let uniform = Plan { allocation: Allocation::Uniform {}, ..plan };
    assert_eq!(Plan::from_json(&uniform.to_json()).expect("valid"), uniform);
}

#[test]
fn text_looks_as_documented() {
    let (_, plan) = tiny_plan();
    let text = plan.to_json();
    assert!(
        text.starts_with(
            "{\n  \"version\": 2,\n  \"mode\": \"paper\",\n  \"methods\": {\n    \"mlp\": \"leverage\",\n"
        ),
        "{text}"
    );
    assert!(text.contains("\"method\": \"block-influence\",\n    \"epsilon\": "), "{text}");
    assert!(text.contains("\"index\": 2,\n      \"block_influence\": 0.3333333333333333,\n"), "{text}");
}

#[test]
fn less_influence_means_more_sparsity_and_totals_add_up() {
    let (config, plan) = tiny_plan();
    assert!(plan.layers[1].sparsity > plan.layers[2].sparsity && plan.layers[2].sparsity > plan.layers[0].sparsity);
    assert_eq!(plan.totals.block_params_before, config.block_params() as u64);
    let after: u64 = plan.layers.iter().map(|layer| plan.model.params(layer.widths())).sum();
    assert_eq!(plan.totals.block_params_after, after);
    assert!((plan.totals.sparsity - 0.3).abs() < 0.02, "{}", plan.totals.sparsity);
}

#[test]
fn a_width_can_be_edited_by_hand() {
    let (_, plan) = tiny_plan();
    let edited = edited(&plan, "/layers/1/d_ff", json!(1)).expect("a valid width");
    let removed = (plan.layers[1].d_ff - 1) as u64 * plan.model.mlp_unit();
    assert_eq!(edited.totals.block_params_after, plan.totals.block_params_after - removed);
}

#[test]
fn unusable_fields_are_named() {
    let (_, plan) = tiny_plan();
    let check = |path: &str, value: Value, expected: &str| {
        let message = edited(&plan, path, value).expect_err(path).to_string();
        assert!(message.starts_with(expected), "{message} does not start with {expected}");
    };
    check("/version", json!(3), "plan has format version 3, expected 2");
    check("/target", json!(1.0), "plan, field `target`");
    check("/allocation/epsilon", json!(0.0), "plan, field `allocation.epsilon`");
    check("/allocation/cap", json!(1.5), "plan, field `allocation.cap`");
    check("/ridges/refit", json!(-1.0), "plan, field `ridges.refit`");
    check("/rounding/ff", json!(0), "plan, field `rounding`");
    check("/model/n_kv_heads", json!(3), "plan, field `model.n_kv_heads`: expected a divisor of 4, found 3");
    check("/model/d_model", json!(u64::MAX / 2), "plan, field `model.d_model`");
    check("/model/widths/0/d_qk", json!(9), "plan, field `model.widths[0].d_qk`");
    check("/layers/2/index", json!(1), "plan, field `layers[2].index`");
    check("/layers/1/d_ff", json!(0), "plan, field `layers[1].d_ff`: expected 1 to 48, found 0");
    check("/layers/1/d_v", json!(9), "plan, field `layers[1].d_v`: expected 1 to 8, found 9");
    check("/layers/0/d_qk", json!(3), "plan, field `layers[0].d_qk`: expected an even width");
    check("/layers/0/sparsity", json!(-0.1), "plan, field `layers[0].sparsity`");
    check("/layers/0/block_influence", Value::Null, "plan: ");
    check("/layers", json!([]), "plan, field `layers`: expected 3 layers, found 0");
    check("/mode", json!("worst"), "plan: unknown variant `worst`");
}

#[test]
fn unknown_and_missing_fields_are_refused() {
    let (_, plan) = tiny_plan();
    for object in ["", "/allocation", "/ridges", "/rounding", "/model", "/model/widths/0", "/totals", "/layers/0"] {
        let mut json: Value = serde_json::from_str(&plan.to_json()).expect("a plan is JSON");
        let fields = json.pointer_mut(object).and_then(Value::as_object_mut).expect("an object");
        fields.insert("extra".to_owned(), json!(1));
        let message = Plan::from_json(&json.to_string()).expect_err(object).to_string();
        assert!(message.contains("unknown field `extra`"), "{object}: {message}");
    }
    let text = plan.to_json().replacen("\"target\": 0.3,", "", 1);
    assert!(Plan::from_json(&text).expect_err("no target").to_string().contains("missing field `target`"));
    let uniform = Plan { allocation: Allocation::Uniform {}, ..plan }.to_json();
    let text = uniform.replacen("\"method\": \"uniform\"", "\"method\": \"uniform\", \"cap\": 0.9", 1);
    assert_ne!(text, uniform);
    Plan::from_json(&text).expect_err("a uniform allocation has no cap");
    for text in ["", "[]", "{\"version\": 1}", "{\"version\": -1}"] {
        Plan::from_json(text).expect_err(text);
    }
}

#[test]
fn another_model_is_refused() {
    let (config, plan) = tiny_plan();
    plan.check_model(&config, "abc").expect("the same model");
    let message = |config: &ModelConfig, fingerprint| {
        plan.check_model(config, fingerprint).expect_err("another model").to_string()
    };
    assert!(message(&config, "abd").contains("model_fingerprint is abc in the plan, abd in the model"));
    let mut narrower = config.clone();
    narrower.layers[1].d_ff -= 1;
    let told = message(&narrower, "abc");
    assert!(told.contains("layer 1") && told.contains("d_ff ") && !told.contains('{'), "{told}");
    let mut wider = config;
    wider.d_model += 1;
    assert!(message(&wider, "abc").contains("d_model"));
}

#[test]
fn unusable_influences_are_refused() {
    let (config, _) = tiny_plan();
    let plan = |influences: &[f64], allocation| {
        Plan::new(&config, "", influences, None, &options(0.3, allocation, &config)).map(|_| ())
    };
    plan(&[0.1, f64::NAN, 0.1], Allocation::Uniform {}).expect_err("NaN");
    plan(&[0.1; 2], Allocation::Uniform {}).expect_err("too few");
    plan(&[0.1; 3], Allocation::BlockInfluence { epsilon: 0.1, cap: 0.2 }).expect_err("cap below the target");
    plan(&[0.1; 3], Allocation::Uniform {}).expect("fine");
}

fn rank_plan(metric: MapMetric, sparsity: f64) -> (ModelConfig, Plan) {
    let config = TinyModel { n_layers: 2, ..TinyModel::default() }.config();
    let options = PlanOptions {
        methods: Methods::of_maps(metric),
        unit: metric.unit(),
        ..options(sparsity, Allocation::Uniform {}, &config)
    };
    let plan = Plan::new(&config, "abc", &[0.5, 0.2], None, &options).expect("reachable");
    (config, plan)
}

#[test]
fn ranks_are_read_back_and_counted_exactly() {
    for metric in [MapMetric::Svd {}, MapMetric::Fwsvd {}, MapMetric::Asvd { alpha: 0.3 }, MapMetric::SvdLlm {}] {
        let (config, plan) = rank_plan(metric, 0.3);
        assert_eq!(Plan::from_json(&plan.to_json()).expect("valid"), plan);
        let mut small = config.clone();
        for (shape, layer) in small.layers.iter_mut().zip(&plan.layers) {
            shape.ranks = layer.ranks;
        }
        assert_eq!(plan.totals.block_params_after, small.block_params() as u64);
        assert!((plan.totals.sparsity - 0.3).abs() < 0.005, "{}", plan.totals.sparsity);
    }
    let (_, plan) = rank_plan(MapMetric::SvdLlm {}, 0.3);
    let text = plan.to_json();
    assert!(text.contains("\"maps\": {\n      \"metric\": \"svd-llm\"\n    }"), "{text}");
    assert!(text.contains("\"unit\": \"map-energy\"") && text.contains("\"ranks\": {\n        \"query\": "), "{text}");
}

#[test]
fn a_rank_can_be_edited_by_hand_and_a_map_made_dense() {
    let (_, plan) = rank_plan(MapMetric::Svd {}, 0.3);
    let before = plan.layers[1].ranks.up.expect("a product");
    let one = edited(&plan, "/layers/1/ranks/up", json!(1)).expect("a valid rank");
    let gone = (before - 1) as u64 * (32 + 48);
    assert_eq!(one.totals.block_params_after, plan.totals.block_params_after - gone);
    let dense = edited(&plan, "/layers/1/ranks/up", Value::Null).expect("dense");
    assert_eq!(dense.layers[1].ranks.up, None);
    assert_eq!(dense.totals.block_params_after, plan.totals.block_params_after + 32 * 48 - before as u64 * 80);
}

#[test]
fn ranks_that_cannot_be_are_refused_by_name() {
    let (_, plan) = rank_plan(MapMetric::Asvd { alpha: 0.5 }, 0.3);
    let check = |path: &str, value: Value, expected: &str| {
        let message = edited(&plan, path, value).expect_err(path).to_string();
        assert!(message.starts_with(expected), "{message} does not start with {expected}");
    };
    check(
        "/layers/0/ranks/up",
        json!(0),
        "plan, field `layers[0].ranks.up`: expected 1 to 19, above which the map would",
    );
    check("/layers/0/ranks/up", json!(20), "plan, field `layers[0].ranks.up`: expected 1 to 19");
    check("/layers/0/ranks/up", json!(u64::MAX), "plan, field `layers[0].ranks.up`");
    check("/layers/0/ranks/up", json!(-1), "plan: ");
    check("/layers/0/ranks", json!({"sideways": 1}), "plan: unknown field `sideways`");
    check("/layers/1/d_ff", json!(20), "plan, field `layers[1]`: expected d_ff 48, d_qk 8, d_v 8, since");
    check("/methods/maps/alpha", json!(-0.5), "plan, field `methods.maps.alpha`");
    check("/methods/maps", json!({"metric": "svd", "alpha": 1.0}), "plan: unknown field `alpha`");
    check("/methods/maps", json!({"metric": "dvs"}), "plan: unknown variant `dvs`");
    check("/methods/prefix", json!("output"), "plan, field `methods.prefix`");
    check("/unit", json!("nats"), "plan, field `unit`: expected shares of what each map carries");
    check("/methods/maps", Value::Null, "plan, field `unit`");
    check("/rounding/rank", json!(0), "plan, field `rounding`");
    let with_ranks = plan.to_json().replacen(
        "\"maps\": {\n      \"metric\": \"asvd\",\n      \"alpha\": 0.5\n    }",
        "\"maps\": null",
        1,
    );
    let with_ranks = with_ranks.replacen("map-energy", "residual-energy", 1);
    let message = Plan::from_json(&with_ranks).expect_err("ranks without a metric").to_string();
    assert_eq!(message, "plan, field `layers[0].ranks`: expected none, since `methods.maps` is not given, found ranks");
    let (_, widths) = tiny_plan();
    let message = edited(&widths, "/unit", json!("map-energy")).expect_err("no maps").to_string();
    assert!(message.starts_with("plan, field `unit`"), "{message}");
}

#[test]
fn a_gate_that_is_not_there_has_no_rank() {
    let config = TinyModel::opt().config();
    let methods = Methods::of_maps(MapMetric::Svd {});
    let options = PlanOptions { methods, unit: ErrorUnit::MapEnergy, ..options(0.3, Allocation::Uniform {}, &config) };
    let plan = Plan::new(&config, "abc", &[0.5], None, &options).expect("reachable");
    assert_eq!(plan.layers[0].ranks.gate, None);
    let text = plan.to_json().replacen("\"up\":", "\"gate\": 3,\n        \"up\":", 1);
    let message = Plan::from_json(&text).expect_err("no gate").to_string();
    assert_eq!(message, "plan, field `layers[0].ranks.gate`: expected none, since the MLP has no gate, found a rank");
}

#[test]
fn curves_of_maps_decide_ranks_and_are_kept_for_the_reader() {
    let config = TinyModel { n_layers: 2, ..TinyModel::default() }.config();
    let methods = Methods::of_maps(MapMetric::Svd {});
    let allocation = Allocation::ErrorCurves { cap: 0.9 };
    let options = PlanOptions { methods, unit: ErrorUnit::MapEnergy, ..options(0.3, allocation, &config) };
    // The first layer loses a hundred times as much as the second.
    let curves = |layer: usize| -> MapCurves {
        let of_map = |map: modegpt_architecture::MapShape| {
            let ranks = crate::rank_grid(&map, 1, 0.9);
            let errors = ranks.iter().map(|&rank| 100f64.powi(1 - layer as i32) / rank as f64).collect();
            (map.name, crate::RankCurve { ranks, errors })
        };
        config.map_shapes(&config.layers[layer]).map(of_map).collect()
    };
    let offered = vec![curves(0), curves(1)];
    let plan = Plan::new(&config, "abc", &[0.5; 2], Some(Curves::Maps(offered.clone())), &options).expect("reachable");
    assert!((plan.totals.sparsity - 0.3).abs() < 0.005);
    assert!(plan.layers[1].sparsity > plan.layers[0].sparsity + 0.2, "{:?}", plan.totals);
    assert_eq!(plan.layers[1].map_curves.as_ref(), Some(&offered[1]));
    assert!(plan.predicted_error().is_some_and(|error| error > 0.0));
    assert_eq!(Plan::from_json(&plan.to_json()).expect("valid"), plan);
    Plan::new(&config, "abc", &[0.5; 2], None, &options).expect_err("no curves");
    Plan::new(&config, "abc", &[0.5; 2], Some(Curves::Maps(vec![curves(0)])), &options).expect_err("one layer's only");
    Plan::new(&config, "abc", &[0.5; 2], Some(Curves::Modules(Vec::new())), &options).expect_err("curves of widths");
    let message = edited(&plan, "/layers/0/map_curves/up/ranks/0", json!(0)).expect_err("no rank").to_string();
    assert!(message.starts_with("plan, field `layers[0].map_curves.up.ranks`"), "{message}");
}

#[test]
fn a_model_with_a_factorised_map_is_refused() {
    let (mut config, plan) = tiny_plan();
    config.layers[1].ranks.down = Some(6);
    let options = options(0.3, Allocation::Uniform {}, &config);
    let expected = "layer 1: the down map is a product of rank 6, and decompositions need it dense: \
                    compress the model that this one was made from";
    let made = Plan::new(&config, "abc", &[0.5; 3], None, &options).expect_err("a product");
    assert_eq!(made.to_string(), expected);
    assert_eq!(plan.check_model(&config, "abc").expect_err("a product").to_string(), expected);
}

#[test]
fn least_squares_of_few_tokens_hold_on_to_the_weights_that_are_there() {
    let ridges = Ridges { refit: 1e-3, ..Ridges::default() };
    // From 16 tokens for each unknown on it is what was asked for, to the bit.
    assert_eq!([ridges.refit_of(1536, 32_768), ridges.refit_of(64, 1024)].map(f64::to_bits), [1e-3f64.to_bits(); 2]);
    assert!((ridges.refit_of(1024, 1024) - 3.751).abs() < 1e-12);
    assert!((ridges.refit_of(1024, 4096) - 0.751).abs() < 1e-12);
    assert!(ridges.refit_of(7, 0).is_finite());
}
