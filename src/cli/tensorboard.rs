//! `snclr tensorboard`: writes the curves and scores of runs as TensorBoard event files.

use std::{io::Write, path::PathBuf, process::ExitCode};

use super::{Global, show};
use crate::{
    artifact::Store,
    report::{self, Runs},
};

/// Write the curves and scores of runs as TensorBoard event files
///
/// A run without results has the curves so far. `tensorboard --logdir DIR` shows them; MLflow and Weights & Biases read the
/// same files.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Runs: the name of a run or its beginning, its folder, or the name or path of a spec (its newest run)
    #[arg(required = true, value_name = "RUN_OR_SPEC")]
    pub runs_or_specs: Vec<String>,
    /// Folder to write to, with a subfolder for each run
    #[arg(short, long, value_name = "DIR", default_value = "logs")]
    pub output: PathBuf,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let (store, runs) = (Store::open(&global.runs), Runs::with_unfinished(&global.runs));
    for argument in &args.runs_or_specs {
        let run = runs.find(argument)?;
        show::note_unfinished(&store, &run.record)?;
        let file = format!("events.out.tfevents.{}.snclr", run.record.created);
        let path = args.output.join(&run.record.run).join(file);
        report::file::replace(&path, &report::tensorboard::render(&store, &run)?)?;
        writeln!(std::io::stdout(), "{}", path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
