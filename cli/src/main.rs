//! `modegpt`: compress trained language models from the command line.
//!
//! Results go to stdout, everything else to stderr. Exit code 0: done; 1: the request could not be met; 2: wrong use, or a
//! fault of the program.

#[expect(clippy::doc_markdown, reason = "these comments become the help, which is no Markdown")]
mod args;
mod commands;
mod device;
mod failure;
mod hub;
mod inputs;
mod panics;
mod printer;
mod process_memory;
mod progress;
mod scratch;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

/// Activations are large and short-lived. Many a system's allocator gives each back at once, and its kernel clears the pages
/// again for the next; this one keeps them for a second. Without huge pages (feature `no_thp`): with them a run takes 8 to
/// 25 MiB more and is no faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    panics::install();
    let result = panics::caught_failure(|| run(cli.command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), failure::Failure> {
    match command {
        Command::Demo(args) => commands::demo::run(&args),
        Command::Compress(args) => commands::compress::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Reproduce(args) => commands::reproduce::run(&args),
        Command::Calibrate(args) => commands::calibrate::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Studio(args) => commands::studio::run(&args),
        Command::Completions { shell } => commands::completions::run(shell),
    }
}
