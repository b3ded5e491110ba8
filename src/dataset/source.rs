//! The formats behind one door: which files a source consists of, how many images, and the images themselves.

use std::path::{Path, PathBuf};

use super::{
    DataConfig, DataError, ReadSummary, SplitName, cifar10, idx, image_folder,
    ingest::Sink,
    synthetic,
    table::{self, Container},
    webdataset,
};

/// A file that the content of a data set depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// What the file is to the data set, wherever it lies: `train/cat/0001.png`, `test/00003.parquet`.
    pub role: String,
    /// Where it lies.
    pub path: PathBuf,
}

/// All files of both splits in a stable order; none for generated images. Relative paths are taken from `base`.
///
/// Errors: paths that are not there, folders without files of the format.
pub fn source_files(config: &DataConfig, base: &Path) -> Result<Vec<SourceFile>, DataError> {
    let mut files = Vec::new();
    for split in SplitName::ALL {
        match config {
            DataConfig::Synthetic(_) => {}
            DataConfig::ImageFolder(config) => image_folder::source_files(config, split, base, &mut files)?,
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
    }
    Ok(files)
}

/// How many images the split should yield, without reading them; None where the source does not have the split.
///
/// Relative paths are taken from the current directory, here and in [`read`].
pub fn count(config: &DataConfig, split: SplitName) -> Result<Option<u64>, DataError> {
    let here = Path::new("");
    let count = match config {
        DataConfig::Synthetic(config) => synthetic::count(config, split),
        DataConfig::ImageFolder(config) => image_folder::count(config, split, here)?,
        DataConfig::Parquet(config) => table::count(Container::Parquet, config, split, here)?,
        DataConfig::Arrow(config) => table::count(Container::Arrow, config, split, here)?,
        DataConfig::Webdataset(config) => webdataset::count(config, split, here)?,
        DataConfig::Cifar10(config) => cifar10::count(config, split, here)?,
        DataConfig::Idx(config) => idx::count(config, split, here)?,
    };
    Ok(has_split(config, split).then_some(count))
}

/// Whether the source has the split at all.
fn has_split(config: &DataConfig, split: SplitName) -> bool {
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

/// Streams a split to `sink` in a stable order, checking that every image decodes; memory does not grow with the split.
///
/// A split that the source does not have yields nothing. Errors: [`DataError`]s, and whatever `sink` returns.
pub fn read(
    config: &DataConfig,
    split: SplitName,
    sink: &mut dyn FnMut(super::Sample) -> anyhow::Result<()>,
) -> anyhow::Result<ReadSummary> {
    if !has_split(config, split) {
        return Ok(ReadSummary::default());
    }
    let here = Path::new("");
    let sink: &mut Sink = sink;
    match config {
        DataConfig::Synthetic(config) => synthetic::read(config, split, sink),
        DataConfig::ImageFolder(config) => image_folder::read(config, split, here, sink),
        DataConfig::Parquet(config) => table::read(Container::Parquet, config, split, here, sink),
        DataConfig::Arrow(config) => table::read(Container::Arrow, config, split, here, sink),
        DataConfig::Webdataset(config) => webdataset::read(config, split, here, sink),
        DataConfig::Cifar10(config) => cifar10::read(config, split, here, sink),
        DataConfig::Idx(config) => idx::read(config, split, here, sink),
    }
}
