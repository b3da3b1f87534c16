//! `cargo bench`: the speed of each part, as the command `modegpt bench` measures and prints it.
//!
//! `cargo bench -p modegpt-cli -- MODEL` takes sizes and weights from another model than the bundled one.

use std::process::{Command, ExitCode};

fn main() -> std::io::Result<ExitCode> {
    // Cargo adds `--bench` to what the user says.
    let words = std::env::args_os().skip(1).filter(|word| word != "--bench");
    let status = Command::new(env!("CARGO_BIN_EXE_modegpt")).arg("bench").args(words).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
