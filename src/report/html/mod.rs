//! The HTML report: one self-contained page per run or comparison, which its own script draws from data in the page.

#![allow(clippy::disallowed_methods, reason = "a page is no result")]

mod classes;
pub mod contents;
mod curves;
mod gallery;
mod map;
mod neighbours;
mod page;
mod pictures;

use serde_json::{Value, json};

use super::{
    Comparison, Run,
    artifacts::{self, Table},
    grid, group,
    paired::Paired,
};
use crate::{
    artifact::Store,
    dataset::Split,
    tables::{self, column},
};

/// Marks the best value in a row of scores.
const BEST: &str = "★ ";

/// The page of `runs`: a report of one run, or a comparison of several. The same runs give the same bytes.
///
/// # Errors
/// When artifacts of a run are missing, damaged, or from an older version of this program. A run without results has only its
/// curves so far.
pub fn render(store: &Store, runs: &[Run]) -> anyhow::Result<String> {
    let mut distinct: Vec<Run> = Vec::new();
    for run in runs {
        if distinct.iter().all(|other| other.record.run != run.record.run) {
            distinct.push(run.clone());
        }
    }
    let names: Vec<&str> = distinct.iter().map(|run| run.record.run.as_str()).collect();
    let mut comparison = Comparison::new(&distinct);
    let groups = group::single(&distinct);
    comparison.look_at_artifacts(store, &groups);
    comparison.add_gains(store, &groups)?;
    // The gains of a run by metric, for the page of a single run. The grid already shows the gains of a comparison.
    let gains = |i: usize| -> serde_json::Map<String, Value> {
        let of_run = |(metric, gains): &(String, Vec<Option<Paired>>)| {
            Some((metric.clone(), Value::from(grid::difference(gains[i].as_ref()?))))
        };
        comparison.gains.iter().filter_map(of_run).collect()
    };
    let mut data = json!({
        "runs": distinct.iter().map(|run| about(store, run)).collect::<anyhow::Result<Vec<_>>>()?,
        "best": BEST,
        "charts": curves::charts(store, &distinct)?,
        "scores": grid::grid(&comparison, |best| format!("{BEST}{best}")),
        "notes": comparison.notes,
        "gains": (0..distinct.len()).map(gains).collect::<Vec<_>>(),
    });
    let title = match &distinct[..] {
        [run] => {
            if run.record.unfinished.is_none() {
                data["run"] = details(store, run)?;
            }
            format!("{} · snclr report", names[0])
        }
        _ => format!("{} · snclr comparison", names.join(", ")),
    };
    page::fill(&title, &data)
}

/// The data about a run that every report has.
fn about(store: &Store, run: &Run) -> anyhow::Result<Value> {
    let record = &run.record;
    let why = record.unfinished.iter().flat_map(|unfinished| &unfinished.why).flat_map(|why| why.lines());
    let notes = record.notes.iter().map(String::as_str).chain(why.map(str::trim));
    let stages: Vec<Value> = record
        .stages
        .iter()
        .map(|stage| json!({ "stage": stage.stage, "key": stage.key.short(), "seconds": stage.seconds }))
        .collect();
    Ok(json!({
        "run": record.run,
        "name": record.name,
        "description": run.spec.get("description"),
        "method": run.spec["method"]["name"],
        "created": record.created,
        "state": record.unfinished.is_some().then(|| super::state(store, record)),
        "notes": notes.collect::<Vec<_>>(),
        "metrics": record.metrics,
        "stages": stages,
        "spec": serde_yaml::to_string(&run.spec)?,
    }))
}

/// The data that only the report of a single run has: classes, map, gallery, neighbours.
fn details(store: &Store, run: &Run) -> anyhow::Result<Value> {
    let experiment = run.experiment()?;
    let data = artifacts::stage_in_part(store, run, "data")?;
    let (train, test) = (Split::open(&data.files_of(&tables::TRAIN))?, Split::open(&data.files_of(&tables::TEST))?);
    let classes = Table::read(&data, tables::CLASSES)?;
    let names: serde_json::Map<String, Value> = classes
        .integers(column::LABEL)?
        .into_iter()
        .zip(classes.texts(column::NAME)?)
        .filter_map(|(label, name)| Some((label?.to_string(), name.into())))
        .collect();
    let evaluations = classes::read(store, run)?;
    let embed = artifacts::stage_in_part(store, run, "embed")?;
    let pretrain = artifacts::stage(store, run, "pretrain")?;
    Ok(json!({
        "classes": names,
        "evaluations": evaluations.iter().map(classes::Evaluation::to_json).collect::<Vec<_>>(),
        "map": map::draw(&embed, &test, &evaluations)?,
        "gallery": gallery::draw(&train, &experiment)?,
        "neighbours": neighbours::draw(&Table::read(&pretrain, tables::NEIGHBOURS)?, &train)?,
    }))
}
