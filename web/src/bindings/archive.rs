//! Where a compressed model goes: to the page, which keeps it.

use std::io;

use modegpt::in_memory::Output;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

#[wasm_bindgen(typescript_custom_section)]
const INTERFACE: &str = r"
/** Takes files, one after the other and each in parts; `part` is not valid any more when `put` returns. */
export interface Archive {
  put(file: string, part: Uint8Array): void
}
";

#[wasm_bindgen]
extern "C" {
    /// Takes files, one after the other and each in parts.
    #[wasm_bindgen(typescript_type = "Archive")]
    pub type Archive;

    #[wasm_bindgen(method, catch)]
    fn put(this: &Archive, file: &str, part: &[u8]) -> Result<(), JsValue>;
}

/// An archive as the core writes to it.
pub(crate) struct Archived(pub(crate) Archive);

impl Output for Archived {
    fn put(&mut self, file: &str, part: &[u8]) -> io::Result<()> {
        self.0.put(file, part).map_err(|thrown| io::Error::other(reason(&thrown)))
    }
}

/// What was thrown, in words.
pub(crate) fn reason(thrown: &JsValue) -> String {
    match thrown.dyn_ref::<js_sys::Error>() {
        Some(error) => error.message().into(),
        None => format!("{thrown:?}"),
    }
}
