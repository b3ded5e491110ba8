//! `snclr report`: writes an HTML page of a run, or of a comparison.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::anyhow;

use super::{Global, show};
use crate::{
    artifact::Store,
    report::{self, Runs},
};

/// Write an HTML report of a run, or a comparison of several
///
/// The report is one file that any browser opens without a network. It shows curves, scores, a map of the embeddings, the
/// augmentations, and the neighbours of some images early and late in training. For several runs it shows their differences,
/// scores and curves side by side. For a run without results it shows the curves so far.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Runs: the name of a run or its beginning, its folder, or the name or path of a spec (its newest run)
    #[arg(required = true, value_name = "RUN_OR_SPEC")]
    pub runs_or_specs: Vec<String>,
    /// File to write [default: report.html in the folder of the run; for several runs, results/comparison.html in the runs
    /// folder]
    #[arg(short, long, value_name = "FILE.html")]
    pub output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let known = Runs::with_unfinished(&global.runs);
    let runs = args.runs_or_specs.iter().map(|argument| known.find(argument));
    let runs = runs.collect::<anyhow::Result<Vec<_>>>()?;
    let store = Store::open(&global.runs);
    for run in &runs {
        show::note_unfinished(&store, &run.record)?;
    }
    let one = runs.iter().all(|run| run.record.run == runs[0].record.run);
    let path = args.output.clone().unwrap_or_else(|| match one {
        true => runs[0].dir(&global.runs).join("report.html"),
        false => global.runs.join("results/comparison.html"),
    });
    let page = report::html::render(&store, &runs)?;
    let given = args.output.is_some();
    report::file::replace(&path, page.as_bytes()).map_err(|error| match given {
        true => error,
        false => anyhow!("{error:#}; use `--output FILE.html` to write it elsewhere"),
    })?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(ExitCode::SUCCESS)
}
