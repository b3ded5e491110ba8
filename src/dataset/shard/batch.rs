//! Packs samples into record batches, the rows of a shard.

use std::sync::Arc;

use anyhow::Context;
use arrow::array::{BinaryArray, FixedSizeBinaryArray, Int32Array, RecordBatch, StringArray, StructArray};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    dataset::Sample,
    tables::{TRAIN, column},
};

/// Limits of a batch, which ends at whichever is reached first.
const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: usize = 4 << 20;

/// SHA-256 over a sample's label and its image. The label is hashed as one byte that says whether it exists, then eight bytes,
/// little-endian.
pub fn row_hash(bytes: &[u8], label: Option<i64>) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([label.is_some() as u8]);
    hash.update(label.unwrap_or(0).to_le_bytes());
    hash.update(bytes);
    hash.finalize().into()
}

/// Collects the samples of a split, numbers them, and packs them into batches.
#[derive(Default)]
pub struct Batcher {
    samples: Vec<Sample>,
    bytes: usize,
    next_id: i64,
}

impl Batcher {
    /// A batcher that resumes after this number of samples.
    pub fn after(samples: u64) -> Self {
        Batcher { next_id: samples as i64, ..Batcher::default() }
    }

    /// Adds a sample. Returns a batch when enough samples have been collected.
    pub fn push(&mut self, sample: Sample) -> anyhow::Result<Option<RecordBatch>> {
        self.bytes += sample.bytes.len();
        self.samples.push(sample);
        if self.samples.len() < BATCH_ROWS && self.bytes < BATCH_BYTES {
            return Ok(None);
        }
        self.finish()
    }

    /// The remaining samples as a batch; None if there are none.
    pub fn finish(&mut self) -> anyhow::Result<Option<RecordBatch>> {
        let samples = std::mem::take(&mut self.samples);
        self.bytes = 0;
        if samples.is_empty() {
            return Ok(None);
        }
        let first = self.next_id;
        self.next_id += samples.len() as i64;
        rows(first, &samples).map(Some)
    }
}

fn rows(first_id: i64, samples: &[Sample]) -> anyhow::Result<RecordBatch> {
    let hashes: Vec<_> = samples.par_iter().map(|sample| row_hash(&sample.bytes, sample.label)).collect();
    let sizes: Result<Vec<_>, _> = samples.iter().map(|sample| i32::try_from(sample.bytes.len())).collect();
    let sizes = sizes.context("an image of more than 2 GiB")?;
    let bytes = BinaryArray::from_iter_values(samples.iter().map(|sample| &sample.bytes));
    let paths: StringArray = samples.iter().map(|sample| sample.path.as_deref()).collect();
    let image = StructArray::new(column::image_fields(), vec![Arc::new(bytes), Arc::new(paths)], None);
    // The test split has the same columns.
    Ok(TRAIN.rows([
        column::SAMPLE_ID.of(first_id..first_id + samples.len() as i64),
        column::IMAGE.array(image),
        column::LABEL.of(samples.iter().map(|sample| sample.label)),
        column::BYTES_SIZE.array(Int32Array::from(sizes)),
        column::CONTENT_HASH.array(FixedSizeBinaryArray::try_from_iter(hashes.iter())?),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::{array::AsArray, datatypes::Int64Type};

    fn sample(size: usize, label: Option<i64>) -> Sample {
        Sample { bytes: vec![7; size], path: None, label }
    }

    #[test]
    fn a_hash_covers_image_and_label() {
        let base = row_hash(b"abc", Some(0));
        assert_eq!(base, row_hash(b"abc", Some(0)));
        for other in [row_hash(b"abd", Some(0)), row_hash(b"abc", Some(1)), row_hash(b"abc", None)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn batches_are_bounded_and_numbered_on() {
        let mut batcher = Batcher::default();
        let mut batches = Vec::new();
        for i in 0..10 {
            batches.extend(batcher.push(sample(1 << 20, Some(i))).unwrap());
        }
        batches.extend(batcher.finish().unwrap());
        assert_eq!(batches.iter().map(|b| b.num_rows()).collect::<Vec<_>>(), [4, 4, 2]);
        let ids: Vec<i64> =
            batches.iter().flat_map(|b| b["sample_id"].as_primitive::<Int64Type>().values().to_vec()).collect();
        assert_eq!(ids, (0..10).collect::<Vec<_>>());
        assert!(batcher.finish().unwrap().is_none());
    }
}
