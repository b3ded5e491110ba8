//! `snclr compare`: what differs between the specs of runs, and their scores.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::Global;
use crate::report::{self, Comparison, Format};

/// Compare runs: what differs between their specs, and their scores
///
/// The comparison is also written as Parquet, in long form, and its path is printed to stderr.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Runs: a run's name or its beginning, its folder, or a spec's name or path (its newest run)
    #[arg(required = true, value_name = "RUN_OR_SPEC")]
    pub runs_or_specs: Vec<String>,
    /// Print one JSON object
    #[arg(long, group = "format")]
    pub json: bool,
    /// Print CSV
    #[arg(long, group = "format")]
    pub csv: bool,
    /// Print a Markdown table
    #[arg(long, group = "format")]
    pub md: bool,
    /// Where to write the comparison as Parquet [default: results/comparison.parquet in the runs folder]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

impl Args {
    fn format(&self) -> Format {
        match (self.json, self.csv, self.md) {
            (true, _, _) => Format::Json,
            (_, true, _) => Format::Csv,
            (_, _, true) => Format::Markdown,
            _ => Format::Table,
        }
    }
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let path = args.out.clone().unwrap_or_else(|| global.runs.join("results/comparison.parquet"));
    let comparison = compare(&global.runs, &args.runs_or_specs)?;
    report::file::replace(&path, &report::parquet::render(&comparison)?)?;
    std::io::stdout().write_all(args.format().render(&comparison)?.as_bytes())?;
    writeln!(std::io::stderr(), "comparison written to {}", path.display())?;
    Ok(ExitCode::SUCCESS)
}

fn compare(root: &Path, arguments: &[String]) -> anyhow::Result<Comparison> {
    let runs = arguments.iter().map(|argument| report::find(root, argument)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Comparison::new(&runs))
}
