//! The command line: global options, one file per command, exit codes.

pub mod audit;
pub mod bench;
mod cache;
mod changes;
pub mod compare;
pub mod completions;
pub mod data;
pub mod diff;
pub mod doctor;
pub mod embed;
pub mod explain;
pub mod export;
mod failure;
pub mod gc;
pub mod man;
pub mod plan;
mod ranks;
pub mod report;
pub mod run;
pub mod runs;
pub mod schema;
mod show;
pub mod status;
pub mod submit;
mod sweep;
pub mod tensorboard;
pub mod validate;
mod values;
pub mod verify;
pub mod views;
mod work;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

pub use failure::report;

use crate::{
    ops::simd,
    ranks::launcher,
    run::{Verbosity, start_threads},
    train::Device,
};

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failure
    2  invalid usage or spec
    3  work is pending (plan --check; run --only, where an input is not there yet)
    4  training diverged or collapsed
  130  interrupted; the same command goes on from there";

/// Declarative, cached, resumable pipelines for self-supervised visual pretraining.
#[derive(Debug, Parser)]
#[command(name = "snclr", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command, before or after its name.
#[derive(Clone, Debug, clap::Args)]
pub struct Global {
    /// Folder of artifacts, checkpoints and results
    #[arg(long, global = true, value_name = "DIR", default_value = "runs", help_heading = "Global options")]
    pub runs: PathBuf,
    /// Worker threads; results do not depend on their number [default: one per processor]
    #[arg(long, global = true, value_name = "N", value_parser = threads, help_heading = "Global options")]
    pub threads: Option<usize>,
    /// Device to compute on: cpu, cuda:N (in a build with the feature `cuda`), or cuda (the first GPU, or the GPU of each rank)
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE", help_heading = "Global options")]
    pub device: Device,
    /// Print only warnings and results
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Print more progress: the health of the embeddings as it is measured
    #[arg(short, long, global = true, conflicts_with = "quiet", help_heading = "Global options")]
    pub verbose: bool,
}

impl Global {
    /// How much progress is shown.
    fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run a spec: reuse cached stages, resume interrupted ones, run the rest
    Run(run::Args),
    /// Submit the missing stages of specs to a scheduler, each once however many points share it
    Submit(submit::Args),
    /// Show the progress of specs: which stages are done, running and where, waiting, or failed and why
    Status(status::Args),
    /// Show which stages of a spec are cached, and why the others have to run
    Plan(plan::Args),
    /// List all runs with their scores, including runs in progress and runs without results
    Runs(runs::Args),
    /// Check specs; print every error at once
    Validate(validate::Args),
    /// Print the JSON Schema of specs
    Schema(schema::Args),
    /// Show what is in the data of a spec before training: counts, sizes, classes, duplicates
    Data(data::Args),
    /// Write a contact sheet of the views that training would see
    Views(views::Args),
    /// Compare runs: what differs between their specs, and their scores
    Compare(compare::Args),
    /// Write an HTML report of a run, or a comparison of several
    Report(report::Args),
    /// Write the curves and scores of runs as TensorBoard event files
    Tensorboard(tensorboard::Args),
    /// Write the trained encoder as safetensors with torchvision names
    Export(export::Args),
    /// Compute embeddings of any images by the encoder of a run, and write them as Parquet
    Embed(embed::Args),
    /// Explain why stages of a spec would run, field by field, and how long they would take
    Explain(explain::Args),
    /// Show what differs between two runs: spec, environment, metrics, and the test images that they predict differently
    Diff(diff::Args),
    /// Check whether the scores of a run can be trusted: frozen encoder, eval mode, complete weights, controls
    Audit(audit::Args),
    /// List artifacts that no kept run needs; remove them with --yes
    Gc(gc::Args),
    /// Re-hash everything in the store; `verify resume` proves that killed runs resume exactly
    Verify(verify::Args),
    /// Measure how fast this machine trains, searches, augments and evaluates
    Bench(bench::Args),
    /// Check this machine and the runs folder: CPU, memory, disk, file system, locks, devices
    Doctor(doctor::Args),
    /// Print completions for a shell
    Completions(completions::Args),
    /// Print the manual page, or write the pages of all commands into a folder
    Man(man::Args),
}

/// Runs a command.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    simd::check()?;
    // `doctor` reports an unusable device itself. `run` chooses the device later, so that only one of its ranks reports the
    // error.
    if !matches!(command, Command::Doctor(_) | Command::Run(_)) {
        global.device.choose()?;
    }
    start_threads(global.threads.or_else(launcher::threads_here))?;
    match command {
        Command::Run(args) => ranks::run(&args, &global),
        Command::Submit(args) => submit::run(args, &global),
        Command::Status(args) => status::run(args, &global),
        Command::Plan(args) => plan::run(args, &global),
        Command::Runs(args) => runs::run(args, &global),
        Command::Validate(args) => validate::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Data(args) => data::run(args, &global),
        Command::Views(args) => views::run(args, &global),
        Command::Compare(args) => compare::run(args, &global),
        Command::Report(args) => report::run(args, &global),
        Command::Tensorboard(args) => tensorboard::run(args, &global),
        Command::Export(args) => export::run(args, &global),
        Command::Embed(args) => embed::run(args, &global),
        Command::Explain(args) => explain::run(args, &global),
        Command::Diff(args) => diff::run(args, &global),
        Command::Audit(args) => audit::run(args, &global),
        Command::Gc(args) => gc::run(args, &global),
        Command::Verify(args) => verify::run(args, &global),
        Command::Bench(args) => bench::run(args, &global),
        Command::Doctor(args) => doctor::run(args, &global),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    values::whole(text, 1024)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in [["snclr", "--runs", "x", "runs"], ["snclr", "runs", "--runs", "x"]] {
            assert_eq!(Cli::try_parse_from(line).unwrap().global.runs, PathBuf::from("x"));
        }
    }

    #[test]
    fn devices_and_threads_that_do_not_exist_are_refused() {
        let error = |line: &[&str]| Cli::try_parse_from(line).unwrap_err().render().to_string();
        assert!(error(&["snclr", "runs", "--device", "tpu"]).contains("no such device; use cpu, cuda, or cuda:N"));
        assert!(error(&["snclr", "runs", "--threads", "0"]).contains("expected a whole number from 1 to 1024"));
    }
}
