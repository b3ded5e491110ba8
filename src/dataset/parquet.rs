//! Parquet in the Hugging Face image schema: `image: struct<bytes, path>` or plain bytes and, perhaps, a label.

use std::{fs::File, path::Path, path::PathBuf, sync::Arc};

use ::parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch},
    compute::cast,
    datatypes::{DataType, Int64Type, Schema},
};

use super::{
    DataError, ParquetConfig, ReadSummary, Sample, Skipped, SplitName,
    decode::{Refusal, verify},
    ingest::{Sink, ingest},
    paths::{expand, resolve, unreadable},
};

/// Rows are decoded in batches of about this many bytes.
const BATCH_BYTES: i64 = 16 << 20;
/// A label above this is a mistake, such as a column of identifiers.
const MOST_CLASSES: i64 = 1_000_000;

/// One row of a file.
struct Row {
    file: Arc<str>,
    number: u64,
    bytes: Option<Vec<u8>>,
    path: Option<String>,
    label: Option<i64>,
}

impl Row {
    fn name(&self) -> String {
        format!("{} row {}", self.file, self.number)
    }
}

/// A file with the columns that matter.
struct Source {
    path: PathBuf,
    builder: ParquetRecordBatchReaderBuilder<File>,
    image: String,
    label: Option<String>,
}

/// The files of a split: a file stands for itself, a folder for its `*.parquet`.
pub(super) fn files(config: &ParquetConfig, split: SplitName, base: &Path) -> Result<Vec<PathBuf>, DataError> {
    let Some(paths) = config.of(split) else { return Ok(vec![]) };
    expand(resolve(paths, split, base)?, split, "*.parquet", |name| name.ends_with(".parquet"))
}

pub(super) fn count(config: &ParquetConfig, split: SplitName, base: &Path) -> Result<u64, DataError> {
    let mut rows = 0;
    for path in files(config, split, base)? {
        rows += open(path, config)?.builder.metadata().file_metadata().num_rows() as u64;
    }
    Ok(rows)
}

pub(super) fn read(
    config: &ParquetConfig,
    split: SplitName,
    base: &Path,
    sink: &mut Sink,
) -> anyhow::Result<ReadSummary> {
    // All files are opened before the first row is read: a wrong column in the last one is known at once.
    let mut names = None;
    let paths = files(config, split, base)?;
    for path in &paths {
        let source = open(path.clone(), config)?;
        names = names.or_else(|| class_names(source.builder.schema(), source.label.as_deref()?));
    }
    let mut most = -1;
    let bound = names.as_ref().map_or(MOST_CLASSES, |names| names.len() as i64);
    let items = paths.iter().flat_map(|path| rows(path.clone(), config)).map(|row| {
        let row = row?;
        let label = row.label.unwrap_or(-1);
        if label >= bound {
            return Err(DataError::LabelRange { name: row.name(), label, classes: bound as usize });
        }
        most = most.max(label);
        Ok((row.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64), row))
    });
    let work = |mut row: Row| match row.bytes.take() {
        None => Err(Skipped { name: row.name(), kind: "no bytes", reason: "it holds no bytes".into() }),
        Some(bytes) => match verify(&bytes) {
            Ok(()) => Ok(Sample { bytes, path: row.path, label: row.label }),
            Err(Refusal { kind, reason }) => Err(Skipped { name: row.name(), kind, reason }),
        },
    };
    let summary = ingest(split, config.on_error, items, work, sink)?;
    let classes = names.filter(|_| most >= 0).unwrap_or_else(|| (0..=most).map(|label| label.to_string()).collect());
    Ok(ReadSummary { classes, ..summary })
}

/// Opens a file and finds its columns.
fn open(path: PathBuf, config: &ParquetConfig) -> Result<Source, DataError> {
    let file = File::open(&path).map_err(unreadable(&path))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(unreadable(&path))?;
    let schema = builder.schema();
    let has = |name: &&str| schema.field_with_name(name).is_ok();
    let missing = |wanted: &str| DataError::MissingColumn {
        path: path.clone(),
        wanted: wanted.into(),
        available: schema.fields().iter().map(|field| format!("`{}`", field.name())).collect(),
    };
    let image = match &config.image_column {
        Some(name) => Some(name.as_str()).filter(has).ok_or_else(|| missing(&format!("`{name}`")))?,
        None => ["image", "img"]
            .into_iter()
            .find(has)
            .ok_or_else(|| missing("`image` or `img` (`data.image_column` names another)"))?,
    };
    let label = match &config.label_column {
        Some(name) => Some(Some(name.as_str()).filter(has).ok_or_else(|| missing(&format!("`{name}`")))?),
        None => ["label", "labels", "fine_label"].into_iter().find(has),
    };
    let wrong = |column: &str, found: &DataType, expected| {
        let column = column.to_owned();
        Err(DataError::ColumnType { path: path.clone(), column, found: found.to_string(), expected })
    };
    let kind = |name: &str| schema.field_with_name(name).map_or(DataType::Null, |field| field.data_type().clone());
    let bytes = match kind(image) {
        DataType::Struct(fields) => fields.find("bytes").map_or(DataType::Null, |(_, field)| field.data_type().clone()),
        other => other,
    };
    if !matches!(bytes, DataType::Binary | DataType::LargeBinary | DataType::BinaryView) {
        return wrong(image, &kind(image), "struct<bytes: binary, path: string> or binary");
    }
    if let Some(label) = label.filter(|label| !kind(label).is_integer()) {
        return wrong(label, &kind(label), "an integer type");
    }
    let (image, label) = (image.to_owned(), label.map(str::to_owned));
    Ok(Source { path, builder, image, label })
}

