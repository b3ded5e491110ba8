//! Reads the artifacts of a run, and the metrics that an unfinished training has written so far.

use anyhow::bail;
use arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    datatypes::{Float64Type, Int64Type, SchemaRef},
};

use super::Run;
use crate::{
    artifact::{Artifact, Found, RunRecord, Store, Unfinished, table},
    stage::pretrain,
    tables::{
        self, METRICS,
        column::{Column, STEP},
    },
};

const TRAINING: &str = pretrain::DESCRIPTOR.name;

/// The largest artifact that is hashed before a report reads a few of its rows.
const HASHED: u64 = 1 << 30;

/// The artifact of a stage of `run`, verified.
///
/// # Errors
/// When the run has no such stage, or its artifact is missing or damaged.
pub fn stage(store: &Store, run: &Run, name: &str) -> anyhow::Result<Artifact> {
    let artifact = as_found(store, run, name)?;
    store.verify(&artifact, &mut |_| ()).map_err(|what| damaged(run, name, &what))?;
    Ok(artifact)
}

/// Like [`stage`], but does not hash large artifacts: the images and features of large data sets, of which a report reads only a
/// few rows. Sizes and modification times of their files are still checked.
///
/// # Errors
/// As [`stage`].
pub fn stage_in_part(store: &Store, run: &Run, name: &str) -> anyhow::Result<Artifact> {
    match as_found(store, run, name)? {
        large if large.size() > HASHED => Ok(large),
        _ => stage(store, run, name),
    }
}

/// The artifact of a stage of `run`, if the run has the stage and its artifact is neither missing nor damaged.
pub fn find(store: &Store, run: &Run, name: &str) -> Option<Artifact> {
    as_found(store, run, name).ok()
}

/// The artifact of a stage of `run`, with only the checks that [`Store::find`] makes.
///
/// # Errors
/// As [`stage`].
pub(super) fn as_found(store: &Store, run: &Run, name: &str) -> anyhow::Result<Artifact> {
    let named = &run.record.run;
    let Some(record) = run.record.stages.iter().find(|stage| stage.stage == name) else {
        bail!("run {named} has no stage {name}");
    };
    match store.find(name, &record.key) {
        Found::Hit(artifact) => Ok(artifact),
        Found::Missing => bail!("the {name} artifact of run {named} is missing; {}", again(run)),
        Found::Damaged { what } => Err(damaged(run, name, &what)),
    }
}

fn damaged(run: &Run, name: &str, what: &str) -> anyhow::Error {
    anyhow::anyhow!("the {name} artifact of run {} is damaged ({what}); {}", run.record.run, again(run))
}

fn again(run: &Run) -> String {
    format!("run its spec again (results/{}/spec.yaml)", run.record.run)
}

/// The metrics of the training of a run, step by step.
pub enum Training<'a> {
    /// From its artifact.
    Whole(Artifact),
    /// From the segments of a training that is running or was cut short.
    SoFar(&'a Store, &'a Unfinished),
    /// The run ended before its training started.
    None,
}

impl<'a> Training<'a> {
    /// The training of `run`.
    ///
    /// # Errors
    /// When its artifact is missing or damaged.
    pub fn of(store: &'a Store, run: &'a Run) -> anyhow::Result<Self> {
        let has_it = run.record.stages.iter().any(|stage| stage.stage == TRAINING);
        match &run.record.unfinished {
            Some(unfinished) if !has_it && unfinished.stage == TRAINING => Ok(Training::SoFar(store, unfinished)),
            Some(_) if !has_it => Ok(Training::None),
            _ => Ok(Training::Whole(stage(store, run, TRAINING)?)),
        }
    }

    /// One of the training's tables. The result is empty if the training has no such table.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged.
    pub fn table(&self, table: tables::Table) -> anyhow::Result<Table> {
        match self {
            Training::Whole(artifact) => Table::read(artifact, table),
            Training::SoFar(store, unfinished) => {
                let rows = store.rows_so_far(&unfinished.stage, &unfinished.key, table.name)?;
                Ok(Table { table, schema: rows.as_ref().map(RecordBatch::schema), batches: rows.into_iter().collect() })
            }
            Training::None => Ok(Table { table, schema: None, batches: Vec::new() }),
        }
    }

