//! Checkpoints in and out: safetensors, `PyTorch` files, `config.json`.
//!
//! Reading goes through a [`Source`], a bag of named files: a folder, memory, or whatever a browser offers. [`TensorIndex`]
//! finds the tensors in any published format, without loading them, and trusts nothing that a file says; [`Checkpoint`]
//! checks them against the configuration and hands out layers. Writing is a stream, one shard a layer ([`write_layer`],
//! [`write_outer`]); `OutputFolder` makes a folder of them appear whole or not at all.
//!
//! Transposing happens here and nowhere else: files hold `[d_out, d_in]`, everybody else `[d_in, d_out]`.

mod checkpoint;
mod error;
#[cfg(not(target_family = "wasm"))]
mod folder;
mod input;
mod layout;
mod load_error;
#[cfg(not(target_family = "wasm"))]
mod output_folder;
mod pickle;
mod pytorch;
mod safetensors;
mod save;
mod shard;
mod shards;
mod source;
mod strided;
mod tensor_entry;
mod tensor_index;
mod zip;

pub use checkpoint::Checkpoint;
pub use error::Error;
#[cfg(not(target_family = "wasm"))]
pub use folder::FolderSource;
pub use layout::{TensorSpec, layer_tensors, outer_tensors, total_params};
pub use load_error::LoadError;
#[cfg(not(target_family = "wasm"))]
pub use output_folder::{Existing, Journal, OutputError, OutputFolder};
pub use save::{SaveError, index_json, shard_name, write_layer, write_outer};
pub use shard::ShardWriter;
pub use source::{MemorySource, Source, read_file};
pub use tensor_entry::{StoredType, TensorEntry};
pub use tensor_index::{Format, TensorIndex};
