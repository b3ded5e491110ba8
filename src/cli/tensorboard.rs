//! `snclr tensorboard`: the curves and scores of runs as TensorBoard event files.

use std::{io::Write, path::PathBuf, process::ExitCode};

use super::{Global, show};
use crate::{
    artifact::Store,
    report::{self, Runs},
};

/// Write the curves and scores of runs as TensorBoard event files
///
/// Of a run without results, the curves so far. Look at them with `tensorboard --logdir DIR`; MLflow and Weights & Biases read the same files.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Runs: a run's name or its beginning, its folder, or a spec's name or path (its newest run)
    #[arg(required = true, value_name = "RUN_OR_SPEC")]
    pub runs_or_specs: Vec<String>,
    /// Folder that gets a folder for each run
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
