//! `snclr run`: runs all stages of a spec that are not cached.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Global, cache::CacheArgs, changes::Specs, show, sweep, values};
use crate::{
    artifact::Store,
    remote::Cache,
    report::{Run, audit},
    run::{Alone, Finished, Jobs, NotYet, Outcome, Reporter, Setting, StageOutcome, Verbosity},
    spec::{Experiment, Points},
    stage::{Interrupt, Stage},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub specs: Specs,
    /// Run only this stage, whose inputs must be cached; tasks of a cluster use it
    #[arg(long, value_name = "STAGE", value_parser = stage, conflicts_with_all = ["keep_going", "jobs"])]
    pub only: Option<Stage>,
    /// Print one JSON object, last and alone on stdout
    #[arg(long)]
    pub json: bool,
    /// Continue with the other points of a sweep if one fails
    #[arg(short, long)]
    pub keep_going: bool,
    /// Points of a sweep to run at the same time; they share the threads
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = jobs)]
    pub jobs: usize,
    /// Longest time between two checkpoints
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub checkpoint_every: Duration,
    /// With several ranks: longest time that one may wait for another
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = limit)]
    pub collective_timeout: Duration,
    #[command(flatten)]
    pub cache: CacheArgs,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds >= 0.0);
    seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).ok_or_else(|| "expected a number of seconds".into())
}

fn limit(text: &str) -> Result<Duration, String> {
    let limit = seconds(text).ok().filter(|limit| *limit >= Duration::from_secs(1));
    limit.ok_or_else(|| "expected a number of seconds, at least 1".into())
}

fn stage(text: &str) -> Result<Stage, String> {
    let names = || Stage::ALL.map(Stage::name).join(", ");
    Stage::ALL
        .into_iter()
        .find(|stage| stage.name() == text)
        .ok_or_else(|| format!("no such stage; use one of: {}", names()))
}

fn jobs(text: &str) -> Result<usize, String> {
    values::whole(text, 64)
}

/// Runs the command.
///
/// # Errors
/// When the spec is invalid, or the run fails, diverges or is interrupted. A sweep prints which points failed.
pub fn run(args: &Args, points: Points, interrupt: &Interrupt, global: &Global) -> anyhow::Result<ExitCode> {
    let store = Store::open(&global.runs);
    let cache = args.cache.open(global)?;
    if let Some(cache) = &cache {
        cache.catch_up();
    }
    let setting = Setting {
        store: &store,
        interrupt,
        checkpoint_interval: args.checkpoint_every,
        threads: global.threads,
        planning: Mutex::default(),
        cache: cache.as_ref(),
    };
    let ended = match (args.only, &points.points[..]) {
        (Some(stage), [point]) => only(&setting, stage, &point.loaded.experiment, args.json, global.verbosity()),
        (Some(_), points) => Err(NotYet::ManyPoints { points: points.len() }.into()),
        (None, [point]) if !points.is_sweep => {
            run_one(&setting, &point.loaded.experiment, args.json, global.verbosity())
        }
        (None, points) => {
            let jobs = Jobs { count: args.jobs, keep_going: args.keep_going, threads: global.threads };
            sweep::run(&setting, points, jobs, args.json, global.verbosity())
        }
    };
    // Upload after a failure or interruption too: others can use the artifacts that were finished.
    if let Some(cache) = &cache {
        let reporter = Reporter::new(global.verbosity());
        cache.finish(&reporter, interrupt);
        reporter.done();
    }
    ended
}

fn run_one(setting: &Setting, experiment: &Experiment, json: bool, verbosity: Verbosity) -> anyhow::Result<ExitCode> {
    let reporter = Arc::new(Reporter::new(verbosity));
    let Finished { stages, outcome } = setting.run(experiment, &reporter)?;
    let text = to_text(setting.store, &stages, &outcome, &reporter.warnings())?;
    show::print(&text, json.then(|| to_json(&stages, &outcome, setting.cache)), verbosity)?;
    Ok(ExitCode::SUCCESS)
}

