//! Finds problems of the data that cast doubt on scores: images in both splits or in two classes, labels that training lacks, a
//! single class.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use arrow::array::{Array, AsArray, RecordBatch};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::duplicates::{self, Duplicate, Place};
use crate::{
    artifact::{ArtifactWriter, Kind},
    dataset::{SplitName, shard},
    tables::{self, column::*},
};

/// The most names that a sentence lists.
const NAMED: usize = 5;
/// The part of a sentence that says where all duplicates are listed.
const LISTED: &str = "the table `duplicates` of the data artifact lists them";

/// Collects hashes and labels of images, batch by batch. Needs 20 bytes of memory per image.
#[derive(Default)]
pub struct Findings {
    /// The first 8 bytes of the SHA-256 of each encoded image, and the number of the image.
    seen: Vec<(u64, u32)>,
    /// Labels by number of the image; [`NO_LABEL`] if it has none.
    labels: Vec<i32>,
    /// Number of training images, which come first.
    train: usize,
}

/// Marks a missing label.
const NO_LABEL: i32 = i32::MIN;

/// Duplicates and numbers of images per label, from which the notes are made.
pub struct Found {
    duplicates: Vec<Duplicate>,
    /// Number of images by split and label.
    labels: BTreeMap<(&'static str, i64), u64>,
    /// Number of test images.
    test: usize,
}

impl Findings {
    /// Adds rows of a shard. Rows of a split must be consecutive, the training split first.
    pub fn add(&mut self, split: SplitName, batch: &RecordBatch) -> anyhow::Result<()> {
        let shards = shard::table(split);
        let labels = shards.integers(batch, LABEL)?;
        let bytes = shards.part(batch, BYTES)?.as_binary::<i32>();
        let hash = |i: usize| {
            let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(Sha256::digest(bytes.value(i)));
            u64::from_le_bytes([a, b, c, d, e, f, g, h])
        };
        let hashes: Vec<u64> = (0..batch.num_rows()).into_par_iter().map(hash).collect();
        for (i, hash) in hashes.into_iter().enumerate() {
            let number = u32::try_from(self.labels.len()).context("more than 4 billion images")?;
            let label = labels.is_valid(i).then(|| i32::try_from(labels.value(i))).transpose()?;
            self.seen.push((hash, number));
            self.labels.push(label.unwrap_or(NO_LABEL));
            self.train += usize::from(split == SplitName::Train);
        }
        Ok(())
    }

    /// Finds duplicates among all rows, and counts images by label.
    pub fn finish(mut self) -> Found {
        self.seen.sort_unstable();
        let place = |&(_, number): &(u64, u32)| {
            let (number, label) = (number as usize, self.labels[number as usize]);
            let (split, id) = match number.checked_sub(self.train) {
                None => (SplitName::Train, number),
                Some(id) => (SplitName::Test, id),
            };
            Place { split, id: id as i64, label: (label != NO_LABEL).then_some(label.into()) }
        };
        let alike = self.seen.chunk_by(|a, b| a.0 == b.0);
        let again = alike.flat_map(|alike| alike[1..].iter().map(|again| (again.1, again, &alike[0])));
        let mut again: Vec<_> = again.collect();
        again.sort_unstable_by_key(|(number, ..)| *number);
        let duplicates = again.iter().map(|(_, again, first)| Duplicate { again: place(again), first: place(first) });
        let mut labels = BTreeMap::new();
        for (number, label) in self.labels.iter().enumerate().filter(|(_, label)| **label != NO_LABEL) {
            let split = if number < self.train { SplitName::Train } else { SplitName::Test };
            *labels.entry((split.as_str(), i64::from(*label))).or_default() += 1;
        }
        Found { duplicates: duplicates.collect(), labels, test: self.labels.len() - self.train }
    }
}

impl Found {
    /// The findings, each as key and sentence. `classes` are the names by label.
    pub fn notes(&self, classes: &[String]) -> Vec<(&'static str, String)> {
        let found =
            [self.leak(), self.conflict(classes), self.unknown(classes), self.one_class(classes), self.gaps(classes)];
        found.into_iter().flatten().collect()
    }

    fn leak(&self) -> Option<(&'static str, String)> {
        let leaked = self.duplicates.iter().filter(|duplicate| duplicate.leaks()).count();
        let all = self.test;
        let text = format!(
            "{leaked} of the {all} test images are training images, byte for byte, so that scores count them as known; \
             {LISTED}"
        );
        (leaked > 0).then_some(("leak", text))
    }

    fn conflict(&self, classes: &[String]) -> Option<(&'static str, String)> {
        let mut conflicts = self.duplicates.iter().filter(|duplicate| duplicate.conflicts());
        let first = conflicts.next()?;
        let more = conflicts.count();
        let (images, are) = if more == 0 { ("image", "is") } else { ("images", "are") };
        let shown = |place: &Place| {
            let label = place.label.map_or_else(String::new, |label| name(classes, label));
            format!("{label} (data.{} sample {})", place.split, place.id)
        };
        let text = format!(
            "{} {images} {are} in two classes, such as one in {} and {}; {LISTED}",
            more + 1,
            shown(&first.first),
            shown(&first.again)
        );
        Some(("conflict", text))
    }

    fn unknown(&self, classes: &[String]) -> Option<(&'static str, String)> {
        let train = self.of(SplitName::Train);
        let unknown: Vec<_> = self.of(SplitName::Test).into_iter().filter(|(l, _)| !train.contains_key(l)).collect();
        let images: u64 = unknown.iter().map(|(_, images)| images).sum();
        let all: u64 = self.of(SplitName::Test).values().sum();
        let text = format!(
            "{images} of the {all} labelled test images are of classes that no training image has ({}): no score can count \
             them as right",
            list(unknown.iter().map(|(label, _)| name(classes, *label)))
        );
        (images > 0 && !train.is_empty()).then_some(("unknown_class", text))
    }

