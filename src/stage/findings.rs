//! What casts doubt on scores before anything is trained: images in both splits or in two classes, labels that training lacks,
//! one class alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use arrow::array::{Array, AsArray, RecordBatch};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::duplicates::{self, Duplicate, Place};
use crate::{
    artifact::{ArtifactWriter, Kind},
    dataset::{SplitName, shard},
    tables::{self, column::*},
};

/// Names that a sentence spells out.
const NAMED: usize = 5;
/// Where the rest is.
const LISTED: &str = "the table `duplicates` of the data artifact lists them";

/// Collects findings batch by batch. In memory it keeps, of each image, a short hash, its place and its label.
#[derive(Default)]
pub struct Findings {
    /// By the first 8 bytes of the SHA-256 of the encoded image.
    seen: HashMap<u64, Place>,
    duplicates: Vec<Duplicate>,
    /// Number of images by split and label.
    labels: BTreeMap<(&'static str, i64), u64>,
    rows: BTreeMap<&'static str, u64>,
}

impl Findings {
    /// Takes rows of a shard.
    pub fn add(&mut self, split: SplitName, batch: &RecordBatch) -> anyhow::Result<()> {
        let shards = shard::table(split);
        let (ids, labels) = (shards.integers(batch, SAMPLE_ID)?, shards.integers(batch, LABEL)?);
        let bytes = shards.part(batch, BYTES)?.as_binary::<i32>();
        let hash = |i: usize| {
            let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(Sha256::digest(bytes.value(i)));
            u64::from_le_bytes([a, b, c, d, e, f, g, h])
        };
        let hashes: Vec<u64> = (0..batch.num_rows()).into_par_iter().map(hash).collect();
        for (i, hash) in hashes.into_iter().enumerate() {
            let label = labels.is_valid(i).then(|| labels.value(i));
            let place = Place { split, id: ids.value(i), label };
            *self.rows.entry(split.as_str()).or_default() += 1;
            if let Some(label) = label {
                *self.labels.entry((split.as_str(), label)).or_default() += 1;
            }
            match self.seen.entry(hash) {
                Entry::Vacant(entry) => drop(entry.insert(place)),
                Entry::Occupied(entry) => self.duplicates.push(Duplicate { again: place, first: *entry.get() }),
            }
        }
        Ok(())
    }

    /// What was found, as key and sentence. `classes` are the names by label.
    pub fn notes(&self, classes: &[String]) -> Vec<(&'static str, String)> {
        let found =
            [self.leak(), self.conflict(classes), self.unknown(classes), self.one_class(classes), self.gaps(classes)];
        found.into_iter().flatten().collect()
    }

    fn leak(&self) -> Option<(&'static str, String)> {
        let leaked = self.duplicates.iter().filter(|duplicate| duplicate.leaks()).count();
        let all = self.rows.get(SplitName::Test.as_str()).copied().unwrap_or(0);
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

    /// Numbers below the largest label that no training image has, where classes have no other names.
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

    /// Writes `duplicates`.
    pub fn write(&self, out: &mut ArtifactWriter) -> anyhow::Result<()> {
        out.whole(&tables::DUPLICATES, Kind::Measurement, &duplicates::rows(&self.duplicates))
    }
}

fn name(classes: &[String], label: i64) -> String {
    let known = usize::try_from(label).ok().and_then(|label| classes.get(label));
    known.cloned().unwrap_or_else(|| label.to_string())
}

/// The first few, and that there are more.
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
    fn findings(train: &[(u8, Option<i64>)], test: &[(u8, Option<i64>)]) -> Findings {
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
        findings
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
        // One that is there twice within its class is neither.
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
