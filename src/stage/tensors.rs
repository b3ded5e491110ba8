//! Stores named tensors as table rows, as in checkpoints: `name`, `shape`, `dtype` (`f32` or `i64`), `bytes` (little-endian).

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use arrow::{
    array::{AsArray, Int64Builder, LargeBinaryArray, ListBuilder, RecordBatch},
    datatypes::{DataType, Int64Type},
    ipc::{reader::StreamReader, writer::StreamWriter},
};

use crate::{
    ops::named::{NamedTensor, Values},
    tables::{STATE, column::*},
};

/// Builds a table with one row per tensor, in order.
pub fn to_rows(tensors: &[NamedTensor<f32>]) -> RecordBatch {
    let mut shapes = ListBuilder::new(Int64Builder::new()).with_field(item(DataType::Int64));
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
    STATE.rows([
        NAME.of(tensors.iter().map(|t| &t.name)),
        SHAPE.array(shapes.finish()),
        DTYPE.of(tensors.iter().map(|t| dtype(&t.values))),
        BYTES.array(LargeBinaryArray::from_iter_values(tensors.iter().map(|t| bytes(&t.values)))),
    ])
}

/// Reads the state from the tables of a checkpoint.
///
/// # Errors
/// When the state is missing; as [`from_rows`].
pub fn of_checkpoint(tables: &BTreeMap<String, RecordBatch>) -> anyhow::Result<Vec<NamedTensor<f32>>> {
    from_rows(tables.get(STATE.name).with_context(|| format!("the checkpoint has no table `{}`", STATE.name))?)
}

/// The tensors of a table of rows.
///
/// # Errors
/// When the table is of another kind, or the bytes of a tensor do not fit its shape.
pub fn from_rows(batch: &RecordBatch) -> anyhow::Result<Vec<NamedTensor<f32>>> {
    // Every table of tensors has the same columns.
    let (names, dtypes) = (STATE.texts(batch, NAME)?, STATE.texts(batch, DTYPE)?);
    let shapes = STATE.values(batch, SHAPE)?.as_list::<i32>();
    let bytes = STATE.values(batch, BYTES)?.as_binary::<i64>();
    let mut tensors = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let (name, bytes) = (names.value(row), bytes.value(row));
        let shape = shapes.value(row);
        let shape = shape.as_primitive::<Int64Type>().values();
        let shape: Option<Vec<usize>> = shape.iter().map(|n| usize::try_from(*n).ok()).collect();
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

/// Encodes tensors as bytes, for other ranks.
///
/// # Errors
/// When there are too many.
pub fn to_bytes(tensors: &[NamedTensor<f32>]) -> anyhow::Result<Vec<u8>> {
    let rows = to_rows(tensors);
    let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema())?;
    writer.write(&rows)?;
    Ok(writer.into_inner()?)
}

/// Decodes the bytes of [`to_bytes`].
///
/// # Errors
/// When the bytes are not from [`to_bytes`].
pub fn from_bytes(bytes: &[u8]) -> anyhow::Result<Vec<NamedTensor<f32>>> {
    let mut rows = StreamReader::try_new(bytes, None)?;
    from_rows(&rows.next().context("no tensors")??)
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
        assert_eq!(from_bytes(&to_bytes(&tensors).unwrap()).unwrap(), tensors);
    }
}
