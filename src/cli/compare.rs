//! `snclr compare`: Compares runs: what differs between their specs, and their scores.

use std::process::ExitCode;

/// Compares runs: what differs between their specs, and their scores.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    todo!()
}
