//! What a source yields: encoded images with labels, and what was left out.

use std::fmt;

use image::RgbImage;

use super::decode::decode;

/// One of the two splits of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitName {
    /// Images to pretrain on, and the bank of the probes.
    Train,
    /// Images that the probes are scored on.
    Test,
}

impl SplitName {
    /// Both, in the order in which they are ingested.
    pub const ALL: [SplitName; 2] = [SplitName::Train, SplitName::Test];

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

/// One image of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// JPEG or PNG file.
    pub bytes: Vec<u8>,
    /// Where it lay in its source, e.g. `cat/0001.png`.
    pub path: Option<String>,
    /// Class, an index into [`ReadSummary::classes`].
    pub label: Option<i64>,
}

impl Sample {
    /// Its pixels.
    ///
    /// Errors: a short reason for people.
    pub fn image(&self) -> Result<RgbImage, String> {
        decode(&self.bytes)
    }
}

/// An image that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// File, or file and row.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What there is to say about a split once it has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadSummary {
    /// Class names by label; empty without labels.
    pub classes: Vec<String>,
    /// Images left out (`on_error: skip`), in their order.
    pub skipped: Vec<Skipped>,
}
