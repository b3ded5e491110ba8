//! Stores the weights of the encoder as table rows (see [`super::tensors`]): float tensors with torch's names, shapes and
//! order.

use anyhow::bail;
use arrow::array::RecordBatch;

use super::tensors;
use crate::ops::named::{NamedTensor, Values};

/// Name, shape and values of a tensor, in torch's conventions.
pub type Tensor = (String, Vec<usize>, Vec<f32>);

/// Builds a table with one row per tensor, in order.
///
/// # Panics
/// When a shape does not fit its values.
pub fn weights_batch(entries: &[Tensor]) -> RecordBatch {
    let named: Vec<_> =
        entries.iter().map(|(name, shape, values)| NamedTensor::real(name, shape, values.clone())).collect();
    tensors::to_rows(&named)
}

/// The tensors in `batches`, in the order of their rows.
///
/// # Errors
/// When a batch cannot be read or is of another kind, or a tensor holds integers, or bytes that do not fit its shape.
pub fn read_weights(batches: impl IntoIterator<Item = anyhow::Result<RecordBatch>>) -> anyhow::Result<Vec<Tensor>> {
    let mut weights = Vec::new();
    for batch in batches {
        for NamedTensor { name, shape, values } in tensors::from_rows(&batch?)? {
            match values {
                Values::Real(values) => weights.push((name, shape, values)),
                Values::Integer(_) => bail!("tensor {name} has dtype i64, expected f32"),
            }
        }
    }
    Ok(weights)
}

/// Little-endian bytes of `values`.
pub fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tables::WEIGHTS;

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
        assert_eq!(batch.schema(), WEIGHTS.schema());
        let read = read_weights([Ok(batch.slice(0, 1)), Ok(batch.slice(1, 3))]).unwrap();
        assert_eq!(read, tensors);
        assert!(read[0].2[1].is_sign_negative());
    }

    #[test]
    fn bytes_that_do_not_fit_the_shape_are_refused() {
        let batch = weights_batch(&[("fc.weight".to_owned(), vec![2], vec![1.0, 2.0])]);
        let mut columns = batch.columns().to_vec();
        columns[3] = Arc::new(arrow::array::LargeBinaryArray::from_iter_values([[0u8; 7]]));
        let damaged = RecordBatch::try_new(WEIGHTS.schema(), columns).unwrap();
        let error = read_weights([Ok(damaged)]).unwrap_err().to_string();
        assert_eq!(error, "tensor fc.weight: 7 bytes do not fit shape [2]");
    }
}
