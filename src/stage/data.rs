//! The data stage: reads a source of images, and writes Parquet shards with a content hash per row.

use std::{
    borrow::Borrow,
    iter::Peekable,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

use anyhow::{Context, anyhow};
use arrow::array::RecordBatch;
use serde::Serialize;

use super::{
    Cost, Descriptor, StageContext, Stopped,
    findings::Findings,
    kept::{Kept, Place},
    looking_through,
};
use crate::{
    artifact::{ArtifactWriter, FileEntry, Kind},
    dataset::{DataConfig, DataError, Item, LeftOut, ReadSummary, Skipped, Source, SplitName, shard},
    tables::{self, column::*},
};

/// The descriptor of the stage.
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

/// The fields of a spec that the data stage reads.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DataSection<'a> {
    pub data: &'a DataConfig,
}

/// Number of batches (of a few MB) that the reader may be ahead of the writer.
const AHEAD: usize = 2;
/// The most skipped images that are listed; the table `skipped` has all.
const NAMED: usize = 5;

/// Sizes that trigger an action of the stage.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Approximate bytes in a shard.
    shard: u64,
    /// The smallest split, in bytes, whose shards are kept for a later attempt.
    split: u64,
}

/// Ingests both splits of `config`. Finished shards are kept until the artifact is complete. After a kill, the next attempt
/// resumes after these shards, and gives the same bits.
///
/// Lists of omitted files and notes are not part of the content, since one more damaged file does not change the images of a
/// training.
pub fn run(config: &DataConfig, out: &mut ArtifactWriter, context: &StageContext) -> anyhow::Result<()> {
    run_within(Limits { shard: shard::SHARD_BYTES, split: shard::SHARD_BYTES / 8 }, config, out, context)
}

fn run_within(
    limits: Limits,
    config: &DataConfig,
    out: &mut ArtifactWriter,
    context: &StageContext,
) -> anyhow::Result<()> {
    let mut classes = Vec::new();
    let (mut skipped, mut left_out) = (Vec::new(), Vec::new());
    let (mut findings, mut notes) = (Findings::default(), Vec::new());
    let source = Source::open(config, &mut looking_through(context.progress, context.interrupt, "data"))?;
    let mut kept = Kept::load(context, out)?;
    for split in SplitName::ALL {
        let Some(total) = source.count(split)? else { continue };
        context.progress.start(Some(total), "images");
        context.progress.message(split.as_str());
        let before = kept.rows(split);
        if before > 0 {
            context.progress.log(&format!("data.{split}: going on after image {before} of {total}"));
            kept.each(split, &mut |rows| findings.add(split, rows))?;
        }
        let summary = match kept.summary(split) {
            Some(summary) => {
                context.progress.advance(before);
                summary.clone()
            }
            None => {
                let mut ingest =
                    Ingest { limits, split, out: &mut *out, context, findings: &mut findings, kept: &mut kept };
                ingest.run(&source)?
            }
        };
        warn(split, &summary, context);
        classes = same_classes(classes, summary.classes)?;
        skipped.extend(summary.skipped.into_iter().map(|skipped| (split, skipped)));
        left_out.extend(summary.left_out.into_iter().map(|left| (split, left)));
        notes.extend(summary.notes.into_iter().map(|text| ("source".to_owned(), text)));
    }
    let findings = findings.finish();
    notes.extend(findings.notes(&classes).into_iter().map(|(key, text)| (key.to_owned(), text)));
    write_classes(&classes, out)?;
    write_skipped(&skipped, out)?;
    write_left_out(&left_out, out)?;
    findings.write(out)?;
    out.whole(&tables::NOTES, Kind::Measurement, &tables::NOTES.texts_of(&notes))
}

/// Consecutive rows, and how far the source was read for them.
struct Piece {
    rows: RecordBatch,
    /// Items of the split up to the last row, including skipped ones.
    items: u64,
    /// Images that were skipped since the previous piece.
    skipped: Vec<Skipped>,
}

impl Borrow<RecordBatch> for Piece {
    fn borrow(&self) -> &RecordBatch {
        &self.rows
    }
}

/// The ingestion of a split.
struct Ingest<'a, 'b> {
    limits: Limits,
    split: SplitName,
    out: &'a mut ArtifactWriter,
    context: &'a StageContext<'b>,
    findings: &'a mut Findings,
    kept: &'a mut Kept,
}

impl Ingest<'_, '_> {
    /// Writes the missing shards of the split. Another thread reads ahead.
    fn run(&mut self, source: &Source) -> anyhow::Result<ReadSummary> {
        let (split, place, before) = (self.split, self.kept.place(self.split), self.kept.skipped(self.split));
        let mut summary = thread::scope(|scope| {
            let (sender, receiver) = sync_channel(AHEAD);
            let reader = scope.spawn(move || read(source, split, place, sender));
            // Dropping the receiver stops a reader that is still running.
            let outcome = self.write(receiver.into_iter().peekable());
            let summary = reader.join().map_err(|_| anyhow!("the reader of data.{split} panicked"))?;
            outcome?;
            summary
        })?;
        summary.skipped = [before, std::mem::take(&mut summary.skipped)].concat();
        let bytes: u64 = self.kept.bytes(split) + self.last().map_or(0, |entry| entry.size);
        if split == SplitName::Train && bytes >= self.limits.split {
            let last = self.last().cloned();
            self.kept.finished(split, last, &summary, self.out, self.context)?;
        }
        Ok(summary)
    }