    fn one_class(&self, classes: &[String]) -> Option<(&'static str, String)> {
        let train = self.of(SplitName::Train);
        let [(label, images)] = train.iter().collect::<Vec<_>>()[..] else { return None };
        let class = name(classes, *label);
        Some((
            "one_class",
            format!("all {images} labelled training images are of one class ({class}): there is nothing to classify"),
        ))
    }

    /// Finds classes that have no image in either split, if the class names are only numbers.
    fn gaps(&self, classes: &[String]) -> Option<(&'static str, String)> {
        let numbered = classes.iter().enumerate().all(|(label, name)| *name == label.to_string());
        let splits = SplitName::ALL.into_iter().flat_map(|split| self.of(split).into_keys());
        let used: BTreeSet<i64> = splits.collect();
        let gaps = classes.len().saturating_sub(used.len());
        let text = format!(
            "labels are numbers up to {}, and {gaps} of these {} classes have no image: labels are {}",
            classes.len().saturating_sub(1),
            classes.len(),
            list(used.iter().map(i64::to_string))
        );
        (numbered && gaps > 0 && !used.is_empty()).then_some(("gaps", text))
    }

    fn of(&self, split: SplitName) -> BTreeMap<i64, u64> {
        let own = self.labels.iter().filter(|((name, _), _)| *name == split.as_str());
        own.map(|((_, label), images)| (*label, *images)).collect()
    }

    /// Writes the table `duplicates`.
    pub fn write(&self, out: &mut ArtifactWriter) -> anyhow::Result<()> {
        out.whole(&tables::DUPLICATES, Kind::Measurement, &duplicates::rows(&self.duplicates))
    }
}

fn name(classes: &[String], label: i64) -> String {
    let known = usize::try_from(label).ok().and_then(|label| classes.get(label));
    known.cloned().unwrap_or_else(|| label.to_string())
}

/// The first few items, and `…` if there are more.
fn list(mut names: impl Iterator<Item = String>) -> String {
    let mut shown: Vec<_> = names.by_ref().take(NAMED).collect();
    if names.next().is_some() {
        shown.push("…".to_owned());
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Sample, shard::Batcher};

    /// Findings of images (a byte each) with labels.
    fn findings(train: &[(u8, Option<i64>)], test: &[(u8, Option<i64>)]) -> Found {
        let mut findings = Findings::default();
        for (split, rows) in [(SplitName::Train, train), (SplitName::Test, test)] {
            let mut batcher = Batcher::default();
            for &(byte, label) in rows {
                assert!(batcher.push(Sample { bytes: vec![byte], path: None, label }).unwrap().is_none());
            }
            if let Some(batch) = batcher.finish().unwrap() {
                findings.add(split, &batch).unwrap();
            }
        }
        findings.finish()
    }

    fn notes(train: &[(u8, Option<i64>)], test: &[(u8, Option<i64>)], classes: &[&str]) -> Vec<String> {
        let classes: Vec<String> = classes.iter().map(|name| name.to_string()).collect();
        findings(train, test).notes(&classes).into_iter().map(|(_, text)| text).collect()
    }

    const NOTHING: [&str; 0] = [];

    #[test]
    fn images_in_both_splits_and_in_two_classes_are_counted() {
        let clean = [(1, Some(0)), (2, Some(1)), (3, None)];
        assert_eq!(notes(&clean, &[(4, Some(0)), (5, Some(1))], &["cat", "dog"]), NOTHING);
        // A duplicate within its class is neither.
        assert_eq!(notes(&[(1, Some(0)), (1, Some(0)), (2, Some(1))], &[], &["cat", "dog"]), NOTHING);
        let leak = "2 of the 3 test images are training images, byte for byte, so that scores count them as known; the table \
                    `duplicates` of the data artifact lists them";
        let test = [(3, Some(0)), (2, Some(1)), (9, Some(1))];
        assert_eq!(notes(&clean, &test, &["cat", "dog"]), [leak]);
        let conflict = "1 image is in two classes, such as one in cat (data.train sample 0) and dog (data.train sample 1); \
                        the table `duplicates` of the data artifact lists them";
        assert_eq!(notes(&[(1, Some(0)), (1, Some(1))], &[], &["cat", "dog"]), [conflict]);
    }

    #[test]
    fn labels_that_pose_no_task_are_told() {
        let unknown = "2 of the 3 labelled test images are of classes that no training image has (emu): no score can count \
                       them as right";
        let test = [(3, Some(2)), (4, Some(2)), (5, Some(0)), (6, None)];
        assert_eq!(notes(&[(1, Some(0)), (2, Some(1))], &test, &["cat", "dog", "emu"]), [unknown]);
        let one = "all 2 labelled training images are of one class (cat): there is nothing to classify";
        assert_eq!(notes(&[(1, Some(0)), (2, Some(0)), (3, None)], &[], &["cat", "dog"]), [one]);
        assert_eq!(notes(&[(1, None)], &[(2, Some(0))], &["cat"]), NOTHING);
        let numbers: Vec<String> = (0..71).map(|n| n.to_string()).collect();
        let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
        let gaps = "labels are numbers up to 70, and 69 of these 71 classes have no image: labels are 3, 70";
        assert_eq!(notes(&[(1, Some(3)), (2, Some(70))], &[(3, Some(3))], &numbers), [gaps]);
        assert_eq!(notes(&[(1, Some(0)), (2, Some(1))], &[], &["0", "1"]), NOTHING);
    }
}
