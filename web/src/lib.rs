//! modegpt in the browser.
//!
//! Bindings translate types and decide nothing: what the page shows is what the command line prints. A page opens a
//! `Device` and a `Model`, observes the model on a text (`Statistics`), plans, compresses, and opens the files that
//! come out as another `Model`.
//!
//! Values travel as JSON text, whose types are in [`protocol`]; errors are sentences. Long work tells a callback. The
//! bindings hold the thread while they compute, so they belong into a worker; to abort, the page ends the worker.
//!
//! The bindings exist for `wasm32-unknown-unknown` only; [`protocol`] compiles everywhere.

pub mod protocol;

#[cfg(target_family = "wasm")]
mod bindings;

#[cfg(target_family = "wasm")]
pub use bindings::{
    Archive, Checkpoint, Device, Files, Model, Statistics, Store, Weight, hold_widths, on_panic, predicted_error,
};
