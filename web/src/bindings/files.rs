//! Files in memory.

use std::sync::Arc;

use modegpt::checkpoint::{MemorySource, Source};
use wasm_bindgen::prelude::wasm_bindgen;

/// Named files that a model is read from.
#[wasm_bindgen]
#[derive(Debug, Default)]
pub struct Files {
    source: MemorySource,
}

#[wasm_bindgen]
impl Files {
    /// No files.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file; one of the same name is replaced.
    pub fn add(&mut self, name: String, content: Vec<u8>) {
        self.source.0.insert(name, content);
    }
}

impl Files {
    pub(crate) fn into_source(self) -> Arc<dyn Source> {
        Arc::new(self.source)
    }
}
