//! The tokenizers, texts and reference values that the tests read.

use std::path::PathBuf;

/// The contents of a file of the data folder: `MODEGPT_DATA`, or `shared/data` beside the repository.
pub(crate) fn read(path: &str) -> Vec<u8> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = std::env::var_os("MODEGPT_DATA").map_or(beside, PathBuf::from);
    let file = folder.join(path);
    std::fs::read(&file).unwrap_or_else(|error| {
        panic!("test data `{}` cannot be read ({error}); set MODEGPT_DATA to the data folder", file.display())
    })
}
