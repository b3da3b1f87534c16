//! What JavaScript sees.

mod archive;
mod checkpoint;
mod device;
mod files;
mod model;
mod panics;
mod plan;
mod store;

pub use archive::Archive;
pub use checkpoint::{Checkpoint, Weight};
pub use device::Device;
pub use files::Files;
pub use model::{Model, Statistics};
pub use panics::on_panic;
pub use plan::{hold_widths, predicted_error};
pub use store::Store;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A sentence for the page.
fn sentence(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("the request cannot be read: {error}"))
}

fn to_json(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string(value).map_err(sentence)
}
