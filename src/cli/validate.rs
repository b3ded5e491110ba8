//! `snclr validate`: Checks specs and prints every error at once.

use std::process::ExitCode;

/// Checks specs and prints every error at once.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    todo!()
}
