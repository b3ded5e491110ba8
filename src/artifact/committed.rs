//! A committed artifact and its tables.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::array::RecordBatch;

use super::{Components, Key, Manifest, table};

/// A committed artifact.
#[derive(Clone, Debug)]
pub struct Artifact {
    dir: PathBuf,
    manifest: Arc<Manifest>,
}

impl Artifact {
    pub(super) fn new(dir: PathBuf, manifest: Manifest) -> Self {
        Artifact { dir, manifest: Arc::new(manifest) }
    }

    /// Hash of the logical content of all [`super::Kind::Content`] tables, in hexadecimal.
    pub fn content(&self) -> &str {
        &self.manifest.content
    }

    /// Stage key.
    pub fn key(&self) -> &str {
        self.manifest.key.as_str()
    }

    /// Stage key, as such.
    pub fn stage_key(&self) -> &Key {
        &self.manifest.key
    }

    /// Stage that made it.
    pub fn stage(&self) -> &str {
        &self.manifest.stage
    }

    /// What the key is the hash of.
    pub fn components(&self) -> &Components {
        &self.manifest.components
    }

    /// Everything known about it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Length of its tables in bytes.
    pub fn size(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.size).sum()
    }

    /// Names of the tables, sorted.
    pub fn tables(&self) -> Vec<String> {
        self.manifest.files.iter().map(|file| file.name.clone()).collect()
    }

    /// Whether there is a table of this name.
    pub fn has_table(&self, name: &str) -> bool {
        self.manifest.files.iter().any(|file| file.name == name)
    }

    /// File of a table. Errors when the artifact has no such table.
    pub fn table_path(&self, name: &str) -> anyhow::Result<PathBuf> {
        let file = self.manifest.files.iter().find(|file| file.name == name);
        let file = file.ok_or_else(|| {
            anyhow::anyhow!("{} has no table {name:?}; it has {}", self.dir.display(), self.tables().join(", "))
        })?;
        Ok(self.dir.join(file.file()))
    }

    /// Files of the tables whose name starts with `prefix`, in the order of their names.
    pub fn tables_with_prefix(&self, prefix: &str) -> Vec<PathBuf> {
        let files = self.manifest.files.iter().filter(|file| file.name.starts_with(prefix));
        files.map(|file| self.dir.join(file.file())).collect()
    }

    /// The rows of a table, batch by batch.
    pub fn read(&self, name: &str) -> anyhow::Result<Box<dyn Iterator<Item = anyhow::Result<RecordBatch>>>> {
        table::read(&self.table_path(name)?)
    }
}
