//! Writes and reads the Parquet files of the store. Writing also computes the hash of the bytes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use arrow::{
    array::RecordBatch,
    compute::concat_batches,
    datatypes::{DataType, Schema, SchemaRef},
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::Compression,
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder},
    },
};
use sha2::{Digest, Sha256};

use super::{content::TableHasher, hash::hex};

/// Encoded bytes at which a row group ends. A writer holds about this much in memory.
const ROW_GROUP: usize = 64 << 20;

/// Size and hashes of a file that is written and synced.
pub struct Written {
    pub rows: u64,
    /// Hash of schema and values.
    pub content: String,
    /// Hash of each column's values.
    pub columns: BTreeMap<String, String>,
    pub size: u64,
    /// Hash of the bytes.
    pub sha256: String,
}

/// Writes one Parquet file.
pub struct TableFile {
    path: PathBuf,
    writer: ArrowWriter<HashingFile>,
    hasher: TableHasher,
}

impl TableFile {
    /// Creates the file.
    pub fn create(path: PathBuf, schema: SchemaRef, properties: WriterProperties) -> anyhow::Result<Self> {
        let named = || format!("writing {}", path.display());
        let hasher = TableHasher::new(&schema).with_context(named)?;
        let file = File::create(&path).with_context(named)?;
        let file = HashingFile { file: BufWriter::with_capacity(1 << 18, file), hasher: Sha256::new(), size: 0 };
        let writer = ArrowWriter::try_new(file, schema, Some(properties)).with_context(named)?;
        Ok(TableFile { path, writer, hasher })
    }

    /// Appends rows.
    pub fn write(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let named = || format!("writing {}", self.path.display());
        self.writer.write(batch).with_context(named)?;
        self.hasher.update(batch);
        if self.writer.in_progress_size() >= ROW_GROUP {
            self.writer.flush().with_context(named)?;
        }
        Ok(())
    }

    /// Approximate number of bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    /// Completes the file and makes it durable. `key_values` is called with the content hash, and its pairs go into the footer.
    pub fn finish(mut self, key_values: impl FnOnce(&str) -> Vec<(String, String)>) -> anyhow::Result<Written> {
        let named = || format!("writing {}", self.path.display());
        let rows = self.hasher.rows();
        let columns = self.hasher.columns();
        let content = self.hasher.finish();
        for (key, value) in key_values(&content) {
            self.writer.append_key_value_metadata(KeyValue::new(key, value));
        }
        let HashingFile { file, hasher, size } = self.writer.into_inner().with_context(named)?;
        let file = file.into_inner().map_err(|error| error.into_error()).with_context(named)?;
        file.sync_all().with_context(named)?;
        Ok(Written { rows, content, columns, size, sha256: hex(&hasher.finalize()) })
    }
}

/// A file that hashes all bytes written to it.
struct HashingFile {
    file: BufWriter<File>,
    hasher: Sha256,
    size: u64,
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::FixedSizeBinary(_))
}

fn builder(schema: &Schema) -> WriterPropertiesBuilder {
    let mut builder = WriterProperties::builder();
    for field in schema.fields().iter().filter(|field| is_binary(field.data_type())) {
        // Binary columns hold weights and similar data, for which statistics and dictionaries are of no use.
        builder = builder
            .set_column_dictionary_enabled(field.name().as_str().into(), false)
            .set_column_statistics_enabled(field.name().as_str().into(), EnabledStatistics::None);
    }
    if schema.fields().iter().any(|field| is_binary(field.data_type())) {
        // Parquet checks the size of a page only between write batches, and a page cannot exceed 2 GiB: one value per batch.
        builder = builder.set_write_batch_size(1);
    }
    builder
}

/// Settings for tables of an artifact.
pub fn compressed(schema: &Schema) -> WriterProperties {
    builder(schema).set_compression(Compression::SNAPPY).build()
}

/// Settings for checkpoints: weights do not compress, and saving should be quick.
pub fn uncompressed(schema: &Schema) -> WriterProperties {
    builder(schema).set_compression(Compression::UNCOMPRESSED).build()
}

/// The bytes of a Parquet file of these rows.
///
/// # Errors
/// In practice never; the signatures of the writer's functions have errors.
pub fn in_memory(rows: &RecordBatch) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), None)?;
    writer.write(rows)?;
    writer.close()?;
    Ok(bytes)
}

/// Schema of a Parquet file, as [`read`] returns its rows.
pub fn schema(path: &Path) -> anyhow::Result<SchemaRef> {
    let named = || format!("reading {}", path.display());
    let file = File::open(path).with_context(named)?;
    Ok(ParquetRecordBatchReaderBuilder::try_new(file).with_context(named)?.schema().clone())
}

/// Rows of a table, batch by batch.
pub type Batches = Box<dyn Iterator<Item = anyhow::Result<RecordBatch>>>;

/// Reads a Parquet file in batches.
pub fn read(path: &Path) -> anyhow::Result<Batches> {
    let owned = path.to_owned();
    let named = move || format!("reading {}", owned.display());
    let file = File::open(path).with_context(&named)?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).with_context(&named)?;
    let reader = reader.with_batch_size(1024).build().with_context(&named)?;
    Ok(Box::new(reader.map(move |batch| batch.with_context(&named))))
}

/// A whole Parquet file as one batch, and the text in its footer under `key`.
pub fn read_whole(path: &Path, key: &str) -> anyhow::Result<(RecordBatch, Option<String>)> {
    let named = || format!("reading {}", path.display());
    let file = File::open(path).with_context(named)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).with_context(named)?;
    let schema = builder.schema().clone();
    let footer = builder.metadata().file_metadata().key_value_metadata();
    let value = footer.and_then(|pairs| pairs.iter().find(|pair| pair.key == key)).and_then(|pair| pair.value.clone());
    let rows = builder.metadata().file_metadata().num_rows().max(1) as usize;
    let batches = builder.with_batch_size(rows).build().with_context(named)?.collect::<Result<Vec<_>, _>>();
    let mut batches = batches.with_context(named)?;
    let batch = match batches.len() {
        1 => batches.remove(0),
        _ => concat_batches(&schema, &batches).with_context(named)?,
    };
    Ok((plain(batch)?, value))
}

/// The batch without the metadata that the writer put on its schema.
fn plain(batch: RecordBatch) -> anyhow::Result<RecordBatch> {
    let schema = Schema::new(batch.schema().fields().clone());
    Ok(RecordBatch::try_new(schema.into(), batch.columns().to_vec())?)
}
