//! The paper's recipe, with what an independent float64 prototype of it measured.

#![expect(clippy::print_stdout, reason = "what was measured is worth reading")]

use modegpt::compress::Rounding;
use modegpt::run::AllocationChoice;
use modegpt_tests::open;
use modegpt_tests::prototype::{Compared, PROTOCOLS};

/// The prototype rounds widths to whole numbers, those of rotary queries and keys to even ones.
const FINE: Rounding = Rounding { ff: 1, head: 1, rank: 1 };

#[test]
fn perplexity_rises_as_it_does_in_an_independent_implementation() {
    for protocol in &PROTOCOLS[..2] {
        let run = protocol.begin(open(protocol.model));
        println!("{}: dense {:.3}, prototype {:.3}", protocol.model, run.dense, protocol.dense);
        assert!((run.dense - protocol.dense).abs() < 1e-3, "the windows are the same");
        for Compared { allocation, sparsity, expected, found } in run.compare(FINE) {
            let difference = found / expected - 1.0;
            println!("  {sparsity} {allocation}: {found:.4}, prototype {expected}: {:+.2} %", 100.0 * difference);
            let tolerance = if allocation == AllocationChoice::Uniform { 0.02 } else { 0.03 };
            assert!(difference.abs() <= tolerance);
        }
    }
}
