//! Writes the folder of a finished run: the resolved spec, the record of its stages, and the scores as Parquet.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use arrow::array::UInt64Array;

use super::driver::{StageOutcome, stage_record};
use crate::{
    artifact::{Artifact, Attempt, Lock, RECORD, RunRecord, SPEC, Store, atomic, hash, table},
    plan::Stage,
    spec::Experiment,
    tables::{NOTES, REPORT, column::*},
};

/// A finished run.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub record: RunRecord,
    pub dir: PathBuf,
}

/// A metric and the stage that it comes from.
struct Metric {
    name: String,
    value: Option<f64>,
    stage: Stage,
}

/// The name of the run with these artifacts, given in the order of the stages.
fn name<'a>(experiment: &Experiment, artifacts: impl Iterator<Item = &'a Artifact>) -> String {
    let keys: String = artifacts.map(Artifact::key).collect();
    format!("{}-{}", experiment.name, &hash::bytes(keys.as_bytes())[..8])
}

/// Whether the results of the run with these artifacts have been written.
pub fn is_recorded(store: &Store, experiment: &Experiment, artifacts: &[Artifact]) -> bool {
    store.root().join("results").join(name(experiment, artifacts.iter())).join(RECORD).exists()
}

/// Writes the folder of a run, unless it is already complete.
pub fn record(store: &Store, experiment: &Experiment, stages: &[StageOutcome]) -> anyhow::Result<Outcome> {
    let run = name(experiment, stages.iter().map(|outcome| &outcome.artifact));
    let mut metrics = Vec::new();
    let mut notes = Vec::new();
    for StageOutcome { stage, artifact, .. } in stages {
        notes.extend(artifact.texts(&NOTES)?.into_iter().map(|(_, text)| format!("{stage}: {text}")));
        let Some((table, prefix)) = stage.descriptor().figures else { continue };
        for (name, value) in artifact.figures(&table)? {
            let name = if name.starts_with(prefix) { name } else { format!("{prefix}{name}") };
            metrics.push(Metric { name, value, stage: *stage });
        }
    }
    let dir = store.root().join("results").join(&run);
    let record = RunRecord {
        run: run.clone(),
        name: experiment.name.clone(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        stages: stages.iter().map(|outcome| stage_record(outcome.stage, &outcome.artifact)).collect(),
        metrics: metrics.iter().map(|metric| (metric.name.clone(), metric.value)).collect(),
        notes,
        unfinished: None,
    };
    let report = report(&run, experiment.seed, &metrics)?;
    atomic::create_dir(&dir)?;
    // If two runs of the same spec end at the same time, only one writes: both would write the same files.
    let Attempt::Held(_lock) = Lock::attempt(&store.root().join("locks"), &format!("results-{run}"))? else {
        return Ok(Outcome { record, dir });
    };
    atomic::write_if_changed(&dir.join(SPEC), serde_yaml::to_string(experiment)?.as_bytes())?;
    atomic::write_if_changed(&dir.join("report.parquet"), &report)?;
    if !RunRecord::read(&dir).is_ok_and(|old| same_but_for_the_time(&old, &record)) {
        atomic::write(&dir.join(RECORD), record.text()?.as_bytes())?;
    }
    Ok(Outcome { record, dir })
}

fn same_but_for_the_time(a: &RunRecord, b: &RunRecord) -> bool {
    let stages = |record: &RunRecord| {
        record.stages.iter().map(|s| (s.stage.clone(), s.key.clone(), s.content.clone())).collect::<Vec<_>>()
    };
    (&a.run, &a.name, stages(a), &a.notes) == (&b.run, &b.name, stages(b), &b.notes)
        && a.metrics.keys().eq(b.metrics.keys())
}

/// Writes `report.parquet`, with one row per metric.
fn report(run: &str, seed: u64, metrics: &[Metric]) -> anyhow::Result<Vec<u8>> {
    table::in_memory(&REPORT.rows([
        METRIC.of(metrics.iter().map(|metric| &metric.name)),
        VALUE.of(metrics.iter().map(|metric| metric.value)),
        STAGE.of(metrics.iter().map(|metric| metric.stage.name())),
        RUN.of(metrics.iter().map(|_| run)),
        SEED.array(UInt64Array::from(vec![seed; metrics.len()])),
    ]))
}

impl Outcome {
    /// Metrics by name.
    pub fn metrics(&self) -> &BTreeMap<String, Option<f64>> {
        &self.record.metrics
    }
}
