//! `snclr plan`: which stages are cached, and why the others have to run.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::json;

use super::Global;
use crate::{
    artifact::Store,
    plan::{Planned, Planner},
    run::{Mode, Reporter},
    spec,
    stage::Interrupt,
};

/// Exit code of `--check` when a stage has to run.
const PENDING: u8 = 3;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Spec of the experiment
    pub spec: PathBuf,
    /// Override a field of the spec; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// End with exit code 3 when a stage has to run
    #[arg(long)]
    pub check: bool,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let experiment = spec::load(&args.spec, &args.set)?.experiment;
    let store = Store::open(&global.runs);
    let reporter = Reporter::new(Mode::detect(global.quiet));
    let planner = Planner::new(&store, &experiment, Path::new(""), &reporter, &Interrupt::default())?;
    reporter.stage_ends();
    let stages = planner.plan();
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", to_json(&stages))?,
        false => write!(out, "{}", to_text(&stages))?,
    }
    let pending = stages.iter().any(|planned| !planned.is_cached());
    Ok(if args.check && pending { ExitCode::from(PENDING) } else { ExitCode::SUCCESS })
}

fn status(planned: &Planned) -> &'static str {
    if planned.is_cached() { "cached" } else { "pending" }
}

fn to_json(stages: &[Planned]) -> serde_json::Value {
    let stage = |planned: &Planned| {
        json!({
            "stage": planned.stage.name(),
            "key": planned.identity.as_ref().map(|(key, _)| key.as_str()),
            "status": status(planned),
            "reason": planned.reason,
        })
    };
    json!({ "stages": stages.iter().map(stage).collect::<Vec<_>>() })
}

fn to_text(stages: &[Planned]) -> String {
    let mut text = String::new();
    for planned in stages {
        let key = planned.identity.as_ref().map_or("-", |(key, _)| key.short());
        text += &format!("{:<18} {:<8} {key:<9} {}\n", planned.stage.name(), status(planned), planned.reason);
    }
    let pending = stages.iter().filter(|planned| !planned.is_cached()).count();
    let cached = stages.len() - pending;
    text + &match pending {
        0 => format!("nothing to do: {cached} stages cached\n"),
        _ => format!("{pending} of {} stages to run, {cached} cached\n", stages.len()),
    }
}
