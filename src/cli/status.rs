//! `snclr status`: shows the progress of specs on all machines.

use std::{collections::BTreeMap, io::Write, process::ExitCode};

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

use super::{
    Global,
    changes::Specs,
    show::{brief, count},
    work::Work,
};
use crate::{
    cluster::{State, Task},
    stage::Stage,
};

/// Show the progress of specs: which stages are done, running and where, waiting, or failed and why
///
/// A stage that several points share counts once. Everything is read from the runs folder, so every machine shows the same.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub specs: Specs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The name of a state.
fn name(state: &State) -> String {
    match state {
        State::Done => "done".to_owned(),
        State::Running(_) => "running".to_owned(),
        State::Ended(state, _) => state.to_string(),
        State::Waiting => "waiting".to_owned(),
    }
}

/// Names of states, in the order of the columns.
const STATES: [&str; 6] = ["done", "running", "waiting", "interrupted", "diverged", "failed"];

/// Runs the command.
///
/// # Errors
/// When a spec is invalid, or source files cannot be read.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let work = Work::of(&args.specs, global)?;
    let text = if args.json { format!("{}\n", to_json(&work)) } else { to_text(&work) };
    write!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn counts(work: &Work) -> BTreeMap<Stage, BTreeMap<String, usize>> {
    let mut counts: BTreeMap<Stage, BTreeMap<String, usize>> = BTreeMap::new();
    for task in &work.tasks.tasks {
        *counts.entry(task.stage).or_default().entry(name(&task.state)).or_default() += 1;
    }
    counts
}

fn to_text(work: &Work) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let counts = counts(work);
    let shown: Vec<&str> =
        STATES.into_iter().filter(|state| counts.values().any(|of| of.contains_key(*state))).collect();
    table.set_header(["stage"].iter().chain(&shown));
    for (stage, of) in &counts {
        let cell = |state: &&str| of.get(*state).map_or("-".to_owned(), ToString::to_string);
        table.add_row([stage.name().to_owned()].into_iter().chain(shown.iter().map(cell)));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("{table}\n");
    for task in &work.tasks.tasks {
        if let Some(line) = line(work, task) {
            text += &format!("{line}\n");
        }
    }
    let done = (0..work.points.len()).filter(|&point| work.tasks.is_done(point)).count();
    text + &format!("{done} of {} done\n", count(work.points.len(), "point"))
}

/// Where a task runs, or how it ended.
fn line(work: &Work, task: &Task) -> Option<String> {
    let point = match (task.points, work.points[task.point].label()) {
        (1, label) if !label.is_empty() => format!(" ({label})"),
        (1, _) => String::new(),
        (points, _) => format!(" ({})", count(points, "point")),
    };
    let named = format!("{} {}{point}", task.stage, task.identity.short());
    match &task.state {
        State::Running(Some(process)) => Some(format!("{named}: running, {} on {}", process.number(), process.host())),
        State::Running(None) => Some(format!("{named}: running")),
        State::Ended(state, why) => {
            let why = why.as_ref().map_or(String::new(), |why| format!(": {}", brief(why)));
            Some(format!("{named}: {state}{why}"))
        }
        State::Done | State::Waiting => None,
    }
}

fn to_json(work: &Work) -> Value {
    let task = |task: &Task| {
        let (host, why) = match &task.state {
            State::Running(Some(process)) => (Some(process.host()), None),
            State::Ended(_, why) => (None, why.as_deref()),
            _ => (None, None),
        };
        json!({
            "stage": task.stage.name(),
            "identity": task.identity.as_str(),
            "point": task.point,
            "points": task.points,
            "state": name(&task.state),
            "host": host,
            "why": why,
        })
    };
    json!({
        "points": work.points.len(),
        "points_done": (0..work.points.len()).filter(|&point| work.tasks.is_done(point)).count(),
        "tasks": work.tasks.tasks.iter().map(task).collect::<Vec<_>>(),
    })
}
