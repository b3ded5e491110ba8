//! Decides where one shard ends and the next starts.

use std::{borrow::Borrow, iter::Peekable};

use arrow::array::{AsArray, RecordBatch};

use crate::tables::column::{BYTES, IMAGE, PATH};

/// Bytes of a row in a shard beside its image: page header, offset index, hash and the other columns, rounded up.
const ROW_OVERHEAD: u64 = 128;

/// Writes batches until the shard holds about `limit` bytes, but at least one batch. Returns false if there was no batch.
///
/// Bytes are counted from the rows and not from the Parquet writer's output: where shards end is part of an artifact's content
/// and must not change with the writer's version.
pub fn fill<T: Borrow<RecordBatch>>(
    batches: &mut Peekable<impl Iterator<Item = T>>,
    limit: u64,
    write: &mut dyn FnMut(&T) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let mut bytes = 0;
    while let Some(batch) = batches.next_if(|batch| bytes == 0 || bytes + size(batch.borrow()) <= limit) {
        bytes += size(batch.borrow());
        write(&batch)?;
    }
    Ok(bytes > 0)
}

fn size(batch: &RecordBatch) -> u64 {
    let image = batch[IMAGE.name].as_struct();
    let bytes =
        image[BYTES.name].as_binary::<i32>().values().len() + image[PATH.name].as_string::<i32>().values().len();
    (bytes as u64) + batch.num_rows() as u64 * ROW_OVERHEAD
}