    /// The number of steps written so far.
    ///
    /// # Errors
    /// As [`Training::table`].
    pub fn steps(&self) -> anyhow::Result<u64> {
        let steps = self.table(METRICS)?.integers(STEP)?;
        Ok(steps.into_iter().flatten().max().map_or(0, |last| last as u64 + 1))
    }
}

/// The number of steps that an unfinished training has written. None outside training, before the first step, and if the steps
/// cannot be read.
pub fn steps(store: &Store, unfinished: &Unfinished) -> Option<u64> {
    // An unreadable training has no steps to count. A command that draws its curves reports the error.
    let steps = || Training::SoFar(store, unfinished).steps().ok().filter(|steps| *steps > 0);
    (unfinished.stage == TRAINING).then(steps)?
}

/// The state of a run as text: `finished`, or state, stage and number of steps of a run without results.
pub fn state(store: &Store, record: &RunRecord) -> String {
    match &record.unfinished {
        None => "finished".to_owned(),
        Some(unfinished) => match steps(store, unfinished) {
            None => unfinished.to_string(),
            Some(1) => format!("{unfinished} after 1 step"),
            Some(steps) => format!("{unfinished} after {steps} steps"),
        },
    }
}

/// A table in memory, by columns.
pub struct Table {
    table: tables::Table,
    /// None if the artifact has no such table.
    schema: Option<SchemaRef>,
    batches: Vec<RecordBatch>,
}

impl Table {
    /// Reads a table of `artifact`. The result is empty if the artifact has no such table.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(artifact: &Artifact, table: tables::Table) -> anyhow::Result<Table> {
        if !artifact.has_table(table.name) {
            return Ok(Table { table, schema: None, batches: Vec::new() });
        }
        let schema = Some(table::schema(&artifact.table_path(table.name)?)?);
        Ok(Table { table, schema, batches: artifact.read(table.name)?.collect::<anyhow::Result<_>>()? })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Values of a float64 column, None for null; empty if the table is missing.
    ///
    /// # Errors
    /// When the table has no such column.
    pub fn reals(&self, column: Column) -> anyhow::Result<Vec<Option<f64>>> {
        self.column(column, |values| values.as_primitive::<Float64Type>().iter().collect())
    }

    /// Values of an int64 column, None for null; empty if the table is missing.
    ///
    /// # Errors
    /// When the table has no such column.
    pub fn integers(&self, column: Column) -> anyhow::Result<Vec<Option<i64>>> {
        self.column(column, |values| values.as_primitive::<Int64Type>().iter().collect())
    }

    /// Values of a text column; empty if the table is missing.
    ///
    /// # Errors
    /// When the table has no such column.
    pub fn texts(&self, column: Column) -> anyhow::Result<Vec<String>> {
        let texts = |values: &ArrayRef| values.as_string::<i32>().iter().map(|t| t.unwrap_or("").to_owned()).collect();
        self.column(column, texts)
    }

    fn column<T>(&self, column: Column, values: impl Fn(&ArrayRef) -> Vec<T>) -> anyhow::Result<Vec<T>> {
        let Some(schema) = &self.schema else { return Ok(Vec::new()) };
        let place = self.table.place(column, schema)?;
        Ok(self.batches.iter().flat_map(|batch| values(batch.column(place))).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Float64Array;

    use super::*;
    use crate::tables::column::STD;

    #[test]
    fn an_unknown_column_is_an_error_and_a_table_that_is_not_there_is_empty() {
        // A name that an older version might have used.
        let column = Arc::new(Float64Array::from(vec![Some(0.5), None])) as ArrayRef;
        let batch = RecordBatch::try_from_iter_with_nullable([("spread", column, true)]).unwrap();
        for batches in [vec![batch.clone()], Vec::new()] {
            let table = Table { table: METRICS, schema: Some(batch.schema()), batches };
            let expected = "the table `metrics` has no column std: Float64; it has spread: Float64";
            assert_eq!(table.reals(STD).unwrap_err().to_string(), expected);
        }
        let missing = Table { table: METRICS, schema: None, batches: Vec::new() };
        assert_eq!((missing.len(), missing.reals(STD).unwrap()), (0, vec![]));
    }
}
