//! An artifact in the store: its manifest and its tables.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use arrow::array::Array;

use super::{
    Components, Key, Manifest,
    table::{self, Batches},
};
use crate::tables::{Table, column};

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

    /// An artifact without tables or a folder, for tests of this package and others.
    #[doc(hidden)]
    pub fn made_up() -> Artifact {
        Artifact::new(PathBuf::from("nowhere"), Manifest::new("knn", Components::default(), vec![], 0, 0, None))
    }

    /// The same artifact, limited to the tables for whose names `keep` returns true. Other tables cannot be read from it.
    pub fn narrowed(&self, keep: impl Fn(&str) -> bool) -> Artifact {
        let mut manifest = Manifest::clone(&self.manifest);
        manifest.files.retain(|file| keep(&file.name));
        Artifact::new(self.dir.clone(), manifest)
    }

    /// Hash of the logical content of all [`super::Kind::Content`] tables, in hexadecimal.
    pub fn content(&self) -> &str {
        &self.manifest.content
    }

    /// Stage key as text.
    pub fn key(&self) -> &str {
        self.manifest.key.as_str()
    }

    /// Stage key.
    pub fn stage_key(&self) -> &Key {
        &self.manifest.key
    }

    /// Stage that made it.
    pub fn stage(&self) -> &str {
        &self.manifest.stage
    }

    /// The leaves that the key is the hash of.
    pub fn components(&self) -> &Components {
        &self.manifest.components
    }

    /// Everything known about it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its folder in the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Total size of its tables in bytes.
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

    /// Files of the tables that `table` stands for, sorted by name.
    pub fn files_of(&self, table: &Table) -> Vec<PathBuf> {
        let files = self.manifest.files.iter().filter(|file| table.is(&file.name));
        files.map(|file| self.dir.join(file.file())).collect()
    }

    /// Rows of a table with columns `metric` and `value`; none when there is no such table. Nulls and values that are not finite
    /// become None.
    ///
    /// # Errors
    /// When the table cannot be read or has no such columns.
    pub fn figures(&self, table: &Table) -> anyhow::Result<Vec<(String, Option<f64>)>> {
        let mut figures = Vec::new();
        for batch in self.rows_of(table)? {
            let batch = batch?;
            let named = || format!("stage {}", self.stage());
            let names = table.texts(&batch, column::METRIC).with_context(named)?;
            let values = table.reals(&batch, column::VALUE).with_context(named)?;
            for row in 0..batch.num_rows() {
                let value = Some(values.value(row)).filter(|value| values.is_valid(row) && value.is_finite());
                figures.push((names.value(row).to_owned(), value));
            }
        }
        Ok(figures)
    }

    /// The value of one metric in a table as for [`Artifact::figures`]. The table may leave out the metric's prefix up to its
    /// last slash.
    ///
    /// # Errors
    /// As [`Artifact::figures`].
    pub fn figure(&self, table: &Table, metric: &str) -> anyhow::Result<Option<f64>> {
        let short = metric.rsplit('/').next().unwrap_or(metric);
        let figures = self.figures(table)?;
        Ok(figures.into_iter().find(|(name, _)| name == metric || name == short).and_then(|(_, value)| value))
    }

    /// Rows of a table whose first two columns are texts, in order; none when there is no such table.
    ///
    /// # Errors
    /// When the table cannot be read or has no such columns.
    pub fn texts(&self, table: &Table) -> anyhow::Result<Vec<(String, String)>> {
        let mut rows = Vec::new();
        for batch in self.rows_of(table)? {
            let batch = batch?;
            let text = |column| table.texts(&batch, column).with_context(|| format!("stage {}", self.stage()));
            let (keys, texts) = (text(table.columns[0])?, text(table.columns[1])?);
            rows.extend((0..batch.num_rows()).map(|row| (keys.value(row).to_owned(), texts.value(row).to_owned())));
        }
        Ok(rows)
    }

    /// The rows of a table, batch by batch.
    pub fn read(&self, name: &str) -> anyhow::Result<Batches> {
        table::read(&self.table_path(name)?)
    }

    /// The rows of a table; none when there is no such table.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn rows_of(&self, table: &Table) -> anyhow::Result<Batches> {
        if self.has_table(table.name) { self.read(table.name) } else { Ok(Box::new(std::iter::empty())) }
    }
}
