//! The content hash of a table. It covers schema and values, and does not depend on batches, row groups or Parquet bytes.
//!
//! Every field, nested ones included, has separate byte streams for validity (nullable fields only), for lengths (strings,
//! binaries and lists) and for values, each hashed on its own. Nulls count as zeros, empty strings or empty lists. The streams
//! are the same however the rows are split into batches.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    buffer::{NullBuffer, OffsetBuffer},
    datatypes::{DataType, Field, Schema},
};
use sha2::{Digest, Sha256};

/// Hashes a table batch by batch.
pub struct TableHasher {
    schema: String,
    names: Vec<String>,
    columns: Vec<Column>,
    rows: u64,
}

impl TableHasher {
    /// A hasher for tables of this schema. Errors when a column has a type that artifacts cannot hold, e.g. a dictionary.
    pub fn new(schema: &Schema) -> anyhow::Result<Self> {
        let columns = schema.fields().iter().map(|field| Column::new(field)).collect::<anyhow::Result<_>>()?;
        let names = schema.fields().iter().map(|field| field.name().clone()).collect();
        let schema = schema.fields().iter().map(|field| describe(field)).collect::<Vec<_>>().join(",");
        Ok(TableHasher { schema, names, columns, rows: 0 })
    }

    /// Adds the rows of a batch that has the schema.
    pub fn update(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows() as u64;
        for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
            column.update(array, None);
        }
    }

    /// Number of rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The hash of each column in hexadecimal, by the column's name. It covers the values and the number of rows.
    pub fn columns(&self) -> BTreeMap<String, String> {
        let hash = |column: &Column| {
            let mut hasher = Sha256::new();
            hasher.update(self.rows.to_le_bytes());
            column.clone().finish(&mut hasher);
            super::hash::hex(&hasher.finalize())
        };
        self.names.iter().cloned().zip(self.columns.iter().map(hash)).collect()
    }

    /// The hash in hexadecimal.
    pub fn finish(self) -> String {
        let mut hasher = Sha256::new();
        hasher.update((self.schema.len() as u64).to_le_bytes());
        hasher.update(self.schema);
        hasher.update(self.rows.to_le_bytes());
        self.columns.into_iter().for_each(|column| column.finish(&mut hasher));
        super::hash::hex(&hasher.finalize())
    }
}

/// The hash of a single batch.
pub fn of_batch(batch: &RecordBatch) -> anyhow::Result<String> {
    let mut hasher = TableHasher::new(&batch.schema())?;
    hasher.update(batch);
    Ok(hasher.finish())
}

