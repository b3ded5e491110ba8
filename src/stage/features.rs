//! The `features` table: what the embed stage writes and the probes read.

use std::sync::Arc;

use anyhow::{Context, ensure};
use arrow::{
    array::{Array, AsArray, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Float32Type, Int64Type, Schema, SchemaRef},
};

/// Name of the table.
pub const TABLE: &str = "features";

/// Features of one split, in the order of its samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    /// Width of a feature vector.
    pub dim: usize,
    /// Sample number within the split.
    pub ids: Vec<i64>,
    /// Label, where there is one.
    pub labels: Vec<Option<i64>>,
    /// Feature vectors, [samples, dim].
    pub rows: Vec<f32>,
}

impl Features {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no sample.
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

/// Schema of the table for features of width `dim`.
pub fn schema(dim: usize) -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    Arc::new(Schema::new(vec![
        Field::new("sample_id", DataType::Int64, false),
        Field::new("split", DataType::Utf8, false),
        Field::new("label", DataType::Int64, true),
        Field::new("embedding", DataType::FixedSizeList(item, dim as i32), false),
    ]))
}

/// Rows of the samples from `first` on of `split` (`train` or `test`).
///
/// # Panics
/// When `rows` is not [labels, dim].
pub fn batch(split: &str, first: usize, labels: &[Option<i64>], rows: Vec<f32>, dim: usize) -> RecordBatch {
    let n = labels.len();
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    RecordBatch::try_new(
        schema(dim),
        vec![
            Arc::new(Int64Array::from_iter_values((first..first + n).map(|id| id as i64))),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(split, n))),
            Arc::new(Int64Array::from_iter(labels.iter().copied())),
            Arc::new(FixedSizeListArray::new(item, dim as i32, Arc::new(Float32Array::from(rows)), None)),
        ],
    )
    .expect("one embedding per label")
}

/// All rows of a `features` table.
///
/// # Errors
/// When a batch cannot be read or does not have the table's columns.
pub fn read(batches: impl IntoIterator<Item = anyhow::Result<RecordBatch>>) -> anyhow::Result<SplitFeatures> {
    let mut splits = SplitFeatures::default();
    for batch in batches {
        let batch = batch?;
        let column =
            |name| batch.column_by_name(name).with_context(|| format!("a features table has no column {name}"));
        let ids = column("sample_id")?.as_primitive_opt::<Int64Type>().context("sample_id is not int64")?;
        let names = column("split")?.as_string_opt::<i32>().context("split is not utf8")?;
        let labels = column("label")?.as_primitive_opt::<Int64Type>().context("label is not int64")?;
        let lists = column("embedding")?.as_fixed_size_list_opt().context("embedding is not a fixed-size list")?;
        let dim = lists.value_length() as usize;
        let values = lists.values().as_primitive_opt::<Float32Type>().context("embedding is not of float32")?;
        for row in 0..batch.num_rows() {
            let split = match names.value(row) {
                "train" => &mut splits.train,
                "test" => &mut splits.test,
                other => anyhow::bail!("features of an unknown split {other:?}"),
            };
            ensure!(split.dim == dim || split.is_empty(), "features of widths {} and {dim} in one table", split.dim);
            split.dim = dim;
            split.ids.push(ids.value(row));
            split.labels.push(labels.is_valid(row).then(|| labels.value(row)));
            let start = lists.value_offset_at(row);
            split.rows.extend_from_slice(&values.values()[start..start + dim]);
        }
    }
    Ok(splits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_by_split_whatever_the_batches() {
        let train = batch("train", 0, &[Some(3), None], vec![1.0, 2.0, 3.0, 4.0], 2);
        let more = batch("train", 2, &[Some(-1)], vec![5.0, 6.0], 2);
        let test = batch("test", 0, &[Some(3)], vec![7.0, 8.0], 2);
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
