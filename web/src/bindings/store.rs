//! Files that lie with the page: in its own file system, or brought by the reader.

use std::sync::Arc;

use modegpt::checkpoint::{Error, Source};
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

use super::archive::reason;

#[wasm_bindgen(typescript_custom_section)]
const INTERFACE: &str = r"
/** Named files that can be read at once; `readAt` throws where nothing has arrived. */
export interface Store {
  names(): string[]
  size(file: string): number | undefined
  readAt(file: string, offset: number, into: Uint8Array): void
}
";

#[wasm_bindgen]
extern "C" {
    /// Named files that can be read at once.
    #[wasm_bindgen(typescript_type = "Store")]
    pub type Store;

    #[wasm_bindgen(method)]
    fn names(this: &Store) -> Vec<String>;

    #[wasm_bindgen(method)]
    fn size(this: &Store, file: &str) -> Option<f64>;

    #[wasm_bindgen(method, catch, js_name = readAt)]
    fn read_at(this: &Store, file: &str, offset: f64, into: &mut [u8]) -> Result<(), JsValue>;
}

/// A store as the core reads it.
pub(crate) struct Stored {
    store: Store,
    place: String,
}

impl Stored {
    /// `place` is what to call it in messages.
    pub(crate) fn source(store: Store, place: String) -> Arc<dyn Source> {
        Arc::new(Self { store, place })
    }
}

impl Source for Stored {
    fn describe(&self) -> String {
        self.place.clone()
    }

    fn files(&self) -> Result<Vec<String>, Error> {
        let mut names = self.store.names();
        names.sort();
        Ok(names)
    }

    fn size(&self, file: &str) -> Result<Option<u64>, Error> {
        Ok(self.store.size(file).map(|bytes| bytes as u64))
    }

    fn read_at(&self, file: &str, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let (place, file) = (self.describe(), file.to_owned());
        let Some(size) = self.size(&file)? else { return Err(Error::MissingFile { place, file }) };
        let bytes = buf.len() as u64;
        if offset.checked_add(bytes).is_none_or(|end| end > size) {
            return Err(Error::OutOfRange { file, offset, bytes, size });
        }
        let thrown = |thrown: JsValue| Error::Read { place, file: file.clone(), reason: reason(&thrown) };
        self.store.read_at(&file, offset as f64, buf).map_err(thrown)
    }
}