/// Describes a field as text, without its metadata and without the names that Parquet readers give to list items.
fn describe(field: &Field) -> String {
    let null = if field.is_nullable() { "?" } else { "" };
    let kind = match field.data_type() {
        DataType::List(item) => format!("list<{}>", describe_item(item)),
        DataType::LargeList(item) => format!("large_list<{}>", describe_item(item)),
        DataType::FixedSizeList(item, size) => format!("fixed_size_list<{}; {size}>", describe_item(item)),
        DataType::Struct(fields) => {
            format!("struct<{}>", fields.iter().map(|field| describe(field)).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    };
    format!("{:?}:{kind}{null}", field.name())
}

fn describe_item(field: &Field) -> String {
    describe(&Field::new("item", field.data_type().clone(), field.is_nullable()))
}

#[derive(Clone)]
struct Column {
    validity: Option<Sha256>,
    values: Values,
}

#[derive(Clone)]
enum Values {
    /// Values of one width in bytes.
    Fixed {
        width: usize,
        bytes: Sha256,
    },
    Boolean(Sha256),
    /// Strings and binaries: lengths and bytes.
    Variable {
        lengths: Sha256,
        bytes: Sha256,
    },
    List {
        lengths: Sha256,
        items: Box<Column>,
    },
    FixedList {
        size: usize,
        items: Box<Column>,
    },
    Struct(Vec<Column>),
}

impl Column {
    fn new(field: &Field) -> anyhow::Result<Column> {
        let variable = || Values::Variable { lengths: Sha256::new(), bytes: Sha256::new() };
        let values = match field.data_type() {
            DataType::Boolean => Values::Boolean(Sha256::new()),
            DataType::FixedSizeBinary(width) => Values::Fixed { width: *width as usize, bytes: Sha256::new() },
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => variable(),
            DataType::List(item) | DataType::LargeList(item) => {
                Values::List { lengths: Sha256::new(), items: Box::new(Column::new(item)?) }
            }
            DataType::FixedSizeList(item, size) => {
                Values::FixedList { size: *size as usize, items: Box::new(Column::new(item)?) }
            }
            DataType::Struct(fields) => {
                Values::Struct(fields.iter().map(|field| Column::new(field)).collect::<anyhow::Result<_>>()?)
            }
            other => match other.primitive_width() {
                Some(width) => Values::Fixed { width, bytes: Sha256::new() },
                None => anyhow::bail!("column {:?}: artifacts cannot hold values of type {other}", field.name()),
            },
        };
        Ok(Column { validity: field.is_nullable().then(Sha256::new), values })
    }

    /// Adds the values of an array. `hidden` holds the nulls of the structs or lists around it, which hide values of the array.
    fn update(&mut self, array: &ArrayRef, hidden: Option<&NullBuffer>) {
        let nulls = NullBuffer::union(array.nulls(), hidden).filter(|nulls| nulls.null_count() > 0);
        let valid = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
        let rows = array.len();
        if let Some(hasher) = &mut self.validity {
            hasher.update((0..rows).map(|row| u8::from(valid(row))).collect::<Vec<_>>());
        }
        match &mut self.values {
            Values::Boolean(hasher) => {
                let array = array.as_boolean();
                hasher.update((0..rows).map(|row| u8::from(valid(row) && array.value(row))).collect::<Vec<_>>());
            }
            Values::Fixed { width, bytes } => {
                let data = array.to_data();
                // FixedSizeBinary and primitive arrays have the same layout: one buffer of values, and the data's offset into it.
                let start = data.offset() * *width;
                let values = &data.buffers()[0].as_slice()[start..start + rows * *width];
                if nulls.is_none() {
                    bytes.update(values);
                } else {
                    let zeros = vec![0; *width];
                    for row in 0..rows {
                        bytes.update(if valid(row) { &values[row * *width..][..*width] } else { &zeros });
                    }
                }
            }
            Values::Variable { lengths, bytes } => {
                let (offsets, data): (Vec<usize>, _) = match array.data_type() {
                    DataType::Utf8 => (wide(array.as_string::<i32>().offsets()), array.as_string::<i32>().values()),
                    DataType::LargeUtf8 => {
                        (wide(array.as_string::<i64>().offsets()), array.as_string::<i64>().values())
                    }
                    DataType::Binary => (wide(array.as_binary::<i32>().offsets()), array.as_binary::<i32>().values()),
                    _ => (wide(array.as_binary::<i64>().offsets()), array.as_binary::<i64>().values()),
                };
                let length = |row: usize| if valid(row) { (offsets[row + 1] - offsets[row]) as u64 } else { 0 };
                lengths.update((0..rows).flat_map(|row| length(row).to_le_bytes()).collect::<Vec<_>>());
                if nulls.is_none() {
                    bytes.update(&data[offsets[0]..offsets[rows]]);
                } else {
                    for row in (0..rows).filter(|&row| valid(row)) {
                        bytes.update(&data[offsets[row]..offsets[row + 1]]);
                    }
                }
            }
            Values::List { lengths, items } => {
                let (offsets, child): (Vec<usize>, _) = match array.data_type() {
                    DataType::List(_) => (wide(array.as_list::<i32>().offsets()), array.as_list::<i32>().values()),
                    _ => (wide(array.as_list::<i64>().offsets()), array.as_list::<i64>().values()),
                };
                let length = |row: usize| if valid(row) { (offsets[row + 1] - offsets[row]) as u64 } else { 0 };
                lengths.update((0..rows).flat_map(|row| length(row).to_le_bytes()).collect::<Vec<_>>());
                if nulls.is_none() {
                    items.update(&child.slice(offsets[0], offsets[rows] - offsets[0]), None);
                } else {
                    for row in (0..rows).filter(|&row| valid(row)) {
                        items.update(&child.slice(offsets[row], offsets[row + 1] - offsets[row]), None);
                    }
                }
            }
            Values::FixedList { size, items } => {
                let child = array.as_fixed_size_list().values();
                items.update(child, nulls.as_ref().map(|nulls| nulls.expand(*size)).as_ref());
            }
            Values::Struct(columns) => {
                for (column, child) in columns.iter_mut().zip(array.as_struct().columns()) {
                    column.update(child, nulls.as_ref());
                }
            }
        }
    }

    fn finish(self, into: &mut Sha256) {
        if let Some(hasher) = self.validity {
            into.update(hasher.finalize());
        }
        match self.values {
            Values::Boolean(bytes) | Values::Fixed { bytes, .. } => into.update(bytes.finalize()),
            Values::Variable { lengths, bytes } => {
                into.update(lengths.finalize());
                into.update(bytes.finalize());
            }
            Values::List { lengths, items } => {
                into.update(lengths.finalize());
                items.finish(into);
            }
            Values::FixedList { items, .. } => items.finish(into),
            Values::Struct(columns) => columns.into_iter().for_each(|column| column.finish(into)),
        }
    }
}

fn wide<O: arrow::array::OffsetSizeTrait>(offsets: &OffsetBuffer<O>) -> Vec<usize> {
    offsets.iter().map(|offset| offset.as_usize()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{
            BinaryArray, BooleanArray, FixedSizeListArray, Float32Array, Int64Array, LargeBinaryArray, ListArray,
            StringArray, StructArray,
        },
        datatypes::{Float32Type, Int64Type},
    };

    use super::*;

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
    }

    fn rich() -> RecordBatch {
        let lists = vec![Some(vec![Some(1), None]), None, Some(vec![]), Some(vec![Some(7), Some(8), Some(9)]), None];
        let vectors: Vec<_> = (0..5).map(|i| (i != 3).then(|| vec![Some(i as f32), Some(-1.5)])).collect();
        let inner: ArrayRef = Arc::new(BinaryArray::from(vec![Some(&b"ab"[..]), None, Some(b""), Some(b"c"), None]));
        batch(vec![
            ("int", Arc::new(Int64Array::from(vec![Some(3), None, Some(5), Some(-1), Some(0)]))),
            ("text", Arc::new(StringArray::from(vec![Some("x"), Some(""), None, Some("long text"), Some("é")]))),
            ("flag", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true), Some(true)]))),
            ("big", Arc::new(LargeBinaryArray::from(vec![Some(&b"1"[..]), None, Some(b"22"), Some(b"333"), None]))),
            ("list", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))),
            ("vector", Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(vectors, 2))),
            ("image", Arc::new(StructArray::try_from(vec![("bytes", inner)]).unwrap())),
        ])
    }

    #[test]
    fn the_cut_into_batches_does_not_matter() {
        let whole = rich();
        let expected = of_batch(&whole).unwrap();
        for cut in 0..=5 {
            let mut hasher = TableHasher::new(&whole.schema()).unwrap();
            hasher.update(&whole.slice(0, cut));
            hasher.update(&whole.slice(cut, 5 - cut));
            assert_eq!(hasher.rows(), 5);
            assert_eq!(hasher.finish(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn every_column_and_the_row_order_matter() {
        let whole = rich();
        let expected = of_batch(&whole).unwrap();
        let backwards: arrow::array::UInt32Array = vec![4, 3, 2, 1, 0].into();
        assert_ne!(of_batch(&arrow::compute::take_record_batch(&whole, &backwards).unwrap()).unwrap(), expected);
        for column in 0..whole.num_columns() {
            let mut columns = whole.columns().to_vec();
            columns[column] = arrow::compute::take(&columns[column], &backwards, None).unwrap();
            let changed = RecordBatch::try_new(whole.schema(), columns).unwrap();
            assert_ne!(of_batch(&changed).unwrap(), expected, "column {column}");
        }
    }

    #[test]
    fn what_lies_under_a_null_does_not_matter_but_the_null_does() {
        let values = |under: f32, null: bool| {
            let nulls = null.then(|| NullBuffer::from(vec![true, false, true]));
            batch(vec![("x", Arc::new(Float32Array::new(vec![1.0, under, 3.0].into(), nulls)) as ArrayRef)])
        };
        assert_eq!(of_batch(&values(2.0, true)).unwrap(), of_batch(&values(9.0, true)).unwrap());
        assert_ne!(of_batch(&values(0.0, true)).unwrap(), of_batch(&values(0.0, false)).unwrap());
    }

    #[test]
    fn strings_cannot_flow_into_their_neighbours() {
        let of =
            |texts: Vec<&str>| of_batch(&batch(vec![("t", Arc::new(StringArray::from(texts)) as ArrayRef)])).unwrap();
        assert_ne!(of(vec!["ab", "c"]), of(vec!["a", "bc"]));
    }

    #[test]
    fn names_and_types_matter_and_dictionaries_are_refused() {
        let ints = |name| batch(vec![(name, Arc::new(Int64Array::from(vec![0])) as ArrayRef)]);
        let floats = batch(vec![("a", Arc::new(arrow::array::Float64Array::from(vec![0.0])) as ArrayRef)]);
        assert_ne!(of_batch(&ints("a")).unwrap(), of_batch(&ints("b")).unwrap());
        assert_ne!(of_batch(&ints("a")).unwrap(), of_batch(&floats).unwrap());
        let kind = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let Err(error) = TableHasher::new(&Schema::new(vec![Field::new("d", kind, false)])) else { panic!() };
        assert!(error.to_string().starts_with("column \"d\": artifacts cannot hold"), "{error}");
    }
}
