//! What JavaScript sees.

mod device;
mod files;
mod model;
mod panics;

pub use device::Device;
pub use files::Files;
pub use model::{Compressed, Model, Statistics, Weight};
pub use panics::on_panic;

/// A sentence for the page.
fn sentence(error: impl std::fmt::Display) -> String {
    error.to_string()
}
