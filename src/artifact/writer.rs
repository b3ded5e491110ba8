//! An artifact in the making: a hidden staging folder that becomes the artifact in one rename.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use arrow::{array::RecordBatch, datatypes::SchemaRef};
use parquet::file::properties::WriterProperties;

use super::{
    Components, Environment, FileEntry, Key, Kind, Manifest, atomic, hash, manifest,
    table::{self, TableFile},
};
use crate::tables::Table;

/// An artifact in the making; dropped before its commit it leaves nothing behind.
pub struct ArtifactWriter {
    stage: String,
    components: Components,
    staging: PathBuf,
    files: Vec<FileEntry>,
    begun: Instant,
    committed: bool,
}

impl ArtifactWriter {
    /// Starts in an empty staging folder; the caller holds the stage's lock.
    pub(super) fn new(stage: &str, components: Components, staging: PathBuf) -> anyhow::Result<Self> {
        // Whoever left it there is dead: the lock is ours.
        atomic::remove_dir(&staging)?;
        atomic::create_dir(&staging)?;
        let (stage, begun) = (stage.to_owned(), Instant::now());
        Ok(ArtifactWriter { stage, components, staging, files: Vec::new(), begun, committed: false })
    }

    /// A new table, compressed.
    pub fn table(&mut self, name: &str, schema: SchemaRef, kind: Kind) -> anyhow::Result<TableWriter<'_>> {
        let properties = table::compressed(&schema);
        self.table_with(name, schema, kind, properties)
    }

    /// Writes a whole table.
    pub fn whole(&mut self, table: &Table, kind: Kind, rows: &RecordBatch) -> anyhow::Result<()> {
        let mut writer = self.table(table.name, rows.schema(), kind)?;
        writer.write(rows)?;
        writer.finish()
    }

    /// A new table with the given Parquet settings. Names are made of letters, digits, `-` and `_`.
    pub fn table_with(
        &mut self,
        name: &str,
        schema: SchemaRef,
        kind: Kind,
        properties: WriterProperties,
    ) -> anyhow::Result<TableWriter<'_>> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        anyhow::ensure!(!name.is_empty() && name.bytes().all(plain), "table name {name:?}: not a plain name");
        anyhow::ensure!(self.files.iter().all(|file| file.name != name), "table {name:?} is written twice");
        let path = self.staging.join(format!("{name}.parquet"));
        let file = TableFile::create(path.clone(), schema, properties)?;
        Ok(TableWriter { writer: self, file: Some(file), path, name: name.to_owned(), kind })
    }

    /// What is known of a table that is finished.
    pub fn entry(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Makes a finished table a file of `dir` too, which outlives an artifact that is never committed. It takes no room.
    ///
    /// # Errors
    /// When there is no such table, or the file system has no hard links.
    pub fn keep(&self, name: &str, dir: &Path) -> anyhow::Result<()> {
        let entry = self.entry(name).with_context(|| format!("table {name:?} is not finished"))?;
        atomic::create_dir(dir)?;
        let (from, to) = (self.staging.join(entry.file()), dir.join(entry.file()));
        let _ = fs::remove_file(&to);
        fs::hard_link(&from, &to).with_context(|| format!("linking {} to {}", from.display(), to.display()))
    }

    /// Takes a table that an earlier attempt has kept in `dir`, if it is still what it was.
    ///
    /// # Errors
    /// When it is not, or cannot be read.
    pub fn adopt(&mut self, entry: FileEntry, dir: &Path) -> anyhow::Result<()> {
        anyhow::ensure!(self.entry(&entry.name).is_none(), "table {:?} is written twice", entry.name);
        let (from, to) = (dir.join(entry.file()), self.staging.join(entry.file()));
        let sha256 = hash::file(&from, |_| ()).with_context(|| format!("reading {}", from.display()))?;
        anyhow::ensure!(sha256 == entry.sha256, "{}: does not match its hash", from.display());
        fs::hard_link(&from, &to).with_context(|| format!("linking {} to {}", from.display(), to.display()))?;
        self.files.push(entry);
        Ok(())
    }

    /// Stage and key.
    pub(super) fn identity(&self) -> (String, Key) {
        (self.stage.clone(), self.components.key())
    }

    /// Completes the artifact as `target`, which must not exist. After the rename it exists for good, before it not at all.
    pub(super) fn commit(mut self, target: PathBuf) -> anyhow::Result<Manifest> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let milliseconds = self.begun.elapsed().as_millis() as u64;
        let (components, files) = (std::mem::take(&mut self.components), std::mem::take(&mut self.files));
        let here = Some(Environment::here());
        let manifest = Manifest::new(&self.stage, components, files, created, milliseconds, here);
        atomic::write(&self.staging.join(manifest::FILE), manifest.text().as_bytes())?;
        atomic::rename(&self.staging, &target)
            .with_context(|| format!("committing the artifact of stage {}", self.stage))?;
        self.committed = true;
        Ok(manifest)
    }
}

impl Drop for ArtifactWriter {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: the next holder of the lock removes what stays.
            let _ = fs::remove_dir_all(&self.staging);
        }
    }
}

/// A table in the making; dropped without [`TableWriter::finish`] it does not become part of the artifact.
pub struct TableWriter<'a> {
    writer: &'a mut ArtifactWriter,
    file: Option<TableFile>,
    path: PathBuf,
    name: String,
    kind: Kind,
}

impl TableWriter<'_> {
    /// Appends rows; they have the table's schema.
    pub fn write(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.file.as_mut().expect("open until finish").write(batch)
    }

    /// Bytes written so far, about.
    pub fn bytes_written(&self) -> u64 {
        self.file.as_ref().map_or(0, TableFile::bytes_written)
    }

    /// Completes the table.
    pub fn finish(mut self) -> anyhow::Result<()> {
        let written = self.file.take().expect("open until finish").finish(|_| Vec::new());
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                let _ = fs::remove_file(&self.path);
                return Err(error);
            }
        };
        let name = std::mem::take(&mut self.name);
        let table::Written { rows, content, columns, size, sha256 } = written;
        self.writer.files.push(FileEntry { name, kind: self.kind, rows, content, columns, size, sha256 });
        Ok(())
    }
}

impl Drop for TableWriter<'_> {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}
