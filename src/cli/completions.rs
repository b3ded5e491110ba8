//! `snclr completions`: prints the completion script of a shell.

use std::{io::Write, process::ExitCode};

use clap::CommandFactory;
use clap_complete::Shell;

/// Print completions for a shell
///
/// bash: `snclr completions bash > ~/.local/share/bash-completion/completions/snclr`; zsh: into a folder of `$fpath` as
/// `_snclr`; fish: `snclr completions fish > ~/.config/fish/completions/snclr.fish`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shell to print completions for
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "snclr", &mut text);
    std::io::stdout().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}
