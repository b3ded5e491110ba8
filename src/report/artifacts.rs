//! The artifacts of a finished run.

use anyhow::bail;
use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{DataType, Float64Type, Int64Type},
};

use super::Run;
use crate::artifact::{Artifact, Found, Store};

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

/// A table in memory, by columns.
pub struct Table(Vec<RecordBatch>);

impl Table {
    /// Reads a table of `artifact`; without rows when there is none of this name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(artifact: &Artifact, name: &str) -> anyhow::Result<Table> {
        match artifact.has_table(name) {
            true => Ok(Table(artifact.read(name)?.collect::<anyhow::Result<_>>()?)),
            false => Ok(Table(Vec::new())),
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.0.iter().map(RecordBatch::num_rows).sum()
    }

    /// Names of the float64 columns.
    pub fn names_of_reals(&self) -> Vec<String> {
        let schema = self.0.first().map(RecordBatch::schema);
        let fields = schema.iter().flat_map(|schema| schema.fields().iter());
        fields.filter(|field| *field.data_type() == DataType::Float64).map(|field| field.name().clone()).collect()
    }

    /// Values of a float64 column, None for null; empty where there is no such column.
    pub fn reals(&self, name: &str) -> Vec<Option<f64>> {
        let column = |batch: &RecordBatch| -> Vec<Option<f64>> {
            let column =
                batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Float64Type>().cloned());
            column.map_or_else(Vec::new, |column| column.iter().collect())
        };
        self.0.iter().flat_map(column).collect()
    }

    /// Values of an int64 column, None for null; empty where there is no such column.
    pub fn integers(&self, name: &str) -> Vec<Option<i64>> {
        let column = |batch: &RecordBatch| -> Vec<Option<i64>> {
            let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>().cloned());
            column.map_or_else(Vec::new, |column| column.iter().collect())
        };
        self.0.iter().flat_map(column).collect()
    }

    /// Values of a text column; empty where there is no such column.
    pub fn texts(&self, name: &str) -> Vec<String> {
        let column = |batch: &RecordBatch| -> Vec<String> {
            let column = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>().cloned());
            column.map_or_else(Vec::new, |column| column.iter().map(|text| text.unwrap_or("").to_owned()).collect())
        };
        self.0.iter().flat_map(column).collect()
    }
}