/// Class names that `datasets` leaves in the schema's metadata.
fn class_names(schema: &Schema, label: &str) -> Option<Vec<String>> {
    let about: serde_json::Value = serde_json::from_str(schema.metadata().get("huggingface")?).ok()?;
    let names = about.pointer(&format!("/info/features/{label}/names"))?.as_array()?;
    names.iter().map(|name| Some(name.as_str()?.to_owned())).collect()
}

/// The rows of a file, a bounded batch at a time.
fn rows(path: PathBuf, config: &ParquetConfig) -> Box<dyn Iterator<Item = Result<Row, DataError>>> {
    match batches(path, config) {
        Ok(rows) => Box::new(rows),
        Err(error) => Box::new(std::iter::once(Err(error))),
    }
}

fn batches(
    path: PathBuf,
    config: &ParquetConfig,
) -> Result<impl Iterator<Item = Result<Row, DataError>> + use<>, DataError> {
    let Source { path, builder, image, label } = open(path, config)?;
    let metadata = builder.metadata();
    let bytes: i64 = metadata.row_groups().iter().map(|group| group.total_byte_size()).sum();
    let per_row = bytes / metadata.file_metadata().num_rows().max(1) + 1;
    let columns = [Some(image.as_str()), label.as_deref()];
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.into_iter().flatten());
    let size = (BATCH_BYTES / per_row).clamp(1, 1024) as usize;
    let reader = builder.with_projection(mask).with_batch_size(size).build().map_err(unreadable(&path))?;
    let file: Arc<str> = path.display().to_string().into();
    let mut first = 0;
    Ok(reader.flat_map(move |batch| {
        let rows = match batch {
            Ok(batch) => batch_rows(&batch, &image, label.as_deref(), &file, first),
            Err(error) => Err(unreadable(&path)(error)),
        };
        let rows = rows.map_or_else(|error| vec![Err(error)], |rows| rows.into_iter().map(Ok).collect());
        first += rows.len() as u64;
        rows
    }))
}

/// Takes a batch apart.
fn batch_rows(
    batch: &RecordBatch,
    image: &str,
    label: Option<&str>,
    file: &Arc<str>,
    first: u64,
) -> Result<Vec<Row>, DataError> {
    let column = |name: &str| batch.column_by_name(name).cloned();
    let image = column(image).expect("the column was projected");
    let (bytes, paths) = match image.as_struct_opt() {
        Some(fields) => (fields.column_by_name("bytes").cloned(), fields.column_by_name("path").cloned()),
        None => (Some(image.clone()), None),
    };
    let cast_to = |array: ArrayRef, kind| cast(&array, &kind).map_err(unreadable(Path::new(&**file)));
    let bytes = cast_to(bytes.expect("the type was checked"), DataType::BinaryView)?;
    let bytes = bytes.as_binary_view();
    let paths = paths.filter(|paths| paths.data_type().is_string()).map(|paths| cast_to(paths, DataType::Utf8View));
    let paths = paths.transpose()?;
    let labels: Option<Int64Array> = match label.and_then(column) {
        Some(labels) => Some(cast_to(labels, DataType::Int64)?.as_primitive::<Int64Type>().clone()),
        None => None,
    };
    let row = |i: usize| Row {
        file: file.clone(),
        number: first + i as u64,
        bytes: (image.is_valid(i) && bytes.is_valid(i)).then(|| bytes.value(i).to_vec()),
        path: paths.as_ref().map(|p| p.as_string_view()).filter(|p| p.is_valid(i)).map(|p| p.value(i).to_owned()),
        // `datasets` writes -1 where a label is withheld.
        label: labels.as_ref().filter(|l| l.is_valid(i)).map(|l| l.value(i)).filter(|&label| label >= 0),
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

#[cfg(test)]
mod tests;
