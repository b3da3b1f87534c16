//! `modegpt completions`

use clap::CommandFactory;

use crate::args::Cli;
use crate::failure::Failure;
use crate::printer;

/// Prints a completion script.
pub(crate) fn run(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "modegpt", &mut script);
    printer::piece(&String::from_utf8_lossy(&script))
}
