//! modegpt in the browser.
//!
//! Bindings translate types and decide nothing: what the page shows is what the command line prints. So far they plan:
//! how large a model is, and what its layers become at a given sparsity.

use modegpt::architecture::ModelConfig;
use modegpt::checkpoint::total_params;
use modegpt::compress::{Allocation, Mode, Plan, PlanOptions, Ridges, Rounding};
use wasm_bindgen::prelude::wasm_bindgen;

/// Parameters of the model that a `config.json` describes, embeddings included.
///
/// # Errors
/// What is wrong with the configuration, in words.
#[wasm_bindgen(js_name = countParams)]
pub fn count_params(config_json: &str) -> Result<f64, String> {
    Ok(total_params(&read(config_json)?) as f64)
}

/// The plan, as JSON, for a model of which only its `config.json` is known: every layer gives the same share.
///
/// # Errors
/// What is wrong with the configuration or the sparsity, in words.
#[wasm_bindgen(js_name = uniformPlan)]
pub fn uniform_plan(config_json: &str, sparsity: f64) -> Result<String, String> {
    let config = read(config_json)?;
    let options = PlanOptions {
        sparsity,
        mode: Mode::Paper,
        methods: Mode::Paper.methods(),
        allocation: Allocation::Uniform {},
        rounding: Rounding::default_for(&config),
        ridges: Ridges::default(),
    };
    // Not measured; a uniform allocation does not look at them.
    let influences = vec![0.0; config.layers.len()];
    Plan::new(&config, "", &influences, None, &options).map(|plan| plan.to_json()).map_err(|error| error.to_string())
}

fn read(config_json: &str) -> Result<ModelConfig, String> {
    let json = serde_json::from_str(config_json).map_err(|error| format!("config.json: {error}"))?;
    ModelConfig::from_json(&json).map_err(|error| format!("config.json: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = include_str!("../../cli/demo/opt-tiny-stories/config.json");

    #[test]
    fn the_page_counts_and_plans_what_the_command_line_does() {
        assert_eq!(count_params(CONFIG).map(|n| n as u64), Ok(668_928));
        let plan = Plan::from_json(&uniform_plan(CONFIG, 0.3).expect("a plan")).expect("valid");
        assert!((plan.totals.sparsity - 0.3).abs() < 0.01);
        assert!(uniform_plan(CONFIG, 1.0).is_err());
        assert!(uniform_plan("{", 0.3).expect_err("no JSON").starts_with("config.json"));
    }
}
