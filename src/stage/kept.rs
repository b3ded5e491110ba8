//! Keeps the finished shards of a running data stage beside its checkpoints, so that after a kill the next attempt resumes after
//! them.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::StageContext;
use crate::{
    artifact::{ArtifactWriter, FileEntry, table},
    dataset::{ReadSummary, Skipped, SplitName},
};

/// How far a split has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Items of the source, including skipped ones.
    pub items: u64,
    /// Rows in the shards.
    pub rows: u64,
}

/// A finished shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shard {
    split: String,
    entry: FileEntry,
    /// Items of the source up to the last row of the shard.
    items: u64,
    /// Images that were skipped since the previous shard.
    skipped: Vec<Skipped>,
}

/// A split that has been read to its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Finished {
    split: String,
    summary: ReadSummary,
}

/// The finished shards, which are kept if the file system supports links.
pub struct Kept {
    dir: PathBuf,
    shards: Vec<Shard>,
    finished: Vec<Finished>,
    /// False if files cannot be linked; then nothing is kept.
    can_link: bool,
}

const SHARDS: &str = "shards";
const FINISHED: &str = "finished";

impl Kept {
    /// Adopts the shards that an earlier attempt has kept into `out`, up to the first damaged one.
    ///
    /// # Errors
    /// When the folder of the stage cannot be read.
    pub fn load(context: &StageContext, out: &mut ArtifactWriter) -> anyhow::Result<Kept> {
        let dir = context.checkpoints.dir().to_owned();
        let mut kept = Kept { dir, shards: vec![], finished: vec![], can_link: true };
        let Some((_, tables)) = context.checkpoints.load()? else { return Ok(kept) };
        let shards = of_table::<Shard>(tables.get(SHARDS))?;
        kept.finished = of_table(tables.get(FINISHED))?;
        let splits: Vec<String> = shards.iter().map(|shard| shard.split.clone()).collect();
        for shard in shards {
            if let Err(error) = out.adopt(shard.entry.clone(), &kept.dir) {
                context.progress.warn(&format!("ignoring a finished shard; reading again from there: {error:#}"));
                break;
            }
            kept.shards.push(shard);
        }
        let lost = &splits[kept.shards.len()..];
        kept.finished.retain(|finished| !lost.contains(&finished.split));
        Ok(kept)
    }

    fn of(&self, split: SplitName) -> impl Iterator<Item = &Shard> {
        self.shards.iter().filter(move |shard| shard.split == split.as_str())
    }

    /// Number of finished shards of a split.
    pub fn shards(&self, split: SplitName) -> usize {
        self.of(split).count()
    }

    /// Number of rows in the finished shards of a split.
    pub fn rows(&self, split: SplitName) -> u64 {
        self.of(split).map(|shard| shard.entry.rows).sum()
    }

    /// Size in bytes of the finished shards of a split.
    pub fn bytes(&self, split: SplitName) -> u64 {
        self.of(split).map(|shard| shard.entry.size).sum()
    }

    /// The place from which reading continues.
    pub fn place(&self, split: SplitName) -> Place {
        Place { items: self.of(split).last().map_or(0, |shard| shard.items), rows: self.rows(split) }
    }

    /// Images that were skipped before the place from which reading continues.
    pub fn skipped(&self, split: SplitName) -> Vec<Skipped> {
        self.of(split).flat_map(|shard| shard.skipped.iter().cloned()).collect()
    }

    /// The summary of a split that has been read completely.
    pub fn summary(&self, split: SplitName) -> Option<&ReadSummary> {
        self.finished.iter().find(|finished| finished.split == split.as_str()).map(|finished| &finished.summary)
    }

    /// Passes the rows of the finished shards of a split to `take`.
    ///
    /// # Errors
    /// When a shard cannot be read, or `take` fails.
    pub fn each(
        &self,
        split: SplitName,
        take: &mut dyn FnMut(&RecordBatch) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for shard in self.of(split) {
            for rows in table::read(&self.dir.join(shard.entry.file()))? {
                take(&rows?)?;
            }
        }
        Ok(())
    }

    /// Keeps a finished shard that is not the last of its split.
    ///
    /// # Errors
    /// When the list of kept shards cannot be written.
    pub fn shard(
        &mut self,
        split: SplitName,
        name: &str,
        items: u64,
        skipped: Vec<Skipped>,
        out: &ArtifactWriter,
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let entry = out.entry(name).context("a shard that is not finished")?.clone();
        self.shards.push(Shard { split: split.to_string(), entry, items, skipped });
        self.save(name, out, context)
    }

    /// Keeps a split that has been read completely, and its last shard unless that is already kept.
    ///
    /// # Errors
    /// When the list of kept shards cannot be written.
    pub fn finished(
        &mut self,
        split: SplitName,
        last: Option<FileEntry>,
        summary: &ReadSummary,
        out: &ArtifactWriter,
        context: &StageContext,
    ) -> anyhow::Result<()> {
        self.finished.push(Finished { split: split.to_string(), summary: summary.clone() });
        let Some(entry) = last else { return Ok(()) };
        let name = entry.name.clone();
        // Reading never continues from here, so place and skipped images do not matter.
        self.shards.push(Shard { split: split.to_string(), entry, items: u64::MAX, skipped: vec![] });
        self.save(&name, out, context)
    }

    fn save(&mut self, name: &str, out: &ArtifactWriter, context: &StageContext) -> anyhow::Result<()> {
        if !self.can_link {
            return Ok(());
        }
        if let Err(error) = out.keep(name, &self.dir) {
            context.progress.detail(&format!("cannot keep finished shards: {error:#}"));
            self.can_link = false;
            return Ok(());
        }
        let rows = self.shards.iter().map(|shard| shard.entry.rows).sum();
        let tables = [(SHARDS, to_table(&self.shards)?), (FINISHED, to_table(&self.finished)?)];
        context.checkpoints.save(rows, &tables)
    }
}

/// Builds a table with a row of JSON for each item.
fn to_table<T: Serialize>(all: &[T]) -> anyhow::Result<RecordBatch> {
    let rows = all.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(rows));
    Ok(RecordBatch::try_from_iter([("json", column)])?)
}

fn of_table<T: DeserializeOwned>(table: Option<&RecordBatch>) -> anyhow::Result<Vec<T>> {
    let column = table.and_then(|table| table.column_by_name("json")).context("a checkpoint of another kind")?;
    let texts = column.as_string_opt::<i32>().context("a checkpoint of another kind")?;
    (0..texts.len()).map(|row| Ok(serde_json::from_str(texts.value(row))?)).collect()
}
