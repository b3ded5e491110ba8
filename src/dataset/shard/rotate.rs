//! Where one shard ends and the next begins.

use std::{borrow::Borrow, iter::Peekable};

use arrow::array::{AsArray, RecordBatch};

use crate::tables::column::{BYTES, IMAGE, PATH};

/// What a row takes in a shard beside its image: page header, offset index, hash and the other columns, rounded up.
const ROW_OVERHEAD: u64 = 128;

/// Writes batches until the shard holds about `limit` bytes, but at least one; false when there was none.
///
/// Bytes are counted from the rows, not from what the Parquet writer made of them: where shards end is part of an
/// artifact's content and must not move with the writer's version.
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
