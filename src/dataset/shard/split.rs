//! Random access to the samples of a split. Offset, size and label of each row are in memory, the images on disk.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use arrow::{
    array::{Array, AsArray},
    datatypes::Int32Type,
};
use image::RgbImage;
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
    basic::Compression,
    file::metadata::{PageIndexPolicy, ParquetMetaData},
};

use super::IMAGE_BYTES;
use crate::{
    dataset::{
        CropBox, Part,
        decode::{Opened, Refusal, decode},
    },
    tables::{TRAIN, column::*},
};

/// Number of shards whose files stay open, since a process may have 1024 open files by default. Further shards are opened for
/// each read.
const FILES_KEPT_OPEN: usize = 512;
/// Bytes of the length before each value (little-endian) in Parquet's plain encoding.
const PREFIX: usize = 4;
/// The most bytes of a page before its value: the Thrift header (about 20 bytes) and the value's length.
const MOST_OVERHEAD: i64 = 64;
/// Marks a missing label.
const NO_LABEL: i64 = i64::MIN;

/// A split, open for reading from any number of threads.
#[derive(Debug)]
pub struct Split {
    shards: Vec<Shard>,
    rows: Vec<Row>,
    labels: Vec<i64>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: Option<File>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    /// Where the image's length is stored in its shard; the image follows it.
    offset: u64,
    size: u32,
    shard: u32,
}

impl Split {
    /// Opens the shards of a split, which are given in the order of their numbers.
    ///
    /// Errors: a file that is not a shard, or does not continue the one before it; the error names the file.
    pub fn open(shards: &[PathBuf]) -> anyhow::Result<Split> {
        let mut split = Split { shards: vec![], rows: vec![], labels: vec![] };
        for path in shards {
            split.add(path).with_context(|| format!("cannot open shard `{}`", path.display()))?;
        }
        Ok(split)
    }

    fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        let file = File::open(path)?;
        let options = ArrowReaderOptions::new().with_offset_index_policy(PageIndexPolicy::Required);
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file.try_clone()?, options)?;
        let pages = image_pages(builder.metadata())?;
        let wanted = [SAMPLE_ID, LABEL, BYTES_SIZE].map(|column| column.name);
        let mask = ProjectionMask::columns(builder.parquet_schema(), wanted);
        let mut pages = pages.into_iter();
        for batch in builder.with_projection(mask).with_batch_size(8192).build()? {
            let batch = batch?;
            // The test split has the same columns.
            let (ids, labels) = (TRAIN.integers(&batch, SAMPLE_ID)?, TRAIN.integers(&batch, LABEL)?);
            let sizes = TRAIN.values(&batch, BYTES_SIZE)?.as_primitive::<Int32Type>();
            for i in 0..batch.num_rows() {
                let row = self.rows.len();
                ensure!(ids.value(i) == row as i64, "it begins or goes on with sample {}, not {row}", ids.value(i));
                let page = pages.next().context("fewer pages than rows")?;
                let (size, overhead) = (sizes.value(i), page.1 as i64 - sizes.value(i) as i64);
                ensure!(
                    size >= 0 && (PREFIX as i64..=MOST_OVERHEAD).contains(&overhead),
                    "sample {row} has {size} bytes, its page {}",
                    page.1
                );
                let offset = page.0 as u64 + overhead as u64 - PREFIX as u64;
                self.rows.push(Row { offset, size: size as u32, shard: self.shards.len() as u32 });
                self.labels.push(if labels.is_null(i) { NO_LABEL } else { labels.value(i) });
            }
        }
        ensure!(pages.next().is_none(), "more pages than rows");
        let keep = self.shards.len() < FILES_KEPT_OPEN;
        self.shards.push(Shard { path: path.to_owned(), file: keep.then_some(file) });
        Ok(())
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the split has no samples.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Label of sample `i`.
    pub fn label(&self, i: usize) -> Option<i64> {
        Some(self.labels[i]).filter(|&label| label != NO_LABEL)
    }

    /// All labels, or None if any is missing.
    pub fn labels(&self) -> Option<Vec<i64>> {
        (!self.labels.contains(&NO_LABEL)).then(|| self.labels.clone())
    }

    /// The encoded image of sample `i`.
    pub fn encoded(&self, i: usize) -> anyhow::Result<Vec<u8>> {
        let mut value = self.value(i)?;
        value.drain(..PREFIX);
        Ok(value)
    }

    /// Sample `i`, decoded.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn image(&self, i: usize) -> anyhow::Result<RgbImage> {
        decode(&self.value(i)?[PREFIX..]).map_err(|refusal| self.undecoded(i, refusal))
    }

    /// Decodes at least a part of sample `i`. `wanted` gets width and height, and returns the part and a value that is passed
    /// through.
    ///
    /// # Errors
    /// When the sample cannot be read, or is damaged. Damage outside the part may go unnoticed here; ingestion has verified the
    /// whole image.
    pub fn part<T>(&self, i: usize, wanted: impl FnOnce((u32, u32)) -> (CropBox, T)) -> anyhow::Result<(Part, T)> {
        let value = self.value(i)?;
        let opened = Opened::new(&value[PREFIX..]).map_err(|refusal| self.undecoded(i, refusal))?;
        let (part, said) = wanted(opened.size());
        Ok((opened.part(part).map_err(|refusal| self.undecoded(i, refusal))?, said))
    }

    fn undecoded(&self, i: usize, refusal: Refusal) -> anyhow::Error {
        let shard = &self.shards[self.rows[i].shard as usize].path;
        anyhow::anyhow!("sample {i} of `{}` does not decode: {refusal}", shard.display())
    }

    /// Reads length and image of sample `i` in one read, and checks that the length is the one in the row.
    fn value(&self, i: usize) -> anyhow::Result<Vec<u8>> {
        let Row { offset, size, shard } = self.rows[i];
        let Shard { path, file } = &self.shards[shard as usize];
        let mut value = vec![0; PREFIX + size as usize];
        let read = match file {
            Some(file) => file.read_exact_at(&mut value, offset),
            None => File::open(path).and_then(|file| file.read_exact_at(&mut value, offset)),
        };
        read.with_context(|| format!("cannot read sample {i} of `{}`", path.display()))?;
        ensure!(
            value[..PREFIX] == size.to_le_bytes(),
            "sample {i} of `{}` is not where the index says",
            path.display()
        );
        Ok(value)
    }
}

/// Offset and size of each image's page, in the order of the rows.
fn image_pages(metadata: &ParquetMetaData) -> anyhow::Result<Vec<(i64, i32)>> {
    let mut pages = Vec::with_capacity(metadata.file_metadata().num_rows() as usize);
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let found = group.columns().iter().position(|column| column.column_path().parts() == IMAGE_BYTES);
        let column = found.with_context(|| format!("it has no column `{}`", IMAGE_BYTES.join(".")))?;
        ensure!(group.column(column).compression() == Compression::UNCOMPRESSED, "its images are compressed");
        let index = metadata.page_index_for_row_group(number);
        let locations = index.page_locations(column).context("it has no offset index")?;
        ensure!(locations.len() as i64 == group.num_rows(), "its images share pages");
        pages.extend(locations.iter().map(|page| (page.offset, page.compressed_page_size)));
    }
    Ok(pages)
}
