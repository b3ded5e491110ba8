//! Writes `tables/figures.parquet` (the metrics of all finished runs) and `tables/metrics.parquet` (the curves of their
//! trainings), for databases. Both are derived, and may be deleted at any time.

use std::path::{Path, PathBuf};

use anyhow::Context;
use arrow::array::{ArrayRef, RecordBatch, UInt64Array};

use super::{Run, artifacts};
use crate::{
    artifact::{
        Store, TABLES, atomic, catalogue,
        table::{TableFile, compressed},
    },
    stage::pretrain,
    tables::{
        CURVES, FIGURES, METRICS, Table,
        column::{METRIC, NAME, RUN, SEED, VALUE},
    },
};

/// Summary of the written files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub path: PathBuf,
    pub rows: usize,
}

/// Writes both files. Calls `note` for each training that is missing or damaged, and omits its curves.
///
/// # Errors
/// When the folder of a run cannot be read, or the files cannot be written.
pub fn write(store: &Store, note: &mut dyn FnMut(String)) -> anyhow::Result<[Written; 2]> {
    let mut runs = catalogue(store.root())?.iter().map(Run::of_catalogue).collect::<anyhow::Result<Vec<_>>>()?;
    // Row groups record their smallest and largest run. In order, a database can skip all groups but those of one run.
    runs.sort_by(|a, b| a.record.run.cmp(&b.record.run));
    let dir = store.root().join(TABLES);
    atomic::create_dir(&dir)?;
    let figures = parquet(&dir, FIGURES, runs.iter().map(|run| Ok(figures(run))))?;
    let curves = runs.iter().filter_map(|run| match curves(store, run) {
        Ok(rows) => rows.map(Ok),
        Err(error) => {
            note(format!("{}: omitting its curves: {error:#}", run.record.run));
            None
        }
    });
    Ok([figures, parquet(&dir, CURVES, curves)?])
}

fn parquet(
    dir: &Path,
    table: Table,
    rows: impl Iterator<Item = anyhow::Result<RecordBatch>>,
) -> anyhow::Result<Written> {
    let path = dir.join(format!("{}.parquet", table.name));
    let temporary = atomic::sibling(&path);
    let written = (|| {
        let schema = table.schema();
        let mut file = TableFile::create(temporary.clone(), schema.clone(), compressed(&schema))?;
        rows.into_iter().try_for_each(|rows| file.write(&rows?))?;
        let rows = file.finish(|_| Vec::new())?.rows as usize;
        atomic::rename(&temporary, &path)?;
        Ok(Written { path, rows })
    })();
    written.inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

fn figures(run: &Run) -> RecordBatch {
    let metrics = &run.record.metrics;
    let seed = run.spec.get("seed").and_then(serde_json::Value::as_u64).unwrap_or_default();
    FIGURES.rows([
        RUN.of(metrics.iter().map(|_| &run.record.run)),
        NAME.of(metrics.iter().map(|_| &run.record.name)),
        SEED.array(UInt64Array::from(vec![seed; metrics.len()])),
        METRIC.of(metrics.keys()),
        VALUE.or_null().of(metrics.values().copied()),
    ])
}

/// The curves of a run's training; None if the training has no steps.
fn curves(store: &Store, run: &Run) -> anyhow::Result<Option<RecordBatch>> {
    // The artifact is not hashed, since most of it is weights, which are not read here.
    let training = artifacts::as_found(store, run, pretrain::DESCRIPTOR.name)?;
    let batches = training.rows_of(&METRICS)?.collect::<anyhow::Result<Vec<_>>>()?;
    let Some(first) = batches.first() else { return Ok(None) };
    let all = arrow::compute::concat_batches(&first.schema(), &batches).context("its metrics")?;
    let names: Vec<&String> = vec![&run.record.run; all.num_rows()];
    let column = |column: &crate::tables::column::Column| -> anyhow::Result<(_, ArrayRef)> {
        if column.name == RUN.name {
            return Ok(RUN.of(names.clone()));
        }
        let values = all.column_by_name(column.name).with_context(|| format!("no column {}", column.name))?;
        Ok((*column, values.clone()))
    };
    let columns = CURVES.columns.iter().map(column).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Some(CURVES.rows(columns)))
}
