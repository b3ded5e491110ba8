//! `tables/figures.parquet` and `tables/metrics.parquet`: the figures of all finished runs and the curves of their trainings, each in
//! one file in the order of the runs, for databases. Derived: they may be deleted at any time.

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

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub path: PathBuf,
    pub rows: usize,
}

/// Writes both, and gives what was written. `note` hears of trainings that are gone or damaged: their curves are left out.
///
/// # Errors
/// When a run's folder cannot be read, or the files cannot be written.
pub fn write(store: &Store, note: &mut dyn FnMut(String)) -> anyhow::Result<[Written; 2]> {
    let mut runs = catalogue(store.root())?.iter().map(Run::of_catalogue).collect::<anyhow::Result<Vec<_>>>()?;
    // Files are cut into parts that know their smallest and largest run: in order, a database skips all but those of one run.
    runs.sort_by(|a, b| a.record.run.cmp(&b.record.run));
    let dir = store.root().join(TABLES);
    atomic::create_dir(&dir)?;
    let figures = parquet(&dir, FIGURES, runs.iter().map(|run| Ok(figures(run))))?;
    let curves = runs.iter().filter_map(|run| match curves(store, run) {
        Ok(rows) => rows.map(Ok),
        Err(error) => {
            note(format!("{}: its curves are left out: {error:#}", run.record.run));
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

/// None of a training without steps.
fn curves(store: &Store, run: &Run) -> anyhow::Result<Option<RecordBatch>> {
    // Not hashed to the last byte: most of it is weights, of which nothing is read here.
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
