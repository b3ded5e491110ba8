//! The `features` table, which the embed stages write and the probes read.

use anyhow::ensure;
use arrow::array::{Array, RecordBatch};

use crate::{
    dataset::SplitName,
    tables::{FEATURES, column::*},
};

/// Features of one split, in the order of its samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    /// Width of a feature vector.
    pub dim: usize,
    /// Sample number within the split.
    pub ids: Vec<i64>,
    /// Label, if there is one.
    pub labels: Vec<Option<i64>>,
    /// Feature vectors, [samples, dim].
    pub rows: Vec<f32>,
}

impl Features {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Features of both splits; either may be empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SplitFeatures {
    pub train: Features,
    pub test: Features,
}

/// Builds rows for the samples of a split from `first` on.
///
/// # Panics
/// When `rows` is not [labels, dim].
pub fn batch(split: SplitName, first: usize, labels: &[Option<i64>], rows: Vec<f32>, dim: usize) -> RecordBatch {
    let n = labels.len();
    FEATURES.rows([
        SAMPLE_ID.of((first..first + n).map(|id| id as i64)),
        SPLIT.of(std::iter::repeat_n(split.as_str(), n)),
        LABEL.of(labels.iter().copied()),
        EMBEDDING.of_vectors(rows, dim),
    ])
}

/// Reads all rows of a `features` table.
///
/// # Errors
/// When a batch cannot be read or lacks a column.
pub fn read(batches: impl IntoIterator<Item = anyhow::Result<RecordBatch>>) -> anyhow::Result<SplitFeatures> {
    let mut splits = SplitFeatures::default();
    for batch in batches {
        let batch = batch?;
        let (ids, names) = (FEATURES.integers(&batch, SAMPLE_ID)?, FEATURES.texts(&batch, SPLIT)?);
        let labels = FEATURES.integers(&batch, LABEL)?;
        let (dim, values) = FEATURES.vectors(&batch, EMBEDDING)?;
        for row in 0..batch.num_rows() {
            let split = match SplitName::named(names.value(row)) {
                Some(SplitName::Train) => &mut splits.train,
                Some(SplitName::Test) => &mut splits.test,
                None => anyhow::bail!("features of an unknown split {:?}", names.value(row)),
            };
            ensure!(split.dim == dim || split.is_empty(), "features of widths {} and {dim} in one table", split.dim);
            split.dim = dim;
            split.ids.push(ids.value(row));
            split.labels.push(labels.is_valid(row).then(|| labels.value(row)));
            split.rows.extend_from_slice(&values[row * dim..][..dim]);
        }
    }
    Ok(splits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_by_split_whatever_the_batches() {
        let train = batch(SplitName::Train, 0, &[Some(3), None], vec![1.0, 2.0, 3.0, 4.0], 2);
        let more = batch(SplitName::Train, 2, &[Some(-1)], vec![5.0, 6.0], 2);
        let test = batch(SplitName::Test, 0, &[Some(3)], vec![7.0, 8.0], 2);
        let read = read([Ok(train.slice(0, 1)), Ok(train.slice(1, 1)), Ok(more), Ok(test)]).unwrap();
        assert_eq!(
            read.train,
            Features {
                dim: 2,
                ids: vec![0, 1, 2],
                labels: vec![Some(3), None, Some(-1)],
                rows: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
            }
        );
        assert_eq!((read.test.len(), read.test.rows), (1, vec![7.0, 8.0]));
    }
}