    /// The shard after the kept ones.
    fn last(&self) -> Option<&FileEntry> {
        self.out.entry(&shard::table(self.split).numbered(self.kept.shards(self.split)))
    }

    fn write(&mut self, mut pieces: Peekable<impl Iterator<Item = Piece>>) -> anyhow::Result<()> {
        // The first image is read only after the kept ones were skipped. Kept images count as done from then on, so that speed is
        // measured on images that are read.
        if pieces.peek().is_some() && self.kept.rows(self.split) > 0 {
            self.context.progress.advance(self.kept.rows(self.split));
        }
        for number in self.kept.shards(self.split).. {
            if pieces.peek().is_none() {
                break;
            }
            let shards = shard::table(self.split);
            let name = shards.numbered(number);
            let (mut items, mut skipped) = (0, Vec::new());
            let mut table = self.out.table_with(&name, shards.schema(), Kind::Content, shard::properties())?;
            shard::fill(&mut pieces, self.limits.shard, &mut |piece: &Piece| {
                if self.context.interrupt.requested() {
                    return Err(Stopped::InterruptedAt { stage: "data" }.into());
                }
                table.write(&piece.rows)?;
                self.findings.add(self.split, &piece.rows)?;
                items = piece.items;
                skipped.extend_from_slice(&piece.skipped);
                self.context.progress.advance(piece.rows.num_rows() as u64);
                Ok(())
            })?;
            table.finish()?;
            // The last shard is kept together with the summary of the split.
            if pieces.peek().is_some() {
                self.kept.shard(self.split, &name, items, skipped, self.out, self.context)?;
            }
        }
        Ok(())
    }
}

