//! `snclr export`: Writes the trained encoder as safetensors with torchvision names.

use std::process::ExitCode;

/// Writes the trained encoder as safetensors with torchvision names.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    todo!()
}
