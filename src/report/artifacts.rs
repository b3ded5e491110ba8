//! The artifacts of a run, and what a training that has not come to its end has written so far.

use anyhow::bail;
use arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type, Int64Type, SchemaRef},
};

use super::Run;
use crate::{
    artifact::{Artifact, Found, RunRecord, Store, Unfinished, table},
    stage::{column, pretrain},
};

const TRAINING: &str = pretrain::DESCRIPTOR.name;

/// Largest artifact that is hashed before a report reads a few rows of it.
const HASHED: u64 = 1 << 30;

/// The artifact of a stage of `run`, verified.
///
/// # Errors
/// When the run has no such stage, or its artifact is gone or damaged.
pub fn stage(store: &Store, run: &Run, name: &str) -> anyhow::Result<Artifact> {
    let artifact = stage_as_found(store, run, name)?;
    store.verify(&artifact, &mut |_| ()).map_err(|what| damaged(run, name, &what))?;
    Ok(artifact)
}

/// Like [`stage`], but images and features of large data sets are not hashed: a report reads a few of their rows, and the
/// sizes and stamps of their files have been looked at.
///
/// # Errors
/// As [`stage`].
pub fn stage_in_part(store: &Store, run: &Run, name: &str) -> anyhow::Result<Artifact> {
    match stage_as_found(store, run, name)? {
        large if large.size() > HASHED => Ok(large),
        _ => stage(store, run, name),
    }
}

/// The artifact of a stage of `run`, if it has one that is there and whole.
pub fn find(store: &Store, run: &Run, name: &str) -> Option<Artifact> {
    stage_as_found(store, run, name).ok()
}

fn stage_as_found(store: &Store, run: &Run, name: &str) -> anyhow::Result<Artifact> {
    let named = &run.record.run;
    let Some(record) = run.record.stages.iter().find(|stage| stage.stage == name) else {
        bail!("run {named} has no stage {name}");
    };
    match store.find(name, &record.key) {
        Found::Hit(artifact) => Ok(artifact),
        Found::Missing => bail!("the {name} artifact of run {named} is gone; {}", again(run)),
        Found::Damaged { what } => Err(damaged(run, name, &what)),
    }
}

fn damaged(run: &Run, name: &str, what: &str) -> anyhow::Error {
    anyhow::anyhow!("the {name} artifact of run {} is damaged ({what}); {}", run.record.run, again(run))
}

fn again(run: &Run) -> String {
    format!("run its spec again (results/{}/spec.yaml)", run.record.run)
}

/// The rows that tell of a run's training, step by step.
pub enum Training<'a> {
    /// Those of its artifact.
    Whole(Artifact),
    /// Those so far, of a training that runs or that ended before its time.
    SoFar(&'a Store, &'a Unfinished),
    /// The run ended before its training began.
    None,
}

impl<'a> Training<'a> {
    /// The training of `run`.
    ///
    /// # Errors
    /// When its artifact is gone or damaged.
    pub fn of(store: &'a Store, run: &'a Run) -> anyhow::Result<Self> {
        let has_it = run.record.stages.iter().any(|stage| stage.stage == TRAINING);
        match &run.record.unfinished {
            Some(unfinished) if !has_it && unfinished.stage == TRAINING => Ok(Training::SoFar(store, unfinished)),
            Some(_) if !has_it => Ok(Training::None),
            _ => Ok(Training::Whole(stage(store, run, TRAINING)?)),
        }
    }

    /// One of its tables; without rows where there are none.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged.
    pub fn table(&self, name: &str) -> anyhow::Result<Table> {
        match self {
            Training::Whole(artifact) => Table::read(artifact, name),
            Training::SoFar(store, unfinished) => {
                let rows = store.rows_so_far(&unfinished.stage, &unfinished.key, name)?;
                Ok(Table { schema: rows.as_ref().map(RecordBatch::schema), batches: rows.into_iter().collect() })
            }
            Training::None => Ok(Table { schema: None, batches: Vec::new() }),
        }
    }

    /// Steps that it has written so far.
    ///
    /// # Errors
    /// As [`Training::table`].
    pub fn steps(&self) -> anyhow::Result<u64> {
        let steps = self.table("metrics")?.integers(column::STEP)?;
        Ok(steps.into_iter().flatten().max().map_or(0, |last| last as u64 + 1))
    }
}

