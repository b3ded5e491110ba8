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
    /// Runs: a run's name or its beginning, its folder, or a spec's name or path (its newest run; of a sweep, those of all points)
    #[arg(required = true, value_name = "RUN_OR_SPEC")]
    pub runs_or_specs: Vec<String>,
    /// Changes of the specs whose runs are meant
    #[command(flatten)]
    pub changes: Changes,
    /// Show runs that differ in their seed alone one by one, not as a group with mean and deviation
    #[arg(long)]
    pub no_group: bool,
    /// Run that the others are compared with, sample by sample; of a group any run [default: the first]
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

/// Runs from which on a look at all of them takes less time than one at each.
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
        // Nobody asked for the file: runs in a folder that can only be read are compared all the same.
        Err(error) if args.out.is_none() => {
            writeln!(
                stderr,
                "note: the comparison is not kept as Parquet: {error:#}; `--out FILE` writes it elsewhere"
            )?;
        }
        Err(error) => return Err(error),
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(root: &Path, args: &Args) -> anyhow::Result<Comparison> {
    let changes = args.changes.of_spec();
    let has_spec = args.runs_or_specs.iter().any(|argument| Path::new(argument).is_file());
    ensure!(has_spec || changes.is_empty(), "--method, --set and --sweep change a spec, and none is given by its path");
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
                .with_context(|| format!("--baseline {wanted} is none of the runs that are compared"))?
        }
    };
    let mut comparison = Comparison::of(&groups);
    let store = Store::open(root);
    comparison.look_at_artifacts(&store, &groups);
    comparison.add_gains(&store, &groups)?;
    comparison.add_differences(&store, &groups, baseline)?;
    Ok(comparison)
}
