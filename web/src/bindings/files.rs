//! Files in memory.

use std::sync::Arc;

use modegpt::checkpoint::{MemorySource, Source};
use wasm_bindgen::prelude::wasm_bindgen;

/// Named files: what a model is read from, and what one is written as. Copies share their content.
#[wasm_bindgen]
#[derive(Clone, Debug, Default)]
pub struct Files {
    source: Arc<MemorySource>,
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
        Arc::make_mut(&mut self.source).0.insert(name, content);
    }

    /// The names, in order.
    pub fn names(&self) -> Vec<String> {
        self.source.0.keys().cloned().collect()
    }

    /// The content of a file, if it is there.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.source.0.get(name).cloned()
    }
}

impl Files {
    pub(crate) fn of(source: MemorySource) -> Self {
        Self { source: Arc::new(source) }
    }

    pub(crate) fn into_source(self) -> Arc<dyn Source> {
        self.source
    }
}