/// Steps that a training has written which has not come to its end; None of a run that has not begun one, or is past it.
pub fn steps(store: &Store, unfinished: &Unfinished) -> Option<u64> {
    // What cannot be read has no steps to tell; whoever wants its curves hears why.
    let steps = || Training::SoFar(store, unfinished).steps().ok().filter(|steps| *steps > 0);
    (unfinished.stage == TRAINING).then(steps)?
}

/// Where a run is that has no results, or that it is finished.
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
    /// None where the artifact has no such table.
    schema: Option<SchemaRef>,
    batches: Vec<RecordBatch>,
}

impl Table {
    /// Reads a table of `artifact`; without rows when there is none of this name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(artifact: &Artifact, name: &str) -> anyhow::Result<Table> {
        if !artifact.has_table(name) {
            return Ok(Table { schema: None, batches: Vec::new() });
        }
        let schema = Some(table::schema(&artifact.table_path(name)?)?);
        Ok(Table { schema, batches: artifact.read(name)?.collect::<anyhow::Result<_>>()? })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Whether the table has a column of this name.
    pub fn has_column(&self, name: &str) -> bool {
        self.schema.as_ref().is_some_and(|schema| schema.column_with_name(name).is_some())
    }

    /// Names of the float64 columns.
    pub fn names_of_reals(&self) -> Vec<String> {
        let fields = self.schema.iter().flat_map(|schema| schema.fields().iter());
        fields.filter(|field| *field.data_type() == DataType::Float64).map(|field| field.name().clone()).collect()
    }

    /// Values of a float64 column, None for null; none of a table that is not there.
    ///
    /// # Errors
    /// When the table has no such column.
    pub fn reals(&self, name: &str) -> anyhow::Result<Vec<Option<f64>>> {
        self.column(name, &DataType::Float64, |column| column.as_primitive::<Float64Type>().iter().collect())
    }

    /// Values of an int64 column, None for null; none of a table that is not there.
    ///
    /// # Errors
    /// When the table has no such column.
    pub fn integers(&self, name: &str) -> anyhow::Result<Vec<Option<i64>>> {
        self.column(name, &DataType::Int64, |column| column.as_primitive::<Int64Type>().iter().collect())
    }

    /// Values of a text column; none of a table that is not there.
    ///
    /// # Errors
    /// When the table has no such column.
    pub fn texts(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let texts = |column: &ArrayRef| column.as_string::<i32>().iter().map(|t| t.unwrap_or("").to_owned()).collect();
        self.column(name, &DataType::Utf8, texts)
    }

    fn column<T>(&self, name: &str, kind: &DataType, values: impl Fn(&ArrayRef) -> Vec<T>) -> anyhow::Result<Vec<T>> {
        let Some(schema) = &self.schema else { return Ok(Vec::new()) };
        let Some((at, _)) = schema.column_with_name(name).filter(|(_, field)| field.data_type() == kind) else {
            let names: Vec<_> =
                schema.fields().iter().map(|field| format!("{}: {}", field.name(), field.data_type())).collect();
            bail!("a table has no column {name}: {kind}; it has {}", names.join(", "));
        };
        Ok(self.batches.iter().flat_map(|batch| values(batch.column(at))).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Float64Array;

    use super::*;

    #[test]
    fn an_unknown_column_is_an_error_and_a_table_that_is_not_there_is_empty() {
        let column = Arc::new(Float64Array::from(vec![Some(0.5), None])) as ArrayRef;
        let batch = RecordBatch::try_from_iter_with_nullable([("loss", column, true)]).unwrap();
        for batches in [vec![batch.clone()], Vec::new()] {
            let rows = batches.len();
            let table = Table { schema: Some(batch.schema()), batches };
            assert_eq!(table.reals("loss").unwrap(), [Some(0.5), None][..2 * rows]);
            let message = |error: anyhow::Error| error.to_string();
            let expected = "a table has no column los: Float64; it has loss: Float64";
            assert_eq!(table.reals("los").map_err(message).unwrap_err(), expected);
            let expected = "a table has no column loss: Int64; it has loss: Float64";
            assert_eq!(table.integers("loss").map_err(message).unwrap_err(), expected);
        }
        let missing = Table { schema: None, batches: Vec::new() };
        assert_eq!((missing.len(), missing.reals("loss").unwrap()), (0, vec![]));
    }
}