/// Reads the split from `place` on, and sends its rows in batches.
fn read(source: &Source, split: SplitName, place: Place, sender: SyncSender<Piece>) -> anyhow::Result<ReadSummary> {
    let mut batcher = shard::Batcher::after(place.rows);
    let (mut items, mut skipped) = (place.items, Vec::new());
    let send = |rows: Option<RecordBatch>, items: u64, skipped: &mut Vec<Skipped>| match rows {
        Some(rows) => {
            sender.send(Piece { rows, items, skipped: std::mem::take(skipped) }).context("writing has stopped")
        }
        None => Ok(()),
    };
    let summary = source.read_from(split, place.items, &mut |item| {
        items += 1;
        match item {
            Item::Sample(sample) => send(batcher.push(sample)?, items, &mut skipped),
            Item::Skipped(other) => {
                skipped.push(other.clone());
                Ok(())
            }
        }
    })?;
    send(batcher.finish()?, items, &mut skipped)?;
    Ok(summary)
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

/// The class names of both splits. One list may continue the other, e.g. if labels are numbers and one split has larger ones.
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
        KIND.of(skipped.iter().map(|(_, skipped)| skipped.kind.as_ref())),
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
    use std::{
        fs,
        path::Path,
        process::{Child, Command, Stdio},
        thread::sleep,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{
        artifact::{Artifact, Attempt, Components, Found, Store},
        stage::{Interrupt, Progress, Silent},
    };

    const ROOT: &str = "SNCLR_TEST_INGEST";
    /// Every batch, of 4 MB, is a shard.
    const LIMITS: Limits = Limits { shard: 1, split: 1 };

    fn config(root: &Path) -> DataConfig {
        let path = |split: &str| root.join(split).display().to_string();
        let config = serde_json::json!({
            "format": "image_folder", "train": path("train"), "test": path("test"), "on_error": "skip"
        });
        serde_json::from_value(config).unwrap()
    }

    /// 36 training images and 18 test images of 0.5 MB in two classes; every seventh is damaged.
    fn images(root: &Path) {
        for (split, count) in [("train", 36u32), ("test", 18)] {
            for i in 0..count {
                let dir = root.join(split).join(["cat", "dog"][i as usize % 2]);
                fs::create_dir_all(&dir).unwrap();
                let mut bytes = b"P6 420 400 255\n".to_vec();
                let pixel = |at: u32| (at.wrapping_mul(2_654_435_761 + i) >> 13) as u8 ^ split.len() as u8;
                bytes.extend((0..420 * 400 * 3).map(pixel));
                bytes.truncate(if i % 7 == 3 { 1000 } else { bytes.len() });
                fs::write(dir.join(format!("{i:03}.ppm")), bytes).unwrap();
            }
        }
    }

    fn components() -> Components {
        let mut components = Components::default();
        components.insert("stage", &"data".into());
        components
    }

    /// Runs the stage as a run would.
    fn stage(root: &Path, progress: &dyn Progress, interrupt: &Interrupt) -> anyhow::Result<Artifact> {
        let store = Store::open(&root.join("runs"));
        let key = components().key();
        let Attempt::Held(lock) = store.lock("data", &key)? else { panic!("nobody else is there") };
        store.sweep()?;
        match store.find("data", &key) {
            Found::Hit(artifact) => return Ok(artifact),
            Found::Damaged { what } => panic!("{what}"),
            Found::Missing => {}
        }
        let checkpoints = store.checkpoints("data", &key, |warning| panic!("{warning}"))?;
        let checkpoint_interval = Duration::ZERO;
        let context = StageContext { progress, interrupt, checkpoints: &checkpoints, checkpoint_interval };
        let mut writer = store.begin(&lock, "data", components())?;
        run_within(LIMITS, &config(root), &mut writer, &context)?;
        store.commit(&lock, writer)
    }

    /// Names of the tables with their contents and the hashes of their bytes.
    fn tables(artifact: &Artifact) -> Vec<(String, String, String)> {
        let files = artifact.manifest().files.iter();
        files.map(|file| (file.name.clone(), file.content.clone(), file.sha256.clone())).collect()
    }

    /// Requests an interruption after a number of images.
    struct StopsAfter(std::cell::Cell<u64>, Interrupt);

    impl Progress for StopsAfter {
        fn advance(&self, count: u64) {
            self.0.set(self.0.get().saturating_sub(count));
            if self.0.get() == 0 {
                self.1.request();
            }
        }
        fn start(&self, _total: Option<u64>, _unit: &str) {}
        fn message(&self, _text: &str) {}
        fn value(&self, _name: &str, _value: f64) {}
        fn log(&self, _text: &str) {}
        fn detail(&self, _text: &str) {}
        fn warn(&self, _text: &str) {}
    }

    #[test]
    fn finished_shards_are_not_read_again() {
        let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for root in [whole.path(), stopped.path()] {
            images(root);
        }
        let expected = stage(whole.path(), &Silent, &Interrupt::default()).unwrap();
        assert!(expected.files_of(&tables::TRAIN).len() > 2 && expected.files_of(&tables::TEST).len() > 1);
        // Shards of 9 images: three of the training split's four, then the rest of it and one of the test split's two.
        for (images, read) in [(20, &["train/cat"][..]), (40, &["train/dog", "test/cat"])] {
            let progress = StopsAfter(std::cell::Cell::new(images), Interrupt::default());
            let error = stage(stopped.path(), &progress, &progress.1.clone()).unwrap_err();
            assert_eq!(error.downcast_ref(), Some(&Stopped::InterruptedAt { stage: "data" }), "{error:#}");
            // Remove the images, so that reading them again would fail.
            let entries = read.iter().flat_map(|dir| fs::read_dir(stopped.path().join(dir)).unwrap());
            entries.for_each(|entry| fs::write(entry.unwrap().path(), "gone").unwrap());
        }
        let found = stage(stopped.path(), &Silent, &Interrupt::default()).unwrap();
        let unnamed = |artifact: &Artifact| {
            let mut tables = tables(artifact);
            // This table holds paths of the scratch folder.
            tables.retain(|(name, ..)| name != "skipped");
            tables
        };
        assert_eq!(unnamed(&found), unnamed(&expected));
        assert_eq!(found.read("skipped").unwrap().next().unwrap().unwrap().num_rows(), 8);
        assert!(!stopped.path().join("runs/work").join(format!("data-{}", components().key())).exists());
    }

    /// The test below starts this one in its own process.
    #[test]
    fn child() {
        if let Some(root) = std::env::var_os(ROOT) {
            stage(Path::new(&root), &Silent, &Interrupt::default()).unwrap();
        }
    }

    fn spawn(root: &Path) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "stage::data::tests::child", "--nocapture"]).env(ROOT, root);
        command.stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn an_ingestion_that_is_killed_at_random_ends_as_one_that_is_not() {
        let root = tempfile::tempdir().unwrap();
        images(root.path());
        let begun = Instant::now();
        assert!(spawn(root.path()).wait().unwrap().success());
        let lifetime = begun.elapsed();
        let expected = tables(&stage(root.path(), &Silent, &Interrupt::default()).unwrap());
        let mut kills = 0;
        for round in 0..4u64 {
            fs::remove_dir_all(root.path().join("runs")).unwrap();
            for attempt in 0u64.. {
                let mut child = spawn(root.path());
                let spread = (round * 7919 + attempt * 10_473) % 1000 * 6 / 10 + attempt * 50;
                sleep(lifetime.mul_f64(spread as f64 / 1000.0));
                child.kill().unwrap();
                match child.wait().unwrap().code() {
                    Some(code) => assert_eq!(code, 0, "the next attempt cannot continue"),
                    None => kills += 1,
                }
                let store = Store::open(&root.path().join("runs"));
                if let Found::Hit(artifact) = store.find("data", &components().key()) {
                    assert_eq!(tables(&artifact), expected, "round {round}");
                    break;
                }
            }
        }
        assert!(kills >= 4, "the kills came too late: {kills}");
    }

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
        let error = read(&Source::open(&config, &mut |_| Ok(())).unwrap(), SplitName::Train, Place::default(), sender)
            .unwrap_err();
        assert_eq!(error.to_string(), "writing has stopped");
    }
}
