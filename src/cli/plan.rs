//! `snclr plan`: shows which stages are cached, and why the others must run.

use std::{collections::BTreeMap, io::Write, path::Path, process::ExitCode};

use serde_json::{Value, json};

use super::{Global, changes::Specs, show};
use crate::{
    artifact::{Key, Store},
    plan::{Against, Planned, Planner},
    run::Reporter,
    spec::Point,
    stage::Interrupt,
};

/// Exit code of `--check` when a stage must run.
const PENDING: u8 = 3;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub specs: Specs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// End with exit code 3 if a stage must run
    #[arg(long)]
    pub check: bool,
}

/// Runs the command.
///
/// # Errors
/// When the spec is invalid or its source files cannot be read.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let points = args.specs.load()?;
    let store = Store::open(&global.runs);
    let reporter = Reporter::new(global.verbosity());
    let mut plans = Vec::new();
    for point in &points.points {
        let experiment = &point.loaded.experiment;
        let planner = Planner::new(&store, experiment, Path::new(""), &reporter, &Interrupt::default())?;
        reporter.stage_ends();
        let stages = planner.plan(Against::Nearest);
        plans.push(Plan { point, prospects: planner.prospects(&stages), stages });
    }
    let mut out = std::io::stdout().lock();
    match (args.json, points.is_sweep) {
        (true, false) => writeln!(out, "{}", json!({ "stages": stages_json(&plans[0].stages) }))?,
        (true, true) => writeln!(out, "{}", to_json(&plans))?,
        (false, false) => write!(out, "{}{}", lines(&plans[0].stages), fact(Total::of(&plans)))?,
        (false, true) => write!(out, "{}", to_text(&plans))?,
    }
    let pending = Total::of(&plans).pending > 0;
    Ok(if args.check && pending { ExitCode::from(PENDING) } else { ExitCode::SUCCESS })
}

/// The plan of one point.
struct Plan<'a> {
    point: &'a Point,
    stages: Vec<Planned>,
    prospects: Vec<Key>,
}

/// Numbers of stages. A stage that several points share counts once.
#[derive(Clone, Copy)]
struct Total {
    stages: usize,
    pending: usize,
}

impl Total {
    fn of(plans: &[Plan]) -> Total {
        let stages: BTreeMap<_, bool> = plans
            .iter()
            .flat_map(|plan| plan.stages.iter().zip(&plan.prospects))
            .map(|(planned, key)| ((planned.stage, key.as_str()), planned.is_cached()))
            .collect();
        Total { stages: stages.len(), pending: stages.values().filter(|cached| !**cached).count() }
    }
}

fn status(planned: &Planned) -> &'static str {
    if planned.is_cached() { "cached" } else { "pending" }
}

fn stages_json(stages: &[Planned]) -> Value {
    let stage = |planned: &Planned| {
        json!({
            "stage": planned.stage.name(),
            "key": planned.key.as_ref().map(|key| key.as_str()),
            "status": status(planned),
            "reason": planned.reason(),
            "resumes_after": planned.resumes_after,
            "kept": planned.kept,
        })
    };
    stages.iter().map(stage).collect()
}

fn to_json(plans: &[Plan]) -> Value {
    let point = |plan: &Plan| json!({ "values": plan.point.object(), "stages": stages_json(&plan.stages) });
    let total = Total::of(plans);
    json!({
        "points": plans.iter().map(point).collect::<Vec<_>>(),
        "total": { "stages": total.stages, "pending": total.pending, "cached": total.stages - total.pending },
    })
}

fn lines(stages: &[Planned]) -> String {
    let line = |planned: &Planned| {
        let key = planned.key.as_ref().map_or("-", |key| key.short());
        let resumes = show::resumes(planned);
        format!("{:<18} {:<8} {key:<9} {}{resumes}\n", planned.stage.name(), status(planned), planned.reason())
    };
    stages.iter().map(line).collect()
}

fn to_text(plans: &[Plan]) -> String {
    let mut text = String::new();
    for (i, plan) in plans.iter().enumerate() {
        text += &format!("point {} of {}: {}\n{}", i + 1, plans.len(), plan.point.label(), lines(&plan.stages));
    }
    let shared = "shared stages count once";
    text + &fact(Total::of(plans)).replace('\n', &format!(" in {} points; {shared}\n", plans.len()))
}

fn fact(Total { stages, pending }: Total) -> String {
    show::to_do(pending, stages) + "\n"
}
