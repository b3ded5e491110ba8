//! Metric segments: append-only Parquet files `<name>-<attempt>-<first step>.parquet` with an `attempt` column.

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use anyhow::Context;
use arrow::{
    array::{RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::Schema,
};

use super::{
    Key, atomic, content,
    table::{self, TableFile},
};
use crate::tables::{SEGMENT, column};

const FOOTER: &str = "snclr.segment";

/// The parts of a segment's file name that readers need.
pub struct Parts<'a> {
    pub name: &'a str,
    pub attempt: u64,
}

/// Parses a file name; None when it is not the name of a segment.
pub fn parse(file: &str) -> Option<Parts<'_>> {
    let mut parts = file.strip_suffix(".parquet")?.rsplitn(3, '-');
    let _first_step: u64 = parts.next()?.parse().ok()?;
    let attempt = parts.next()?.parse().ok()?;
    Some(Parts { name: parts.next()?, attempt })
}

/// The file name of a segment.
pub fn file_name(name: &str, attempt: u64, first_step: u64) -> String {
    format!("{name}-{attempt:04}-{first_step:012}.parquet")
}

/// Writes a segment; returns the hash of the file.
pub fn write(path: &Path, key: &Key, attempt: u64, rows: &RecordBatch) -> anyhow::Result<String> {
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(column::ATTEMPT.field(0)));
    let mut columns = rows.columns().to_vec();
    columns.push(column::ATTEMPT.of(vec![attempt as i64; rows.num_rows()]).1);
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
    let temporary = atomic::sibling(path);
    let written = (|| {
        let schema = batch.schema();
        let mut file = TableFile::create(temporary.clone(), schema.clone(), table::compressed(&schema))?;
        file.write(&batch)?;
        file.finish(|content| vec![(FOOTER.to_owned(), vouch(key, content))])
    })();
    match written {
        Ok(written) => {
            atomic::rename(&temporary, path)?;
            Ok(written.sha256)
        }
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

/// The text in the footer: the stage key that the rows belong to, and the hash of their content.
fn vouch(key: &Key, content: &str) -> String {
    format!("{key} {content}")
}

/// Reads a segment, and checks that its footer matches `key` and the content of its rows.
pub fn read(path: &Path, key: &Key) -> anyhow::Result<RecordBatch> {
    let (batch, footer) = table::read_whole(path, FOOTER)?;
    let found = vouch(key, &content::of_batch(&batch)?);
    anyhow::ensure!(
        footer.as_deref() == Some(found.as_str()),
        "{}: its rows do not match their hash, or belong to another stage key",
        path.display()
    );
    Ok(batch)
}

/// Merges segments into the rows with step < `until`, sorted by step. Of each step, only the rows of the newest attempt that has
/// any are kept, in their order. None when no row is left.
pub fn merge(batches: Vec<RecordBatch>, until: u64) -> anyhow::Result<Option<RecordBatch>> {
    let Some(first) = batches.first() else { return Ok(None) };
    let all =
        concat_batches(&first.schema(), &batches).context("metric segments of one name have different columns")?;
    let (steps, attempts) = (SEGMENT.integers(&all, column::STEP)?, SEGMENT.integers(&all, column::ATTEMPT)?);
    let mut order: Vec<u32> = (0..all.num_rows() as u32).collect();
    order.retain(|&row| steps.value(row as usize) < until.min(i64::MAX as u64) as i64);
    order.sort_by_key(|&row| (steps.value(row as usize), attempts.value(row as usize), row));
    let of = |row: u32| (steps.value(row as usize), attempts.value(row as usize));
    let newest: HashMap<i64, i64> = order.iter().map(|&row| of(row)).collect();
    let rows: UInt32Array =
        order.into_iter().filter(|&row| of(row) == (of(row).0, newest[&of(row).0])).collect::<Vec<_>>().into();
    if rows.is_empty() {
        return Ok(None);
    }
    let kept: Vec<usize> =
        (0..all.num_columns()).filter(|&i| all.schema().field(i).name() != column::ATTEMPT.name).collect();
    Ok(Some(take_record_batch(&all.project(&kept)?, &rows)?))
}
