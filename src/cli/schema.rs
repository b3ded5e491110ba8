//! `snclr schema`: Prints the JSON Schema of specs.

use std::process::ExitCode;

/// Prints the JSON Schema of specs.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    todo!()
}
