//! Content-addressed store: tables, manifests, checkpoints, locks.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use parquet::file::properties::WriterProperties;

/// Whether a table's values enter the artifact's content hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Enters the content hash: equal inputs must give equal values.
    Content,
    /// A wall-clock figure; kept and checked, but not part of what the artifact is.
    Measurement,
}

/// A committed artifact.
#[derive(Clone, Debug)]
pub struct Artifact {}

impl Artifact {
    /// Hash of the logical content of all [`Kind::Content`] tables, in hexadecimal.
    pub fn content(&self) -> &str {
        todo!()
    }
    /// Stage key.
    pub fn key(&self) -> &str {
        todo!()
    }
    /// Names of the tables, sorted.
    pub fn tables(&self) -> Vec<String> {
        todo!()
    }
    /// File of a table.
    pub fn table_path(&self, _name: &str) -> anyhow::Result<PathBuf> {
        todo!()
    }
    /// Files of the tables whose name starts with `prefix`, in the order of their names.
    pub fn tables_with_prefix(&self, _prefix: &str) -> Vec<PathBuf> {
        todo!()
    }
    /// The rows of a table, batch by batch.
    pub fn read(&self, _name: &str) -> anyhow::Result<Box<dyn Iterator<Item = anyhow::Result<RecordBatch>>>> {
        todo!()
    }
}

/// An artifact in the making.
pub struct ArtifactWriter {}

impl ArtifactWriter {
    /// A new table, compressed.
    pub fn table(&mut self, _name: &str, _schema: SchemaRef, _kind: Kind) -> anyhow::Result<TableWriter<'_>> {
        todo!()
    }
    /// A new table with the given Parquet settings.
    pub fn table_with(
        &mut self,
        _name: &str,
        _schema: SchemaRef,
        _kind: Kind,
        _properties: WriterProperties,
    ) -> anyhow::Result<TableWriter<'_>> {
        todo!()
    }
}

/// A table in the making; dropped without [`TableWriter::finish`] it does not become part of the artifact.
pub struct TableWriter<'a> {
    _writer: &'a mut ArtifactWriter,
}

impl TableWriter<'_> {
    /// Appends rows.
    pub fn write(&mut self, _batch: &RecordBatch) -> anyhow::Result<()> {
        todo!()
    }
    /// Bytes written so far, about.
    pub fn bytes_written(&self) -> u64 {
        todo!()
    }
    /// Completes the table.
    pub fn finish(self) -> anyhow::Result<()> {
        todo!()
    }
}

/// Checkpoints and metric segments of one unfinished stage, bound to its key.
pub struct Checkpoints {}

impl Checkpoints {
    /// Saves the state after `step` steps; atomic; the two newest are kept.
    pub fn save(&self, _step: u64, _tables: &[(&str, RecordBatch)]) -> anyhow::Result<()> {
        todo!()
    }
    /// The newest state that is whole: its step and its tables.
    pub fn load(&self) -> anyhow::Result<Option<(u64, BTreeMap<String, RecordBatch>)>> {
        todo!()
    }
    /// Appends a segment of metric rows (one int64 column is called `step`) that begins at `first_step`.
    pub fn append_segment(&self, _name: &str, _first_step: u64, _rows: &RecordBatch) -> anyhow::Result<()> {
        todo!()
    }
    /// All rows of the segments called `name` with step < `until`, one per step (the newest attempt's), in the order of steps.
    /// None when there are none.
    pub fn segments(&self, _name: &str, _until: u64) -> anyhow::Result<Option<RecordBatch>> {
        todo!()
    }
    /// Folder that belongs to the stage key.
    pub fn dir(&self) -> &Path {
        todo!()
    }
}
