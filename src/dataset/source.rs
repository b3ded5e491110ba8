//! One interface to all formats: the files of a source, its number of images, and the images themselves.

use std::path::{Path, PathBuf};

use super::{
    DataConfig, DataError, FilesConfig, IdxConfig, Item, ReadSummary, Sample, SplitName, SyntheticConfig, cifar10, idx,
    image_folder,
    ingest::Sink,
    synthetic,
    table::{self, Container, Tables},
    webdataset::{self, Archives},
};

/// A file that the content of a data set depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The file's name within the data set, independent of its path: `train/cat/0001.png`, `test/00003.parquet`.
    pub role: String,
    /// Where the file is stored.
    pub path: PathBuf,
}

/// Passes all files of both splits to `take`, sorted by their roles as text, so that the caller need not hold and sort a million
/// of them. Generated images have no files. Relative paths are taken from `base`.
///
/// # Errors
/// Missing paths, folders without files of the format, and any error of `take`.
pub fn each_source_file(
    config: &DataConfig,
    base: &Path,
    take: &mut dyn FnMut(SourceFile) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut splits = SplitName::ALL;
    splits.sort_by_key(|split| split.as_str());
    for split in splits {
        let mut files = Vec::new();
        match config {
            DataConfig::Synthetic(_) => {}
            DataConfig::ImageFolder(config) => image_folder::each_source_file(config, split, base, take)?,
            DataConfig::Parquet(config) => {
                table::source_files(Container::Parquet, config, split, base, &mut files)?;
            }
            DataConfig::Arrow(config) => table::source_files(Container::Arrow, config, split, base, &mut files)?,
            DataConfig::Webdataset(config) => {
                for (number, path) in webdataset::files(config, split, base)?.paths.into_iter().enumerate() {
                    files.push(SourceFile { role: format!("{split}/{number:05}.tar"), path });
                }
            }
            DataConfig::Cifar10(config) => {
                // Batches matter by their order, not by their names.
                for (number, path) in cifar10::files(config, split, base)?.into_iter().enumerate() {
                    files.push(SourceFile { role: format!("{split}/{number:05}.bin"), path });
                }
            }
            DataConfig::Idx(config) => idx::source_files(config, split, base, &mut files)?,
        }
        files.sort_by(|a, b| a.role.cmp(&b.role));
        files.into_iter().try_for_each(&mut *take)?;
    }
    Ok(())
}

/// All files that [`each_source_file`] passes to its caller.
#[cfg(test)]
pub fn source_files(config: &DataConfig, base: &Path) -> anyhow::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    each_source_file(config, base, &mut |file| {
        files.push(file);
        Ok(())
    })?;
    Ok(files)
}

