//! The artifacts of a finished run.

use anyhow::bail;
use arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type, Int64Type, SchemaRef},
};

use super::Run;
use crate::artifact::{Artifact, Found, Store, table};

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