fn only(
    setting: &Setting,
    stage: Stage,
    experiment: &Experiment,
    json: bool,
    verbosity: Verbosity,
) -> anyhow::Result<ExitCode> {
    let reporter = Arc::new(Reporter::new(verbosity));
    let Alone { outcome, results } = setting.only(stage, experiment, &reporter)?;
    let stages = [outcome];
    let mut text: String = show::remarks(&[], &reporter.warnings()).collect();
    if let Some(results) = &results {
        text += &format!("results in {}\n", results.dir.display());
    }
    text += &format!("{}\n", fact(&stages));
    let run = results.map(|results| results.record.run);
    show::print(
        &text,
        json.then(|| json!({ "run": run, "stages": show::stages(&stages), "cache": setting.cache.map(show::cache) })),
        verbosity,
    )?;
    Ok(ExitCode::SUCCESS)
}

fn to_json(stages: &[StageOutcome], outcome: &Outcome, cache: Option<&Cache>) -> Value {
    json!({
        "run": outcome.record.run,
        "stages": show::stages(stages),
        "metrics": outcome.metrics(),
        "notes": outcome.record.notes,
        "cache": cache.map(show::cache),
    })
}

fn to_text(store: &Store, stages: &[StageOutcome], outcome: &Outcome, warnings: &[String]) -> anyhow::Result<String> {
    let mut text = scores(store, outcome)?.map_or(String::new(), |table| table + "\n");
    show::remarks(&outcome.record.notes, warnings).for_each(|line| text += &line);
    text += &format!("results in {}\n", outcome.dir.display());
    Ok(text + &fact(stages) + "\n")
}

fn fact(stages: &[StageOutcome]) -> String {
    show::came_by(stages.iter()).unwrap_or_else(|| show::to_do(0, stages.len()))
}

/// Top-1 of both evaluations beside their controls, in percent; None when there are none.
fn scores(store: &Store, outcome: &Outcome) -> anyhow::Result<Option<String>> {
    let run = Run { record: outcome.record.clone(), spec: Value::Null };
    let rows = audit::scores(store, &run)?;
    Ok((!rows.is_empty()).then(|| show::scores(&rows)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::artifact::RunRecord;

    fn outcome(metrics: &[(&str, f64)]) -> Outcome {
        let metrics: BTreeMap<_, _> = metrics.iter().map(|(name, value)| (name.to_string(), Some(*value))).collect();
        let (run, name) = ("quick-01234567".to_owned(), "quick".to_owned());
        let record = RunRecord {
            run,
            name,
            created: 0,
            stages: vec![],
            metrics,
            notes: vec!["knn: no labels".into()],
            unfinished: None,
        };
        Outcome { record, dir: "runs/results/quick-01234567".into() }
    }

    #[test]
    fn the_table_shows_scores_beside_their_controls() {
        let scored = outcome(&[("linear/top1", 0.8234), ("linear/top1_random_init", 0.3), ("knn/top1", 0.75)]);
        let expected = "\
┌──────────────┬─────────┬───────────┬─────────────────┐
│ top-1 in %   ┆ trained ┆ untrained ┆ shuffled labels │
╞══════════════╪═════════╪═══════════╪═════════════════╡
│ linear probe ┆    82.3 ┆      30.0 ┆               - │
│ kNN          ┆    75.0 ┆         - ┆               - │
└──────────────┴─────────┴───────────┴─────────────────┘
note: knn: no labels
warning: careful
results in runs/results/quick-01234567
nothing to do: 0 stages cached
";
        let store = Store::open(std::path::Path::new("nowhere"));
        assert_eq!(to_text(&store, &[], &scored, &["careful".into()]).unwrap(), expected);
        assert_eq!(scores(&store, &outcome(&[("train/images_per_second", 3.0)])).unwrap(), None);
    }

    #[test]
    fn checkpoint_times_are_seconds() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert!(seconds("-1").is_err() && seconds("nan").is_err() && seconds("soon").is_err());
    }
}
