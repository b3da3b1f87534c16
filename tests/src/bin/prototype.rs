//! Measures the paper's recipe as an independent prototype did: `prototype MODEL_FOLDER NAME`, with the name of a protocol.

#![expect(clippy::print_stdout, reason = "a table is what this is for")]

use std::path::PathBuf;

use modegpt::compress::Rounding;
use modegpt_tests::open_folder;
use modegpt_tests::prototype::{Compared, PROTOCOLS};

fn main() -> std::io::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (Some(folder), Some(name)) = (args.next().map(PathBuf::from), args.next()) else {
        return Err(std::io::Error::other("usage: prototype MODEL_FOLDER NAME"));
    };
    let Some(protocol) = PROTOCOLS.iter().find(|protocol| *protocol.model == *name) else {
        let names = PROTOCOLS.map(|protocol| protocol.model).join(", ");
        return Err(std::io::Error::other(format!("expected one of {names}")));
    };
    let model = open_folder(folder);
    let usual = Rounding::default_for(model.config());
    let run = protocol.begin(model);
    println!("dense {:.3}, prototype {:.3}", run.dense, protocol.dense);
    for rounding in [Rounding { ff: 1, head: 1, rank: 1 }, usual] {
        println!("multiples of {rounding}");
        for Compared { allocation, sparsity, expected, found } in run.compare(rounding) {
            let (percent, difference) = (100.0 * sparsity, 100.0 * (found / expected - 1.0));
            println!("  {percent:.0} % {allocation}: {found:.4}, prototype {expected:.3}, {difference:+.1} %");
        }
    }
    Ok(())
}
