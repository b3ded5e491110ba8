//! `snclr man`: prints or writes the manual pages.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::CommandFactory;

/// Print the manual page, or write the pages of all commands into a folder
///
/// `snclr man | man -l -` shows it; `snclr man --out ~/.local/share/man/man1` installs all pages.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write to, one page per command
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let command = super::Cli::command();
    match args.out {
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(command).render(&mut text)?;
            std::io::stdout().write_all(&text)?;
        }
        Some(dir) => {
            let named = || format!("writing manual pages into {}", dir.display());
            std::fs::create_dir_all(&dir).with_context(named)?;
            clap_mangen::generate_to(command, &dir).with_context(named)?;
            writeln!(std::io::stdout(), "manual pages written to {}", dir.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
