//! A plan by itself, which is JSON.

use modegpt::compress::{HeldWidth, Plan};
use wasm_bindgen::prelude::wasm_bindgen;

use super::{from_json, sentence};

/// The plan with the widths of `held`, a list of [`HeldWidth`], and the others sharing what is left of the budget.
///
/// # Errors
/// What is wrong with plan or widths, or why the budget cannot be kept.
#[wasm_bindgen(js_name = holdWidths)]
pub fn hold_widths(plan: &str, held: &str) -> Result<String, String> {
    let held: Vec<HeldWidth> = from_json(held)?;
    Ok(Plan::from_json(plan).map_err(sentence)?.hold(&held).map_err(sentence)?.to_json())
}

/// The sum of the errors that the plan's curves give at its widths, if it has curves.
///
/// # Errors
/// What is wrong with the plan.
#[wasm_bindgen(js_name = predictedError)]
pub fn predicted_error(plan: &str) -> Result<Option<f64>, String> {
    Ok(Plan::from_json(plan).map_err(sentence)?.predicted_error())
}
