//! Table rows of named tensors, as checkpoints hold them: `name`, `shape`, `dtype` (`f32` or `i64`), `bytes` (little-endian).

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use arrow::{
    array::{Array, AsArray, Int64Builder, LargeBinaryArray, ListBuilder, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};

use crate::ops::named::{NamedTensor, Values};

/// Schema of the rows.
pub fn schema() -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Int64, false));
    Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("shape", DataType::List(item), false),
        Field::new("dtype", DataType::Utf8, false),
        Field::new("bytes", DataType::LargeBinary, false),
    ]))
}

/// One row per tensor, in their order.
pub fn to_rows(tensors: &[NamedTensor<f32>]) -> RecordBatch {
    let item = Arc::new(Field::new("item", DataType::Int64, false));
    let mut shapes = ListBuilder::new(Int64Builder::new()).with_field(item);
    for tensor in tensors {
        shapes.append_value(tensor.shape.iter().map(|n| Some(*n as i64)));
    }
    let dtype = |values: &Values<f32>| match values {
        Values::Real(_) => "f32",
        Values::Integer(_) => "i64",
    };
    let bytes = |values: &Values<f32>| -> Vec<u8> {
        match values {
            Values::Real(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Values::Integer(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    };
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(StringArray::from_iter_values(tensors.iter().map(|t| &t.name))),
        Arc::new(shapes.finish()),
        Arc::new(StringArray::from_iter_values(tensors.iter().map(|t| dtype(&t.values)))),
        Arc::new(LargeBinaryArray::from_iter_values(tensors.iter().map(|t| bytes(&t.values)))),
    ];
    RecordBatch::try_new(schema(), columns).expect("columns follow the schema")
}

/// The tensors of a table of rows.
///
/// # Errors
/// When it is no such table, or a tensor's bytes do not fit its shape.
pub fn from_rows(batch: &RecordBatch) -> anyhow::Result<Vec<NamedTensor<f32>>> {
    let column = |name| batch.column_by_name(name).with_context(|| format!("a table of tensors has no column {name}"));
    let names = column("name")?.as_string_opt::<i32>().context("name is not utf8")?;
    let shapes = column("shape")?.as_list_opt::<i32>().context("shape is not a list")?;
    let dtypes = column("dtype")?.as_string_opt::<i32>().context("dtype is not utf8")?;
    let bytes = column("bytes")?.as_binary_opt::<i64>().context("bytes is not large_binary")?;
    let mut tensors = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let (name, bytes) = (names.value(row), bytes.value(row));
        let shape = shapes.value(row);
        let shape = shape.as_primitive_opt::<Int64Type>().context("shape is not a list of int64")?;
        let shape: Option<Vec<usize>> = shape.values().iter().map(|n| usize::try_from(*n).ok()).collect();
        let shape = shape.with_context(|| format!("tensor {name} has a negative size"))?;
        let (size, values) = match dtypes.value(row) {
            "f32" => (4, Values::Real(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())),
            "i64" => (8, Values::Integer(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect())),
            other => bail!("tensor {name} has dtype {other}, expected f32 or i64"),
        };
        let expected = shape.iter().try_fold(size, |product: usize, n| product.checked_mul(*n));
        ensure!(expected == Some(bytes.len()), "tensor {name}: {} bytes do not fit shape {shape:?}", bytes.len());
        tensors.push(NamedTensor { name: name.into(), shape, values });
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_as_they_were() {
        let tensors = vec![
            NamedTensor::real("weights", &[2, 1], vec![-0.0, f32::INFINITY]),
            NamedTensor::integer("queue.samples", &[3], vec![-1, 7, i64::MAX]),
            NamedTensor::real("empty", &[0, 4], Vec::new()),
        ];
        assert_eq!(from_rows(&to_rows(&tensors)).unwrap(), tensors);
    }
}
