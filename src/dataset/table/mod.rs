//! Tables of images, Parquet and Arrow, in the Hugging Face image schema: `image: struct<bytes, path>` or plain bytes and, perhaps,
//! a label.

mod columns;
mod labels;
mod open;
mod rows;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{
    DataError, ReadSummary, Sample, Skipped, SourceFile, SplitName, TableConfig,
    decode::{Refusal, verify},
    ingest::{Sink, ingest},
    layout::{self, Files},
    paths::{resolve, unreadable},
};
use columns::Columns;
use labels::Classes;
pub use open::Container;
use open::Table;
use rows::{Image, Row, Rows};

/// The columns and the row count of a file, without its rows.
struct Outline {
    path: PathBuf,
    columns: Columns,
    rows: u64,
}

/// The files of a split: a file stands for itself, a folder for the files below it whose names indicate the split, or no split at
/// all.
fn files(container: Container, config: &TableConfig, split: SplitName, base: &Path) -> Result<Files, DataError> {
    match config.of(split) {
        Some(paths) => layout::find(resolve(paths, split, base)?, split, container.endings()),
        None => Ok(Files::default()),
    }
}

/// Opens all files of a split first, so that a wrong column in the last file is reported before the first row is read.
fn outlines(
    container: Container,
    config: &TableConfig,
    split: SplitName,
    base: &Path,
) -> Result<(Vec<Outline>, Option<String>), DataError> {
    let files = files(container, config, split, base)?;
    let outline = |path: PathBuf| {
        let table = Table::open(container, path)?;
        let (columns, rows) = (Columns::find(&table, config)?, table.count()?);
        Ok(Outline { path: table.path, columns, rows })
    };
    Ok((files.paths.into_iter().map(outline).collect::<Result<_, DataError>>()?, files.note))
}

/// Collects the table files themselves, and the image files that their rows name in place of bytes.
pub(super) fn source_files(
    container: Container,
    config: &TableConfig,
    split: SplitName,
    base: &Path,
    found: &mut Vec<SourceFile>,
) -> Result<(), DataError> {
    let paths = files(container, config, split, base)?.paths;
    let mut images = BTreeSet::new();
    for (number, path) in paths.into_iter().enumerate() {
        found.push(SourceFile { role: format!("{split}/{number:05}.{}", container.endings()[0]), path: path.clone() });
        // A file that does not open is reported when it is read.
        let Ok(table) = Table::open(container, path) else { continue };
        let Ok(columns) = Columns::find(&table, config) else { continue };
        if !table.may_name_files(&columns.image) {
            continue;
        }
        for row in Rows::of(container, &table.path, &columns.without_label(), base)? {
            if let Row { image: Image::File(image, _), .. } = row? {
                images.insert(image);
            }
        }
    }
    let role = |image: &PathBuf| format!("{split}/images/{}", image.display());
    found.extend(images.into_iter().map(|image| SourceFile { role: role(&image), path: image }));
    Ok(())
}

/// The tables of both splits.
pub struct Tables<'a> {
    container: Container,
    config: &'a TableConfig,
    base: &'a Path,
    /// For the training split, then the test split: its files, and a note on files that were left out.
    splits: [(Vec<Outline>, Option<String>); 2],
    /// Both splits number their classes by the same names, whichever split is read.
    classes: Classes,
}

impl<'a> Tables<'a> {
    pub fn open(container: Container, config: &'a TableConfig, base: &'a Path) -> Result<Self, DataError> {
        let of = |split| outlines(container, config, split, base);
        let splits = [of(SplitName::Train)?, of(SplitName::Test)?];
        let classes = Classes::new(container, &splits[0].0, &splits[1].0)?;
        Ok(Tables { container, config, base, splits, classes })
    }

    pub fn count(&self, split: SplitName) -> u64 {
        self.splits[split.index()].0.iter().map(|outline| outline.rows).sum()
    }

    pub fn read(&self, split: SplitName, sink: &mut Sink) -> anyhow::Result<ReadSummary> {
        let Tables { container, config, base, splits, classes } = self;
        let (own, note) = &splits[split.index()];
        if own.iter().all(|outline| outline.rows == 0) {
            let path = own.first().map_or_else(PathBuf::new, |outline| outline.path.clone());
            return Err(DataError::NoRows { split, path }.into());
        }
        let mut most = -1;
        let rows = own.iter().flat_map(|outline| match Rows::of(*container, &outline.path, &outline.columns, base) {
            Ok(rows) => Box::new(rows) as Box<dyn Iterator<Item = Result<Row, DataError>>>,
            Err(error) => Box::new(std::iter::once(Err(error))),
        });
        let items = rows.map(|row| {
            let row = row?;
            let label = classes.number(&row)?;
            most = most.max(label.unwrap_or(-1));
            Ok((row.image.size(), (row, label)))
        });
        let work = |(row, label): (Row, Option<i64>)| {
            let name = row.name();
            let bytes = match row.image {
                Image::Bytes(bytes) => Ok(bytes),
                Image::File(path, _) => fs::read(&path)
                    .map_err(|error| Refusal { kind: "unreadable", reason: format!("`{}`: {error}", path.display()) }),
                Image::Missing(reason) => Err(Refusal { kind: "no bytes", reason }),
            };
            match bytes.and_then(|bytes| verify(&bytes).map(|()| bytes)) {
                Ok(bytes) => Ok(Sample { bytes, path: row.path, label }),
                Err(Refusal { kind, reason }) => Err(Skipped { name, kind: kind.into(), reason }),
            }
        };
        let summary = ingest(split, config.on_error, items, work, sink)?;
        let notes = own[0].columns.other_labels(split).into_iter().collect();
        Ok(ReadSummary { classes: classes.names(most), taken: note.iter().cloned().collect(), notes, ..summary })
    }
}

#[cfg(test)]
mod tests;
