//! Reads the predictions per sample that evaluations write, for comparisons, diffs and HTML pages.

use anyhow::Context;

use super::{
    Run,
    artifacts::{self, Table},
};
use crate::{
    artifact::{Artifact, Store},
    stage::{Input, Stage, data, embed, knn},
    tables::{self, INITIAL_VOTES, VOTES, column::*},
};

/// The prediction for one test sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// Number of the sample in the split.
    pub sample: i64,
    pub label: i64,
    pub predicted: i64,
}

impl Prediction {
    /// Whether the prediction is right.
    pub fn is_right(&self) -> bool {
        self.predicted == self.label
    }
}

/// Predictions of one classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classifier {
    /// Number of voting neighbours; None for the linear probe.
    pub k: Option<i64>,
    /// In the order of the table.
    pub predictions: Vec<Prediction>,
}

/// The classifiers of an evaluation, in the order of its table. The first one gives the score of the run. Empty if the evaluation
/// was skipped.
///
/// # Errors
/// When the table cannot be read or lacks a column.
pub fn read(evaluation: &Artifact) -> anyhow::Result<Vec<Classifier>> {
    read_table(evaluation, VOTES)
}

/// Like [`read`], for the weights that training started from. Empty if these were random.
///
/// # Errors
/// As [`read`].
pub fn read_initial(evaluation: &Artifact) -> anyhow::Result<Vec<Classifier>> {
    read_table(evaluation, INITIAL_VOTES)
}

/// Reads a table of predictions. The table of kNN has a column with k; the table of the linear probe has none.
fn read_table(evaluation: &Artifact, votes: tables::Table) -> anyhow::Result<Vec<Classifier>> {
    let table = Table::read(evaluation, votes)?;
    let column = |column| {
        let of = || format!("the predictions of {} {}", evaluation.stage(), evaluation.stage_key());
        table.integers(column).with_context(of)
    };
    let (samples, labels, predicted) = (column(SAMPLE_ID)?, column(LABEL)?, column(PREDICTED)?);
    let ks = if evaluation.stage() == knn::DESCRIPTOR.name { column(K)? } else { Vec::new() };
    let mut found: Vec<Classifier> = Vec::new();
    for row in 0..table.len() {
        let (Some(sample), Some(label), Some(predicted)) = (samples[row], labels[row], predicted[row]) else {
            continue;
        };
        let k = ks.get(row).copied().flatten();
        // The rows of a classifier are consecutive, so this row belongs to the last classifier or to a new one.
        let at = found.iter().rposition(|classifier| classifier.k == k).unwrap_or_else(|| {
            found.push(Classifier { k, predictions: Vec::new() });
            found.len() - 1
        });
        found[at].predictions.push(Prediction { sample, label, predicted });
    }
    Ok(found)
}

/// A content hash of the test split. It is the same for the same images and labels in the same order, regardless of file names.
/// None if the data is missing.
pub fn test_split(store: &Store, run: &Run) -> Option<String> {
    let data = artifacts::find(store, run, data::DESCRIPTOR.name)?;
    let test = |input: &&Input| input.stage == Stage::Data && input.table == tables::TEST;
    embed::DESCRIPTOR.inputs.iter().find(test).map(|input| input.content(&data))
}
