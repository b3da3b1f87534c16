//! Writes a copy of a model some of whose maps are products, for another program to load.
//!
//! `write-factorised MODEL OUT`; the ranks are those of [`modegpt_tests::uneven_rank`].

use std::path::PathBuf;

use modegpt_tests::{factorised, open_folder, uneven_rank};

fn main() -> std::io::Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(model), Some(out)) = (args.next(), args.next()) else {
        return Err(std::io::Error::other("usage: write-factorised MODEL OUT"));
    };
    let model = open_folder(model);
    factorised(&model, uneven_rank).write(&out)
}
