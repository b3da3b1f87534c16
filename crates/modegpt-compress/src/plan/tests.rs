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
