//! Tables of named tensors: how weights are kept in artifacts and checkpoints.
//!
//! One row per tensor: `name` (torch's), `shape`, `dtype` (`f32`), `bytes` (little-endian, in torch's order).

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use arrow::{
    array::{Array, AsArray, BinaryBuilder, Int64Builder, ListBuilder, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};

/// Name, shape and values of a tensor, in torch's conventions.
pub type Tensor = (String, Vec<usize>, Vec<f32>);

/// Schema of a table of tensors.
pub fn weights_schema() -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Int64, false));
    Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("shape", DataType::List(item), false),
        Field::new("dtype", DataType::Utf8, false),
        Field::new("bytes", DataType::Binary, false),
    ]))
}

/// The rows of `entries`, in their order.
///
/// # Panics
/// When a shape does not fit its values, or all values together exceed 2 GiB (give fewer tensors per batch then).
pub fn weights_batch(entries: &[Tensor]) -> RecordBatch {
    let item = Arc::new(Field::new("item", DataType::Int64, false));
    let mut shapes = ListBuilder::new(Int64Builder::new()).with_field(item);
    let total = entries.iter().map(|(_, _, values)| values.len() * 4).sum();
    let mut bytes = BinaryBuilder::with_capacity(entries.len(), total);
    for (name, shape, values) in entries {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        shapes.append_value(shape.iter().map(|&n| Some(n as i64)));
        bytes.append_value(to_bytes(values));
    }
    RecordBatch::try_new(
        weights_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(entries.iter().map(|(name, _, _)| name))),
            Arc::new(shapes.finish()),
            Arc::new(StringArray::from_iter_values(entries.iter().map(|_| "f32"))),
            Arc::new(bytes.finish()),
        ],
    )
    .expect("columns follow the schema")
}

/// The tensors in `batches`, in the order of their rows.
///
/// # Errors
/// When a batch cannot be read, is no table of tensors, or a tensor's bytes do not fit its shape.
pub fn read_weights(batches: impl IntoIterator<Item = anyhow::Result<RecordBatch>>) -> anyhow::Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for batch in batches {
        let batch = batch?;
        let column =
            |name| batch.column_by_name(name).with_context(|| format!("a table of weights has no column {name}"));
        let names = column("name")?.as_string_opt::<i32>().context("name is not utf8")?;
        let shapes = column("shape")?.as_list_opt::<i32>().context("shape is not a list")?;
        let dtypes = column("dtype")?.as_string_opt::<i32>().context("dtype is not utf8")?;
        let bytes = column("bytes")?.as_binary_opt::<i32>().context("bytes is not binary")?;
        for row in 0..batch.num_rows() {
            let name = names.value(row);
            if dtypes.value(row) != "f32" {
                bail!("tensor {name} has dtype {}, expected f32", dtypes.value(row));
            }
            let shape = shapes.value(row);
            let shape = shape.as_primitive_opt::<Int64Type>().context("shape is not a list of int64")?;
            ensure!(shape.null_count() == 0 && shape.values().iter().all(|&n| n >= 0), "tensor {name}: bad shape");
            let shape: Vec<usize> = shape.values().iter().map(|&n| n as usize).collect();
            let bytes = bytes.value(row);
            ensure!(
                shape.iter().try_fold(4usize, |product, &n| product.checked_mul(n)) == Some(bytes.len()),
                "tensor {name}: {} bytes do not fit shape {shape:?}",
                bytes.len()
            );
            tensors.push((name.to_owned(), shape, from_bytes(bytes)));
        }
    }
    Ok(tensors)
}

/// Little-endian bytes of `values`.
pub fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_as_they_were() {
        let tensors = vec![
            (
                "conv1.weight".to_owned(),
                vec![2, 1, 1, 3],
                vec![1.0, -0.0, f32::MIN_POSITIVE, 3.5, f32::INFINITY, -7.25],
            ),
            ("bn1.bias".to_owned(), vec![2], vec![0.1, 0.2]),
            ("scalar".to_owned(), vec![], vec![5.0]),
            ("empty".to_owned(), vec![0, 4], vec![]),
        ];
        let batch = weights_batch(&tensors);
        assert_eq!(batch.schema(), weights_schema());
        let read = read_weights([Ok(batch.slice(0, 1)), Ok(batch.slice(1, 3))]).unwrap();
        assert_eq!(read, tensors);
        assert!(read[0].2[1].is_sign_negative());
    }

    #[test]
    fn bytes_that_do_not_fit_the_shape_are_refused() {
        let batch = weights_batch(&[("fc.weight".to_owned(), vec![2], vec![1.0, 2.0])]);
        let mut columns = batch.columns().to_vec();
        columns[3] = Arc::new(arrow::array::BinaryArray::from_iter_values([[0u8; 7]]));
        let damaged = RecordBatch::try_new(weights_schema(), columns).unwrap();
        let error = read_weights([Ok(damaged)]).unwrap_err().to_string();
        assert_eq!(error, "tensor fc.weight: 7 bytes do not fit shape [2]");
    }
}
