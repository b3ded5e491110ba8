//! Duplicate images: which of them cast doubt on scores, and the table that lists them.

use anyhow::Context;
use arrow::array::RecordBatch;

use crate::{
    artifact::Artifact,
    dataset::SplitName,
    tables::{self, column::*},
};

/// A sample of the data: split, number and label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub split: SplitName,
    pub id: i64,
    pub label: Option<i64>,
}

/// An exact duplicate of an earlier image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    pub again: Place,
    pub first: Place,
}

impl Duplicate {
    /// Whether the image is in both splits, so that a test image was seen in training.
    pub fn leaks(&self) -> bool {
        self.again.split != self.first.split
    }

    /// Whether the image has two different labels.
    pub fn conflicts(&self) -> bool {
        self.again.label.zip(self.first.label).is_some_and(|(again, first)| again != first)
    }

    /// Whether the duplicate casts doubt on scores. A duplicate within one split and class does not.
    pub fn matters(&self) -> bool {
        self.leaks() || self.conflicts()
    }
}

/// Builds the rows of the table `duplicates`.
pub fn rows(duplicates: &[Duplicate]) -> RecordBatch {
    let (again, first) = (|| duplicates.iter().map(|d| d.again), || duplicates.iter().map(|d| d.first));
    tables::DUPLICATES.rows([
        SPLIT.of(again().map(|place| place.split.as_str())),
        SAMPLE_ID.of(again().map(|place| place.id)),
        LABEL.of(again().map(|place| place.label)),
        FIRST_SPLIT.of(first().map(|place| place.split.as_str())),
        FIRST_SAMPLE_ID.of(first().map(|place| place.id)),
        FIRST_LABEL.of(first().map(|place| place.label)),
    ])
}

/// Reads the duplicates of a data artifact.
///
/// # Errors
/// When the table cannot be read.
pub fn read(data: &Artifact) -> anyhow::Result<Vec<Duplicate>> {
    let mut found = Vec::new();
    for batch in data.rows_of(&tables::DUPLICATES)? {
        let batch = batch?;
        let side = |split, id, label| -> anyhow::Result<Vec<Place>> {
            let splits = tables::DUPLICATES.texts(&batch, split)?;
            let ids = tables::DUPLICATES.integers(&batch, id)?;
            let rows = splits.iter().zip(ids.values()).zip(tables::DUPLICATES.integers(&batch, label)?);
            let place = |((split, id), label): ((Option<&str>, &i64), _)| {
                let split = split.and_then(SplitName::named).context("a duplicate in an unknown split")?;
                Ok(Place { split, id: *id, label })
            };
            rows.map(place).collect()
        };
        let pairs = side(SPLIT, SAMPLE_ID, LABEL)?.into_iter().zip(side(FIRST_SPLIT, FIRST_SAMPLE_ID, FIRST_LABEL)?);
        found.extend(pairs.map(|(again, first)| Duplicate { again, first }));
    }
    Ok(found)
}
