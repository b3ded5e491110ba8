//! Reads embeddings that a file already holds. The hash of an image identifies its row.

use std::{collections::HashMap, fs::File, path::Path, path::PathBuf};

use anyhow::{Context, ensure};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection},
    },
    file::metadata::PageIndexPolicy,
};

use super::table::{Footer, Hash, parse_hash};
use crate::tables::{
    EMBEDDINGS,
    column::{Column, EMBEDDING, IMAGE_SHA256},
};

/// A file of embeddings. Hashes and numbers of the rows are in memory; embeddings stay on disk.
pub struct Known {
    path: PathBuf,
    file: File,
    metadata: ArrowReaderMetadata,
    footer: Footer,
    rows: HashMap<Hash, u64>,
    len: usize,
}

impl Known {
    /// Opens a file; None if it is not a complete file written by `snclr embed`.
    pub fn open(path: &Path) -> Option<Known> {
        let file = File::open(path).ok()?;
        let options = ArrowReaderOptions::new().with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&file, options).ok()?;
        let about = metadata.metadata().file_metadata();
        let value = |key: &str| about.key_value_metadata()?.iter().find(|pair| pair.key == key)?.value.clone();
        let footer = Footer::read(value)?;
        let len = about.num_rows() as usize;
        let mut known = Known { path: path.to_owned(), file, metadata, footer, rows: HashMap::new(), len };
        known.rows = known.hashes().ok()?;
        Some(known)
    }

    fn reader(&self, column: Column) -> anyhow::Result<ParquetRecordBatchReaderBuilder<File>> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.try_clone()?, self.metadata.clone());
        let mask = ProjectionMask::columns(builder.parquet_schema(), [column.name]);
        Ok(builder.with_projection(mask))
    }

    fn hashes(&self) -> anyhow::Result<HashMap<Hash, u64>> {
        let (mut rows, mut numbers) = (HashMap::with_capacity(self.len), 0u64..);
        for batch in self.reader(IMAGE_SHA256)?.with_batch_size(8192).build()? {
            for (hash, number) in EMBEDDINGS.texts(&batch?, IMAGE_SHA256)?.iter().zip(&mut numbers) {
                rows.entry(hash.and_then(parse_hash).context("no hash")?).or_insert(number);
            }
        }
        Ok(rows)
    }

    /// The footer, which identifies the encoder that computed the embeddings.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The row of the image with this hash, if the file has one.
    pub fn row(&self, hash: &Hash) -> Option<u64> {
        self.rows.get(hash).copied()
    }

    /// Embeddings of a few rows, in the order of `rows`; `dim` is their width.
    ///
    /// # Errors
    /// When the file cannot be read, or its embeddings are of another width or not finite.
    pub fn embeddings(&self, rows: &[u64], dim: usize) -> anyhow::Result<Vec<f32>> {
        let named = || format!("reading {}", self.path.display());
        let mut sorted = rows.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let ranges = sorted.iter().map(|&row| row as usize..row as usize + 1);
        let selection = RowSelection::from_consecutive_ranges(ranges, self.len);
        let reader = self.reader(EMBEDDING).and_then(|reader| Ok(reader.with_row_selection(selection).build()?));
        let mut values: Vec<f32> = Vec::with_capacity(sorted.len() * dim);
        for batch in reader.with_context(named)? {
            let batch = batch.with_context(named)?;
            let (width, vectors) = EMBEDDINGS.vectors(&batch, EMBEDDING).with_context(named)?;
            ensure!(width == dim, "{}: embeddings of width {width}", named());
            values.extend_from_slice(vectors);
        }
        ensure!(
            values.len() == sorted.len() * dim && values.iter().all(|value| value.is_finite()),
            "{}: an embedding is missing or not finite",
            named()
        );
        let place = |row: &u64| sorted.partition_point(|other| other < row) * dim;
        Ok(rows.iter().flat_map(|row| values[place(row)..place(row) + dim].iter().copied()).collect())
    }
}
