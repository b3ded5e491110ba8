//! Predictions per sample, as evaluations keep them: the one reader behind comparison, diff and HTML page.

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

/// What a sample of the test split was taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// Its number in the split.
    pub sample: i64,
    pub label: i64,
    pub predicted: i64,
}

impl Prediction {
    /// Whether it is right.
    pub fn is_right(&self) -> bool {
        self.predicted == self.label
    }
}

/// Predictions of one classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classifier {
    /// Neighbours that vote; None for the linear probe.
    pub k: Option<i64>,
    /// In the order of the table.
    pub predictions: Vec<Prediction>,
}

/// The classifiers of an evaluation, in the order of its table: the score is that of the first. None where it was skipped.
///
/// # Errors
/// When the table cannot be read or does not have its columns.
pub fn read(evaluation: &Artifact) -> anyhow::Result<Vec<Classifier>> {
    read_table(evaluation, VOTES)
}

/// Like [`read`], of the weights that training started from. None where it started from random ones.
///
/// # Errors
/// As there.
pub fn read_initial(evaluation: &Artifact) -> anyhow::Result<Vec<Classifier>> {
    read_table(evaluation, INITIAL_VOTES)
}

/// kNN has votes for every k; the linear probe's table is called alike and has no such column.
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
        // Rows of a classifier lie together: it is the last one, or a new one.
        let at = found.iter().rposition(|classifier| classifier.k == k).unwrap_or_else(|| {
            found.push(Classifier { k, predictions: Vec::new() });
            found.len() - 1
        });
        found[at].predictions.push(Prediction { sample, label, predicted });
    }
    Ok(found)
}

/// Stands for the samples of the test split: equal for equal images and labels in equal order, whatever their files are called.
/// None when the data are gone.
pub fn test_split(store: &Store, run: &Run) -> Option<String> {
    let data = artifacts::find(store, run, data::DESCRIPTOR.name)?;
    let test = |input: &&Input| input.stage == Stage::Data && input.table == tables::TEST;
    embed::DESCRIPTOR.inputs.iter().find(test).map(|input| input.content(&data))
}
