//! Reads the rows of a table file one by one.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryViewArray, Int64Array, RecordBatch, StringViewArray},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, Int64Type},
};

use super::{
    Container, DataError, Table,
    columns::{BYTES, Columns, Label, LabelKind, PATH},
    unreadable,
};

/// One row of a file.
pub struct Row {
    pub file: Arc<Path>,
    pub number: u64,
    pub image: Image,
    /// The image's path as the row states it.
    pub path: Option<String>,
    pub label: Option<Value>,
}

/// A label as it stands in the file.
pub enum Value {
    Number(i64),
    Text(String),
}

/// The image of a row, or where it is stored.
pub enum Image {
    Bytes(Vec<u8>),
    /// A file that the row names, and its size.
    File(PathBuf, u64),
    /// The row has no image; the text says why.
    Missing(String),
}

impl Image {
    /// Size of the image in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Image::Bytes(bytes) => bytes.len() as u64,
            Image::File(_, size) => *size,
            Image::Missing(_) => 0,
        }
    }
}

impl Row {
    /// File and number, for people.
    pub fn name(&self) -> String {
        format!("{} row {}", self.file.display(), self.number)
    }
}

/// The rows of a file.
pub struct Rows;

impl Rows {
    /// Reads a file row by row. A path in a row is searched beside the file, then in `base`.
    pub fn of(
        container: Container,
        path: &Path,
        columns: &Columns,
        base: &Path,
    ) -> Result<impl Iterator<Item = Result<Row, DataError>> + use<>, DataError> {
        let names: Vec<String> = match &columns.label {
            Some(label) => vec![columns.image.name.clone(), label.name.clone()],
            None => vec![columns.image.name.clone()],
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let batches = Table::open(container, path.to_owned())?.batches(&names)?;
        let (columns, file): (_, Arc<Path>) = (columns.clone(), path.into());
        let places: Arc<[PathBuf]> = [path.parent().unwrap_or(Path::new("")), base].map(Path::to_owned).into();
        let mut first = 0;
        Ok(batches.flat_map(move |batch| {
            let rows = batch.and_then(|batch| Batch::new(&batch, &columns, &file).map(|rows| (rows, batch.num_rows())));
            match rows {
                Ok((batch, count)) => {
                    let (file, places, start) = (file.clone(), places.clone(), first);
                    first += count as u64;
                    let row = move |i| Ok(batch.row(i, &file, start, &places));
                    Box::new((0..count).map(row)) as Box<dyn Iterator<Item = _>>
                }
                Err(error) => Box::new(std::iter::once(Err(error))),
            }
        }))
    }
}

/// The texts of a label column; rows without a label are left out.
pub fn texts(
    container: Container,
    path: &Path,
    label: &Label,
) -> Result<impl Iterator<Item = Result<String, DataError>> + use<>, DataError> {
    let batches = Table::open(container, path.to_owned())?.batches(&[&label.name])?;
    let (name, file) = (label.name.clone(), path.to_owned());
    Ok(batches.flat_map(move |batch| {
        let values = batch.and_then(|batch| {
            let array = column(&batch, &name, &file)?;
            Ok(cast_to(&array, DataType::Utf8View, &file)?.as_string_view().clone())
        });
        match values {
            Ok(values) => {
                let text =
                    |i| Some(values.value(i)).filter(|text| values.is_valid(i) && !text.is_empty()).map(str::to_owned);
                (0..values.len()).filter_map(text).map(Ok).collect::<Vec<_>>()
            }
            Err(error) => vec![Err(error)],
        }
    }))
}

fn column(batch: &RecordBatch, name: &str, file: &Path) -> Result<ArrayRef, DataError> {
    let gone = || unreadable(file)(format!("its column `{name}` is not in all of its rows"));
    batch.column_by_name(name).cloned().ok_or_else(gone)
}

/// Casts a column to a type. A value that does not fit is an error, and not a missing label.
fn cast_to(array: &ArrayRef, kind: DataType, file: &Path) -> Result<ArrayRef, DataError> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(array, &kind, &options).map_err(unreadable(file))
}

/// The columns of a batch, each cast to one type.
struct Batch {
    image: ArrayRef,
    bytes: Option<BinaryViewArray>,
    paths: Option<StringViewArray>,
    numbers: Option<Int64Array>,
    texts: Option<StringViewArray>,
}

impl Batch {
    fn new(batch: &RecordBatch, columns: &Columns, file: &Path) -> Result<Batch, DataError> {
        let cast = |array: &ArrayRef, kind| cast_to(array, kind, file);
        let image = column(batch, &columns.image.name, file)?;
        let field = |name: &str| match image.as_struct_opt() {
            Some(fields) => fields
                .column_by_name(name)
                .cloned()
                .ok_or_else(|| unreadable(file)(format!("its images have no field `{name}`"))),
            None => Ok(image.clone()),
        };
        let bytes = match columns.image.bytes {
            true => Some(cast(&field(BYTES)?, DataType::BinaryView)?.as_binary_view().clone()),
            false => None,
        };
        let texts = |array: &ArrayRef| Ok::<_, DataError>(cast(array, DataType::Utf8View)?.as_string_view().clone());
        let paths = match columns.image.paths {
            true => Some(texts(&field(PATH)?)?),
            false => None,
        };
        let mut found = Batch { image, bytes, paths, numbers: None, texts: None };
        if let Some(label) = &columns.label {
            let array = column(batch, &label.name, file)?;
            match label.kind {
                LabelKind::Number => {
                    found.numbers = Some(cast(&array, DataType::Int64)?.as_primitive::<Int64Type>().clone());
                }
                LabelKind::Text => found.texts = Some(texts(&array)?),
            }
        }
        Ok(found)
    }

    fn row(&self, i: usize, file: &Arc<Path>, first: u64, places: &[PathBuf]) -> Row {
        let there = self.image.is_valid(i);
        let bytes = self.bytes.as_ref().filter(|b| there && b.is_valid(i)).map(|b| b.value(i).to_vec());
        let path = self.paths.as_ref().filter(|p| there && p.is_valid(i)).map(|p| p.value(i).to_owned());
        let image = match (bytes, path.as_deref().filter(|path| !path.is_empty())) {
            (Some(bytes), _) => Image::Bytes(bytes),
            (None, Some(path)) => named_file(path, places),
            (None, None) => Image::Missing("it holds neither bytes nor the path of an image".into()),
        };
        // `datasets` writes -1 for a withheld label.
        let number = self.numbers.as_ref().filter(|l| l.is_valid(i)).map(|l| l.value(i)).filter(|&label| label >= 0);
        let text = self.texts.as_ref().filter(|l| l.is_valid(i)).map(|l| l.value(i)).filter(|text| !text.is_empty());
        let label = number.map(Value::Number).or(text.map(|text| Value::Text(text.to_owned())));
        Row { file: file.clone(), number: first + i as u64, image, path, label }
    }
}

/// The file that a row names in place of bytes.
fn named_file(path: &str, places: &[PathBuf]) -> Image {
    let candidates = places.iter().map(|place| place.join(path));
    let found =
        candidates.filter_map(|path| Some((fs::metadata(&path).ok().filter(fs::Metadata::is_file)?.len(), path)));
    match found.into_iter().next() {
        Some((size, path)) => Image::File(path, size),
        None => Image::Missing(format!(
            "it holds the path `{path}` in place of bytes, and there is no such file beside the table or in the current folder"
        )),
    }
}
