//! The items that a source yields: encoded images with labels, and a summary of what was left out.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::{
    CropBox,
    decode::{Opened, Part, decode},
};

/// One of the two splits of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitName {
    /// Images for pretraining, which are also the reference set (bank) of the probes.
    Train,
    /// Images that the probes are scored on.
    Test,
}

impl SplitName {
    /// Both splits, in the order of ingestion.
    pub const ALL: [SplitName; 2] = [SplitName::Train, SplitName::Test];

    /// The split's index in [`SplitName::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The split called `train` or `test`.
    pub fn named(name: &str) -> Option<SplitName> {
        Self::ALL.into_iter().find(|split| split.as_str() == name)
    }

    /// `train` or `test`.
    pub fn as_str(self) -> &'static str {
        match self {
            SplitName::Train => "train",
            SplitName::Test => "test",
        }
    }
}

impl fmt::Display for SplitName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A label at or above this is a mistake: a column of numbers or text that differs in every image.
pub(super) const MOST_CLASSES: usize = 1_000_000;

/// One image of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// An image file, of any format that is decoded.
    pub bytes: Vec<u8>,
    /// The image's path in its source, e.g. `cat/0001.png`.
    pub path: Option<String>,
    /// Class, an index into [`ReadSummary::classes`].
    pub label: Option<i64>,
}

impl Sample {
    /// Decodes the image.
    ///
    /// Errors: a short reason for people.
    pub fn image(&self) -> Result<RgbImage, String> {
        decode(&self.bytes).map_err(|refusal| refusal.reason)
    }

    /// Decodes at least a part of the image. `wanted` chooses the part from width and height. Damage outside the part may go
    /// unnoticed here; ingestion has verified the whole image.
    ///
    /// Errors: a short reason for people.
    pub fn part(&self, wanted: impl FnOnce((u32, u32)) -> CropBox) -> Result<Part, String> {
        let opened = Opened::new(&self.bytes);
        let part = opened.and_then(|opened| {
            let part = wanted(opened.size());
            opened.part(part)
        });
        part.map_err(|refusal| refusal.reason)
    }
}

/// An item of a source: a sample, or an image that was left out.
#[derive(Debug)]
pub enum Item<'a> {
    Sample(Sample),
    /// The image is left out (`on_error: skip`).
    Skipped(&'a Skipped),
}

/// An image that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// File, or file and row.
    pub name: String,
    /// Kind of the file, for counting: `JPEG`, `HEIC`, `no image`.
    pub kind: Cow<'static, str>,
    /// What is wrong with it.
    pub reason: String,
}

/// Files of a folder that are not images, counted by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Their file extension, as in `*.txt`, or a note that they have none.
    pub kind: String,
    /// The number of such files.
    pub files: u64,
}

/// A summary of a split after it has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadSummary {
    /// Class names by label; empty if there are no labels.
    pub classes: Vec<String>,
    /// Images left out (`on_error: skip`), in the order of the source.
    pub skipped: Vec<Skipped>,
    /// Files that are not images, by kind. Hidden files are not counted.
    pub left_out: Vec<LeftOut>,
    /// Which files were taken where there was a choice, one sentence each.
    pub taken: Vec<String>,
    /// Facts that a reader of the scores should know, one sentence each.
    pub notes: Vec<String>,
}

impl ReadSummary {
    /// Counts what was left out by kind, one sentence per list; empty if nothing was left out.
    pub fn left_out_by_kind(&self) -> Vec<String> {
        let mut skipped = BTreeMap::<&str, u64>::new();
        for image in &self.skipped {
            *skipped.entry(&image.kind).or_default() += 1;
        }
        let mut others = BTreeMap::<&str, u64>::new();
        for left in &self.left_out {
            *others.entry(&left.kind).or_default() += left.files;
        }
        let kinds = [
            (skipped, ["image skipped", "images skipped"]),
            (others, ["file left out that is no image", "files left out that are no images"]),
        ];
        let present = kinds.into_iter().filter(|(kinds, _)| !kinds.is_empty());
        let sentence = |(kinds, [one, many]): (BTreeMap<&str, u64>, [&str; 2])| {
            let list: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let all = kinds.values().sum::<u64>();
            format!("{all} {}: {}", if all == 1 { one } else { many }, list.join(", "))
        };
        present.map(sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted_by_kind() {
        let skipped = |kind: &'static str| Skipped { name: "x".into(), kind: kind.into(), reason: "odd".into() };
        let left = |kind: &str, files| LeftOut { kind: kind.into(), files };
        let summary = ReadSummary {
            classes: vec![],
            skipped: vec![skipped("JPEG"), skipped("HEIC"), skipped("JPEG")],
            left_out: vec![left("*.txt", 2), left("*.md", 1), left("*.txt", 3)],
            taken: vec![],
            notes: vec![],
        };
        let expected = ["3 images skipped: 1 HEIC, 2 JPEG", "6 files left out that are no images: 1 *.md, 5 *.txt"];
        assert_eq!(summary.left_out_by_kind(), expected);
        let one = ReadSummary { skipped: vec![skipped("HEIC")], left_out: vec![left("*.txt", 1)], ..summary };
        let expected = ["1 image skipped: 1 HEIC", "1 file left out that is no image: 1 *.txt"];
        assert_eq!(one.left_out_by_kind(), expected);
        assert!(ReadSummary::default().left_out_by_kind().is_empty());
    }
}
