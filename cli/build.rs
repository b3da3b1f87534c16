//! With the feature `studio`: the page's files, as a table that the command is compiled with.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_STUDIO").is_none() {
        return;
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../web/dist");
    println!("cargo::rerun-if-changed={}", page.display());
    let mut files = Vec::new();
    collect(&page, &mut files);
    assert!(
        files.iter().any(|file| file.ends_with("index.html")),
        "the feature `studio` embeds the page, which has not been built: in web/, run `npm ci`, `npm run core` and `npm run build`"
    );
    files.sort();
    let mut table = String::from("&[\n");
    for file in &files {
        let name = file.strip_prefix(&page).expect("a file of the page").to_string_lossy().replace('\\', "/");
        let path = file.canonicalize().expect("a file that is there");
        writeln!(table, "    ({name:?}, include_bytes!({:?})),", path.display().to_string()).expect("text");
    }
    table.push_str("]\n");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    fs::write(out.join("page.rs"), table).expect("the table can be written");
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}
