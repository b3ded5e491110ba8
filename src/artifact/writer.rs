//! Writes an artifact into a hidden staging folder, which becomes the artifact in one rename.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use arrow::{array::RecordBatch, datatypes::SchemaRef};
use parquet::file::properties::WriterProperties;

use super::{
    Components, Environment, FileEntry, Key, Kind, Manifest, atomic, beat, hash, manifest,
    table::{self, TableFile},
};
use crate::tables::Table;

/// A hidden folder that becomes an artifact in one rename. If it is dropped before that, it leaves nothing behind.
pub(super) struct Staging {
    dir: PathBuf,
    /// The heartbeat touches the folder through this handle, so that no other machine takes the folder for a leftover.
    _held: Arc<File>,
    committed: bool,
}

impl Staging {
    /// Creates the folder, which must not exist and which no other process writes to.
    pub(super) fn new(dir: PathBuf) -> anyhow::Result<Self> {
        atomic::create_dir(&dir)?;
        let held = File::open(&dir).with_context(|| format!("opening {}", dir.display()))?;
        let held = Arc::new(held);
        beat::keep(&held);
        Ok(Staging { dir, _held: held, committed: false })
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the manifest after all tables are written. Only the rename that makes the folder an artifact is then missing.
    pub(super) fn complete(self, manifest: Manifest) -> anyhow::Result<Complete> {
        atomic::write(&self.dir.join(manifest::FILE), manifest.text().as_bytes())?;
        Ok(Complete { staging: self, manifest })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: a later sweep removes the rest.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// An artifact that is being written. If it is dropped before its commit, it leaves nothing behind.
pub struct ArtifactWriter {
    stage: String,
    components: Components,
    staging: Staging,
    files: Vec<FileEntry>,
    begun: Instant,
}

impl ArtifactWriter {
    /// Starts an artifact in the folder `staging`, which must not exist and which no other process writes to.
    pub(super) fn new(stage: &str, components: Components, staging: PathBuf) -> anyhow::Result<Self> {
        let (stage, staging, begun) = (stage.to_owned(), Staging::new(staging)?, Instant::now());
        Ok(ArtifactWriter { stage, components, staging, files: Vec::new(), begun })
    }

    /// Starts a new table, compressed.
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

    /// Starts a new table with the given Parquet settings. Names consist of letters, digits, `-` and `_`.
    pub fn table_with(
        &mut self,
        name: &str,
        schema: SchemaRef,
        kind: Kind,
        properties: WriterProperties,
    ) -> anyhow::Result<TableWriter<'_>> {
        anyhow::ensure!(manifest::is_plain(name), "table name {name:?}: not a plain name");
        anyhow::ensure!(self.files.iter().all(|file| file.name != name), "table {name:?} is written twice");
        let path = self.staging.dir().join(format!("{name}.parquet"));
        let file = TableFile::create(path.clone(), schema, properties)?;
        Ok(TableWriter { writer: self, file: Some(file), path, name: name.to_owned(), kind })
    }

    /// The manifest's entry of a finished table; None when no table of this name is finished.
    pub fn entry(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Links a finished table into `dir`, where it survives even if the artifact is never committed. The link takes no space.
    ///
    /// # Errors
    /// When there is no such table, or the file system has no hard links.
    pub fn keep(&self, name: &str, dir: &Path) -> anyhow::Result<()> {
        let entry = self.entry(name).with_context(|| format!("table {name:?} is not finished"))?;
        atomic::create_dir(dir)?;
        let (from, to) = (self.staging.dir().join(entry.file()), dir.join(entry.file()));
        let link = atomic::sibling(&to);
        fs::hard_link(&from, &link).with_context(|| format!("linking {} to {}", from.display(), link.display()))?;
        let renamed = atomic::rename(&link, &to);
        // If `to` already links to the same file, the rename does nothing and `link` stays.
        let _ = fs::remove_file(&link);
        renamed
    }

    /// Adds a table that an earlier attempt has kept in `dir`, if it still matches its hash.
    ///
    /// # Errors
    /// When the table does not match its hash, is already written, or cannot be read or linked.
    pub fn adopt(&mut self, entry: FileEntry, dir: &Path) -> anyhow::Result<()> {
        anyhow::ensure!(self.entry(&entry.name).is_none(), "table {:?} is written twice", entry.name);
        let (from, to) = (dir.join(entry.file()), self.staging.dir().join(entry.file()));
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

    /// Completes the artifact except for the rename that commits it.
    pub(super) fn complete(self) -> anyhow::Result<Complete> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let milliseconds = self.begun.elapsed().as_millis() as u64;
        let here = Some(Environment::here());
        let manifest = Manifest::new(&self.stage, self.components, self.files, created, milliseconds, here);
        self.staging.complete(manifest)
    }
}

/// An artifact that lacks only its final name. If it is dropped before the rename, it leaves nothing behind.
pub(super) struct Complete {
    staging: Staging,
    manifest: Manifest,
}

impl Complete {
    /// Renames the folder to `target`, which commits the artifact in one step. Returns false when something already exists there.
    pub(super) fn rename(&mut self, target: &Path) -> anyhow::Result<bool> {
        // This is the plain rename, because network file systems support no other. It never replaces a folder that is not empty.
        match fs::rename(&self.staging.dir, target) {
            Ok(()) => self.staging.committed = true,
            Err(error) if IN_THE_WAY.contains(&error.kind()) => return Ok(false),
            Err(error) => {
                let (stage, from) = (&self.manifest.stage, self.staging.dir.display());
                let named =
                    || format!("committing the artifact of stage {stage}: renaming {from} to {}", target.display());
                return Err(error).with_context(named);
            }
        }
        atomic::sync_dir(target.parent().unwrap_or(Path::new(".")))?;
        Ok(true)
    }

    /// The manifest of the artifact.
    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// Errors of a rename that mean that its target exists.
const IN_THE_WAY: [ErrorKind; 3] = [ErrorKind::AlreadyExists, ErrorKind::DirectoryNotEmpty, ErrorKind::NotADirectory];

/// A table that is being written. If it is dropped without [`TableWriter::finish`], it does not become part of the artifact.
pub struct TableWriter<'a> {
    writer: &'a mut ArtifactWriter,
    file: Option<TableFile>,
    path: PathBuf,
    name: String,
    kind: Kind,
}

impl TableWriter<'_> {
    /// Appends rows, which must have the table's schema.
    pub fn write(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.file.as_mut().expect("open until finish").write(batch)
    }

    /// Approximate number of bytes written so far.
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
