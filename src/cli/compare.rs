//! `snclr compare`: what differs between the specs of runs, and their scores.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, ensure};

use super::{Global, changes::Changes};
use crate::{
    artifact::Store,
    report::{self, Comparison, Format, Runs, group},
};

/// Compare runs: what differs between their specs, and their scores
///
/// The comparison is also written as Parquet, in long form, and its path is printed to stderr.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Runs: the name of a run or its beginning, its folder, or the name or path of a spec (its newest run; for a sweep, one
    /// per point)
    #[arg(required = true, value_name = "RUN_OR_SPEC")]
    pub runs_or_specs: Vec<String>,
    /// Changes to the specs whose runs to compare
    #[command(flatten)]
    pub changes: Changes,
    /// Show each run of a group that differs only by seed, instead of mean and deviation
    #[arg(long)]
    pub no_group: bool,
    /// Run to compare the others with, sample by sample; any run of a group stands for it [default: the first]
    #[arg(long, value_name = "RUN")]
    pub baseline: Option<String>,
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

/// From this many runs on, reading the list of all runs is faster than looking up each.
const MANY: usize = 32;

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
    let comparison = compare(&global.runs, &args)?;
    std::io::stdout().write_all(args.format().render(&comparison)?.as_bytes())?;
    let mut stderr = std::io::stderr();
    match report::file::replace(&path, &report::parquet::render(&comparison)?) {
        Ok(()) => writeln!(stderr, "comparison written to {}", path.display())?,
        // The user did not ask for this file, so a read-only folder is only worth a note.
        Err(error) if args.out.is_none() => {
            writeln!(
                stderr,
                "note: the comparison was not saved as Parquet: {error:#}; `--out FILE` saves it elsewhere"
            )?;
        }
        Err(error) => return Err(error),
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(root: &Path, args: &Args) -> anyhow::Result<Comparison> {
    let changes = args.changes.of_spec();
    let has_spec = args.runs_or_specs.iter().any(|argument| Path::new(argument).is_file());
    ensure!(has_spec || changes.is_empty(), "--method, --set and --sweep change a spec: give the path of one");
    let known = Runs::new(root);
    if args.runs_or_specs.len() > MANY {
        known.look_at_all()?;
    }
    let mut runs = Vec::new();
    for argument in &args.runs_or_specs {
        let found = known.find_all(argument, &changes)?;
        for note in found.notes {
            writeln!(std::io::stderr(), "note: {note}")?;
        }
        runs.extend(found.runs);
    }
    let groups = if args.no_group { group::single(&runs) } else { group::by_seed(&runs) };
    let baseline = match &args.baseline {
        None => 0,
        Some(argument) => {
            let wanted = known.find(argument)?.record.run;
            let has = |group: &group::Group| group.runs.iter().any(|run| run.record.run == wanted);
            groups
                .iter()
                .position(has)
                .with_context(|| format!("--baseline {wanted} is not among the compared runs"))?
        }
    };
    let mut comparison = Comparison::of(&groups);
    let store = Store::open(root);
    comparison.look_at_artifacts(&store, &groups);
    comparison.add_gains(&store, &groups)?;
    comparison.add_differences(&store, &groups, baseline)?;
    Ok(comparison)
}
