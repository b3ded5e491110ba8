//! Data stage: streams a source into Parquet shards with a content hash per row.

use std::{
    iter::Peekable,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

use anyhow::{Context, anyhow};
use arrow::array::RecordBatch;
use serde::Serialize;

use super::{Cost, Descriptor, StageContext, Stopped, findings::Findings};
use crate::{
    artifact::{ArtifactWriter, Kind},
    dataset::{DataConfig, DataError, LeftOut, ReadSummary, Skipped, Source, SplitName, shard},
    tables::{self, column::*},
};

/// What the stage is.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "data",
    version: 6,
    inputs: &[],
    tables: &[
        tables::TRAIN,
        tables::TEST,
        tables::CLASSES,
        tables::SKIPPED,
        tables::LEFT_OUT,
        tables::DUPLICATES,
        tables::NOTES,
    ],
    cost: Cost {
        of_an_image: &["data.format", "data.image_size"],
        grows: &[tables::TRAIN, tables::TEST, tables::SKIPPED],
    },
    figures: None,
};

/// What it reads of a spec.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DataSection<'a> {
    pub data: &'a DataConfig,
}

/// Batches (of a few MB) that the reader may be ahead of the writer.
const AHEAD: usize = 2;
/// Skipped images that are named one by one; the table `skipped` lists all.
const NAMED: usize = 5;

/// Ingests both splits of `config`.
///
/// Accounts of what was left out and notes are no part of the content: one more damaged file changes no image that training
/// sees.
pub fn run(config: &DataConfig, out: &mut ArtifactWriter, context: &StageContext) -> anyhow::Result<()> {
    let mut classes = Vec::new();
    let (mut skipped, mut left_out) = (Vec::new(), Vec::new());
    let (mut findings, mut notes) = (Findings::default(), Vec::new());
    let mut written = 0;
    let source = Source::open(config)?;
    for split in SplitName::ALL {
        let Some(total) = source.count(split)? else { continue };
        context.progress.start(Some(total), "images");
        context.progress.message(split.as_str());
        let summary = ingest(&source, split, out, context, (&mut written, &mut findings))?;
        warn(split, &summary, context);
        classes = same_classes(classes, summary.classes)?;
        skipped.extend(summary.skipped.into_iter().map(|skipped| (split, skipped)));
        left_out.extend(summary.left_out.into_iter().map(|left| (split, left)));
        notes.extend(summary.notes.into_iter().map(|text| ("source".to_owned(), text)));
    }
    notes.extend(findings.notes(&classes).into_iter().map(|(key, text)| (key.to_owned(), text)));
    write_classes(&classes, out)?;
    write_skipped(&skipped, out)?;
    write_left_out(&left_out, out)?;
    findings.write(out)?;
    out.whole(&tables::NOTES, Kind::Measurement, &tables::NOTES.texts_of(&notes))
}

/// Writes the shards of one split, reading ahead on a thread of its own.
fn ingest(
    source: &Source,
    split: SplitName,
    out: &mut ArtifactWriter,
    context: &StageContext,
    seen: (&mut u64, &mut Findings),
) -> anyhow::Result<ReadSummary> {
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let reader = scope.spawn(move || read(source, split, sender));
        // The receiver ends with the writing: a reader that is still at work then stops.
        let outcome = write_shards(receiver.into_iter().peekable(), split, out, context, seen);
        let summary = reader.join().map_err(|_| anyhow!("the reader of data.{split} panicked"))?;
        outcome?;
        summary
    })
}

/// Reads the split and sends its rows, batch by batch.
fn read(source: &Source, split: SplitName, sender: SyncSender<RecordBatch>) -> anyhow::Result<ReadSummary> {
    let mut batcher = shard::Batcher::default();
    let send = |batch: Option<RecordBatch>| match batch {
        Some(batch) => sender.send(batch).context("writing has stopped"),
        None => Ok(()),
    };
    let summary = source.read(split, &mut |sample| send(batcher.push(sample)?))?;
    send(batcher.finish()?)?;
    Ok(summary)
}