/// A source whose tables and archives have been scanned once, for both splits.
pub struct Source<'a> {
    has_test: bool,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Synthetic(&'a SyntheticConfig),
    ImageFolder(&'a FilesConfig),
    Tables(Tables<'a>),
    Archives(Archives<'a>),
    Cifar10(&'a FilesConfig),
    Idx(&'a IdxConfig),
}

impl<'a> Source<'a> {
    /// Opens a source and scans its tables and archives. Relative paths are taken from the current directory. Archives have no
    /// list of their samples: during their scan, `found` is called with the number of newly found samples.
    ///
    /// # Errors
    /// Tables or archives that are missing or not of the format, and any error of `found`.
    pub fn open(config: &'a DataConfig, found: &mut dyn FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let here = Path::new("");
        let kind = match config {
            DataConfig::Synthetic(config) => Kind::Synthetic(config),
            DataConfig::ImageFolder(config) => Kind::ImageFolder(config),
            DataConfig::Parquet(config) => Kind::Tables(Tables::open(Container::Parquet, config, here)?),
            DataConfig::Arrow(config) => Kind::Tables(Tables::open(Container::Arrow, config, here)?),
            DataConfig::Webdataset(config) => Kind::Archives(Archives::open(config, here, found)?),
            DataConfig::Cifar10(config) => Kind::Cifar10(config),
            DataConfig::Idx(config) => Kind::Idx(config),
        };
        Ok(Source { has_test: has_split(config, SplitName::Test), kind })
    }

    /// How many images the split should yield, without reading them; None where the source does not have the split.
    pub fn count(&self, split: SplitName) -> Result<Option<u64>, DataError> {
        if !self.has(split) {
            return Ok(None);
        }
        let here = Path::new("");
        Ok(Some(match &self.kind {
            Kind::Synthetic(config) => synthetic::count(config, split),
            Kind::ImageFolder(config) => image_folder::count(config, split, here)?,
            Kind::Tables(tables) => tables.count(split),
            Kind::Archives(archives) => archives.count(split),
            Kind::Cifar10(config) => cifar10::count(config, split, here)?,
            Kind::Idx(config) => idx::count(config, split, here)?,
        }))
    }

    /// Streams a split to `sink` in a stable order, checking that every image decodes; memory does not grow with the split.
    ///
    /// A split that the source does not have yields nothing. Errors: [`DataError`]s, and whatever `sink` returns.
    pub fn read(
        &self,
        split: SplitName,
        sink: &mut dyn FnMut(Sample) -> anyhow::Result<()>,
    ) -> anyhow::Result<ReadSummary> {
        self.read_from(split, 0, &mut |item| match item {
            Item::Sample(sample) => sink(sample),
            Item::Skipped(_) => Ok(()),
        })
    }

    /// Like [`Source::read`], but resumes behind the first `from` items (samples and skipped images) of an earlier reading.
    ///
    /// Errors: as for [`Source::read`]. The summary does not list images that were skipped before `from`.
    pub fn read_from(
        &self,
        split: SplitName,
        from: u64,
        take: &mut dyn FnMut(Item) -> anyhow::Result<()>,
    ) -> anyhow::Result<ReadSummary> {
        if !self.has(split) {
            return Ok(ReadSummary::default());
        }
        let here = Path::new("");
        let sink = &mut Sink { from, take };
        match &self.kind {
            Kind::Synthetic(config) => synthetic::read(config, split, sink),
            Kind::ImageFolder(config) => image_folder::read(config, split, here, sink),
            Kind::Tables(tables) => tables.read(split, sink),
            Kind::Archives(archives) => archives.read(split, sink),
            Kind::Cifar10(config) => cifar10::read(config, split, here, sink),
            Kind::Idx(config) => idx::read(config, split, here, sink),
        }
    }

    fn has(&self, split: SplitName) -> bool {
        split == SplitName::Train || self.has_test
    }
}

/// Whether a source has the split at all.
pub fn has_split(config: &DataConfig, split: SplitName) -> bool {
    split == SplitName::Train
        || match config {
            DataConfig::Synthetic(_) => true,
            DataConfig::ImageFolder(config) | DataConfig::Cifar10(config) | DataConfig::Webdataset(config) => {
                config.test.is_some()
            }
            DataConfig::Parquet(config) | DataConfig::Arrow(config) => config.test.is_some(),
            DataConfig::Idx(config) => config.test.is_some(),
        }
}

/// Opens a source only for this call, and reads one split as [`Source::read`] does.
pub fn read(
    config: &DataConfig,
    split: SplitName,
    sink: &mut dyn FnMut(Sample) -> anyhow::Result<()>,
) -> anyhow::Result<ReadSummary> {
    Source::open(config, &mut |_| Ok(()))?.read(split, sink)
}

/// Opens a source only for this call, and counts one split as [`Source::count`] does.
#[cfg(test)]
pub fn count(config: &DataConfig, split: SplitName) -> anyhow::Result<Option<u64>> {
    Ok(Source::open(config, &mut |_| Ok(()))?.count(split)?)
}
