//! The folder of a run: the resolved spec, what the stages came to, and the scores as Parquet.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, UInt64Array},
    datatypes::Float64Type,
};
use parquet::arrow::ArrowWriter;

use super::StageOutcome;
use crate::{
    artifact::{Artifact, Attempt, Lock, RunRecord, StageRecord, Store, atomic, hash},
    plan::Stage,
    spec::Experiment,
};

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub record: RunRecord,
    pub dir: PathBuf,
}

/// A figure and the stage that it comes from.
struct Metric {
    name: String,
    value: Option<f64>,
    stage: Stage,
}

/// Writes the folder of a run, or finds it as it should be.
pub fn record(store: &Store, experiment: &Experiment, stages: &[StageOutcome]) -> anyhow::Result<Outcome> {
    let keys: String = stages.iter().map(|s| s.artifact.key()).collect();
    let run = format!("{}-{}", experiment.name, &hash::bytes(keys.as_bytes())[..8]);
    let mut metrics = Vec::new();
    let mut notes = Vec::new();
    for StageOutcome { stage, artifact, .. } in stages {
        let (table, prefix) = match stage {
            Stage::Pretrain => ("summary", "train/"),
            Stage::LinearProbe | Stage::Knn => ("scores", ""),
            _ => continue,
        };
        for (name, value) in pairs(artifact, table)? {
            let name = if name.starts_with(prefix) { name } else { format!("{prefix}{name}") };
            metrics.push(Metric { name, value, stage: *stage });
        }
        notes.extend(texts(artifact)?.into_iter().map(|text| format!("{stage}: {text}")));
    }
    let dir = store.root().join("results").join(&run);
    let record = RunRecord {
        run: run.clone(),
        name: experiment.name.clone(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        stages: stages.iter().map(stage_record).collect(),
        metrics: metrics.iter().map(|metric| (metric.name.clone(), metric.value)).collect(),
        notes,
    };
    let report = report(&run, experiment.seed, &metrics)?;
    atomic::create_dir(&dir)?;
    // Of two runs of one spec that end together, one writes: both would write the same.
    let Attempt::Held(_lock) = Lock::attempt(&store.root().join("locks"), &format!("results-{run}"))? else {
        return Ok(Outcome { record, dir });
    };
    atomic::write_if_changed(&dir.join("spec.yaml"), serde_yaml::to_string(experiment)?.as_bytes())?;
    atomic::write_if_changed(&dir.join("report.parquet"), &report)?;
    if !RunRecord::read(&dir).is_ok_and(|old| same_but_for_the_time(&old, &record)) {
        atomic::write(&dir.join("run.json"), record.text()?.as_bytes())?;
    }
    Ok(Outcome { record, dir })
}

fn stage_record(outcome: &StageOutcome) -> StageRecord {
    let artifact = &outcome.artifact;
    StageRecord {
        stage: outcome.stage.name().to_owned(),
        key: artifact.stage_key().clone(),
        content: artifact.content().to_owned(),
        seconds: artifact.manifest().milliseconds as f64 / 1000.0,
    }
}

fn same_but_for_the_time(a: &RunRecord, b: &RunRecord) -> bool {
    let stages = |record: &RunRecord| {
        record.stages.iter().map(|s| (s.stage.clone(), s.key.clone(), s.content.clone())).collect::<Vec<_>>()
    };
    (&a.run, &a.name, stages(a), &a.notes) == (&b.run, &b.name, stages(b), &b.notes)
        && a.metrics.keys().eq(b.metrics.keys())
}

/// Rows of a table with columns `metric` and `value`; none when there is no such table. What is not finite becomes None.
fn pairs(artifact: &Artifact, table: &str) -> anyhow::Result<Vec<(String, Option<f64>)>> {
    let mut pairs = Vec::new();
    for batch in batches(artifact, table)? {
        let batch = batch?;
        let named = || format!("table {table:?} of stage {}: expected metric: utf8, value: float64", artifact.stage());
        let names = batch.column_by_name("metric").and_then(|c| c.as_string_opt::<i32>()).with_context(named)?;
        let values = batch.column_by_name("value").and_then(|c| c.as_primitive_opt::<Float64Type>());
        let values = values.with_context(named)?;
        for row in 0..batch.num_rows() {
            let value = Some(values.value(row)).filter(|value| values.is_valid(row) && value.is_finite());
            pairs.push((names.value(row).to_owned(), value));
        }
    }
    Ok(pairs)
}

/// The texts of a `notes` table.
fn texts(artifact: &Artifact) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for batch in batches(artifact, "notes")? {
        let batch = batch?;
        let texts = batch.column_by_name("text").and_then(|c| c.as_string_opt::<i32>());
        let texts = texts.with_context(|| format!("notes of stage {}: expected text: utf8", artifact.stage()))?;
        found.extend(texts.iter().flatten().map(str::to_owned));
    }
    Ok(found)
}

fn batches(artifact: &Artifact, table: &str) -> anyhow::Result<Box<dyn Iterator<Item = anyhow::Result<RecordBatch>>>> {
    match artifact.has_table(table) {
        true => artifact.read(table),
        false => Ok(Box::new(std::iter::empty())),
    }
}

/// `report.parquet`: one row per figure.
fn report(run: &str, seed: u64, metrics: &[Metric]) -> anyhow::Result<Vec<u8>> {
    let text = |get: &dyn Fn(&Metric) -> String| -> ArrayRef {
        Arc::new(metrics.iter().map(|metric| Some(get(metric))).collect::<StringArray>())
    };
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("metric", text(&|metric| metric.name.clone()), false),
        ("value", Arc::new(metrics.iter().map(|metric| metric.value).collect::<Float64Array>()) as ArrayRef, true),
        ("stage", text(&|metric| metric.stage.name().to_owned()), false),
        ("run", text(&|_| run.to_owned()), false),
        ("seed", Arc::new(UInt64Array::from(vec![seed; metrics.len()])) as ArrayRef, false),
    ])?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(bytes)
}

impl Outcome {
    /// Metrics by name.
    pub fn metrics(&self) -> &BTreeMap<String, Option<f64>> {
        &self.record.metrics
    }
}