fn write_shards(
    mut batches: Peekable<impl Iterator<Item = RecordBatch>>,
    split: SplitName,
    out: &mut ArtifactWriter,
    context: &StageContext,
    (written, findings): (&mut u64, &mut Findings),
) -> anyhow::Result<()> {
    for number in 0.. {
        if batches.peek().is_none() {
            break;
        }
        let shards = shard::table(split);
        let mut table =
            out.table_with(&shards.numbered(number), shards.schema(), Kind::Content, shard::properties())?;
        shard::fill(&mut batches, shard::SHARD_BYTES, &mut |batch| {
            if context.interrupt.requested() {
                return Err(Stopped::InterruptedAt { stage: "data" }.into());
            }
            table.write(batch)?;
            findings.add(split, batch)?;
            *written += batch.num_rows() as u64;
            context.progress.advance(batch.num_rows() as u64);
            Ok(())
        })?;
        table.finish()?;
    }
    Ok(())
}

fn warn(split: SplitName, summary: &ReadSummary, context: &StageContext) {
    let skipped = &summary.skipped;
    for Skipped { name, reason, .. } in skipped.iter().take(NAMED) {
        context.progress.warn(&format!("skipped `{name}`: {reason}"));
    }
    if skipped.len() > NAMED {
        context.progress.warn(&format!("the table `skipped` lists the other {}", skipped.len() - NAMED));
    }
    for taken in &summary.taken {
        context.progress.log(taken);
    }
    for account in summary.left_out_by_kind() {
        context.progress.warn(&format!("data.{split}: {account}"));
    }
}

/// The class names of both splits; where one knows more classes (numbers seen, say), it goes on from the other.
fn same_classes(train: Vec<String>, test: Vec<String>) -> Result<Vec<String>, DataError> {
    if let Some(label) = train.iter().zip(&test).position(|(train, test)| train != test) {
        let (train, test) = (train[label].clone(), test[label].clone());
        return Err(DataError::ClassesDiffer { label, train, test });
    }
    Ok(if train.len() >= test.len() { train } else { test })
}

fn write_classes(classes: &[String], out: &mut ArtifactWriter) -> anyhow::Result<()> {
    let rows = tables::CLASSES.rows([LABEL.of(0..classes.len() as i64), NAME.of(classes)]);
    out.whole(&tables::CLASSES, Kind::Content, &rows)
}

fn write_skipped(skipped: &[(SplitName, Skipped)], out: &mut ArtifactWriter) -> anyhow::Result<()> {
    let rows = tables::SKIPPED.rows([
        SPLIT.of(skipped.iter().map(|(split, _)| split.as_str())),
        NAME.of(skipped.iter().map(|(_, skipped)| &skipped.name)),
        KIND.of(skipped.iter().map(|(_, skipped)| skipped.kind)),
        REASON.of(skipped.iter().map(|(_, skipped)| &skipped.reason)),
    ]);
    out.whole(&tables::SKIPPED, Kind::Measurement, &rows)
}

fn write_left_out(left_out: &[(SplitName, LeftOut)], out: &mut ArtifactWriter) -> anyhow::Result<()> {
    let rows = tables::LEFT_OUT.rows([
        SPLIT.of(left_out.iter().map(|(split, _)| split.as_str())),
        KIND.of(left_out.iter().map(|(_, left)| &left.kind)),
        FILES.of(left_out.iter().map(|(_, left)| left.files as i64)),
    ]);
    out.whole(&tables::LEFT_OUT, Kind::Measurement, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn splits_agree_on_their_classes_or_say_where_not() {
        assert_eq!(same_classes(names(&["a", "b"]), names(&[])).unwrap(), ["a", "b"]);
        assert_eq!(same_classes(names(&["0"]), names(&["0", "1"])).unwrap(), ["0", "1"]);
        let error = same_classes(names(&["a", "b"]), names(&["a", "c"])).unwrap_err();
        assert_eq!(error.to_string(), "the splits disagree on class 1: `b` in data.train, `c` in data.test");
    }

    #[test]
    fn a_reader_stops_when_the_writer_is_gone() {
        let config = serde_json::json!({
            "format": "synthetic", "classes": 2, "train_images": 1_000_000_000u64, "test_images": 1, "image_size": 16
        });
        let (sender, receiver) = sync_channel(AHEAD);
        drop(receiver);
        let config = serde_json::from_value(config).unwrap();
        let error = read(&Source::open(&config).unwrap(), SplitName::Train, sender).unwrap_err();
        assert_eq!(error.to_string(), "writing has stopped");
    }
}
