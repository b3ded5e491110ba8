//! The program `snclr`: parses the command line, runs the command, and prints its error.

use std::process::ExitCode;

use clap::Parser;
use snclr::cli;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    cli::run(cli).unwrap_or_else(|error| cli::report(&error))
}
