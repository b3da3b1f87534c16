//! `bindgen MODULE.wasm FOLDER`: writes the module and its JavaScript for a page into the folder.
//!
//! What `wasm-bindgen --target web` does, without the parts of that program that serve tests and talk to networks.

use anyhow::Context;
use wasm_bindgen_cli_support::Bindgen;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let module = args.next().context("which module?")?;
    let folder = args.next().context("which folder?")?;
    let mut bindgen = Bindgen::new();
    bindgen.input_path(&module).web(true)?.typescript(true).omit_default_module_path(false);
    bindgen.remove_name_section(true).remove_producers_section(true);
    bindgen.generate(&folder).with_context(|| format!("cannot make the JavaScript of `{module}`"))
}
