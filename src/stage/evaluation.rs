//! The inputs and outputs that both evaluation stages share: features in; `scores`, `notes` and further tables out.

use anyhow::ensure;
use arrow::array::RecordBatch;

use super::{
    Depends, Input, Progress, Stage,
    features::{self, SplitFeatures},
    labelled::{Predictions, Task},
};
use crate::{
    artifact::{Artifact, ArtifactWriter, Kind},
    tables::{self, Table, column::*},
};

/// The features that an evaluation reads: those of the trained encoder and of its controls.
pub const INPUTS: [Input; 3] =
    [features_of(Stage::Embed), features_of(Stage::EmbedRandomInit), features_of(Stage::EmbedInitial)];

/// A value for each set of features to score. All sets are of the same samples.
pub struct Scored<T> {
    pub trained: T,
    /// Control: the encoder with random weights.
    pub random_init: T,
    /// Control: the weights of `encoder.init`; None if training started from random weights.
    pub initial: Option<T>,
}

impl<T> Scored<T> {
    /// Applies `f` to each value.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<Scored<U>, E> {
        Ok(Scored {
            trained: f(self.trained)?,
            random_init: f(self.random_init)?,
            initial: self.initial.map(f).transpose()?,
        })
    }

    /// References to the values.
    pub fn as_ref(&self) -> Scored<&T> {
        Scored { trained: &self.trained, random_init: &self.random_init, initial: self.initial.as_ref() }
    }

    /// The values of the controls.
    pub fn controls(&self) -> impl Iterator<Item = &T> {
        [Some(&self.random_init), self.initial.as_ref()].into_iter().flatten()
    }

    /// Mutable references to all values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        [Some(&mut self.trained), Some(&mut self.random_init), self.initial.as_mut()].into_iter().flatten()
    }
}

impl Scored<&Artifact> {
    /// Reads the features.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn features(self) -> anyhow::Result<Scored<SplitFeatures>> {
        self.map(|artifact| features::read(artifact.read(tables::FEATURES.name)?))
    }
}

impl Scored<SplitFeatures> {
    /// The classification tasks on these features, or why there is none.
    ///
    /// # Errors
    /// When their samples differ.
    pub fn tasks(self) -> anyhow::Result<Result<Scored<Task>, String>> {
        let tasks = match self.map(Task::new) {
            Ok(tasks) => tasks,
            Err(why) => return Ok(Err(why)),
        };
        let ids = |task: &Task| (task.train.ids.clone(), task.test.ids.clone());
        ensure!(
            tasks.controls().all(|control| ids(control) == ids(&tasks.trained)),
            "the features of the trained encoder and of a control are for different samples"
        );
        Ok(Ok(tasks))
    }
}

const fn features_of(stage: Stage) -> Input {
    Input { stage, table: tables::FEATURES, depends: Depends::All }
}

/// Scores, notes and further tables.
#[derive(Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Metric and value; accuracies are fractions.
    pub scores: Vec<(String, f64)>,
    /// Notes for readers of the scores: key and text.
    pub notes: Vec<(String, String)>,
    /// Further tables.
    pub tables: Vec<(Table, RecordBatch)>,
}

impl Evaluation {
    /// The tasks on these features, with an evaluation to fill. If there is no task, a complete evaluation that says why.
    ///
    /// # Errors
    /// As [`Scored::tasks`].
    pub fn begin(
        stage: &str,
        features: Scored<SplitFeatures>,
        progress: &dyn Progress,
    ) -> anyhow::Result<Result<(Scored<Task>, Evaluation), Evaluation>> {
        let tasks = match features.tasks()? {
            Ok(tasks) => tasks,
            Err(why) => {
                progress.log(&format!("{stage}: skipped, {why}"));
                return Ok(Err(Evaluation::skipped(why)));
            }
        };
        let (mut evaluation, unlabelled) = (Evaluation::default(), tasks.trained.unlabelled);
        if unlabelled > 0 {
            evaluation.note("unlabelled", format!("{unlabelled} samples without a label were omitted"));
        }
        Ok(Ok((tasks, evaluation)))
    }

    /// An evaluation without scores, with the reason as a note.
    pub fn skipped(why: String) -> Self {
        Evaluation { notes: vec![("skipped".into(), format!("skipped, {why}"))], ..Evaluation::default() }
    }

    /// Adds a score.
    pub fn score(&mut self, metric: impl Into<String>, value: f64) {
        self.scores.push((metric.into(), value));
    }

    /// Adds a note.
    pub fn note(&mut self, key: &str, text: String) {
        self.notes.push((key.into(), text));
    }

    /// Value of a metric.
    #[cfg(test)]
    pub fn get(&self, metric: &str) -> Option<f64> {
        self.scores.iter().find(|(name, _)| name == metric).map(|&(_, value)| value)
    }

    /// Writes every table.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write(&self, out: &mut ArtifactWriter) -> anyhow::Result<()> {
        out.whole(&tables::SCORES, Kind::Content, &scores_rows(&self.scores))?;
        out.whole(&tables::NOTES, Kind::Content, &tables::NOTES.texts_of(&self.notes))?;
        self.tables.iter().try_for_each(|(table, rows)| out.whole(table, Kind::Content, rows))
    }
}

/// Builds the rows of a table of metrics.
pub fn scores_rows(scores: &[(String, f64)]) -> RecordBatch {
    tables::SCORES
        .rows([METRIC.of(scores.iter().map(|(metric, _)| metric)), VALUE.of(scores.iter().map(|(_, value)| *value))])
}

/// Builds the rows of a table of predictions: a block per (k, predictions), if the table has a column for k.
pub fn predictions_rows(table: Table, task: &Task, blocks: &[(Option<usize>, &Predictions)]) -> (Table, RecordBatch) {
    let flat = || blocks.iter().flat_map(|(_, predictions)| predictions.iter());
    let ks = blocks.iter().flat_map(|(k, _)| std::iter::repeat_n(k.unwrap_or(0) as i64, task.test.ids.len()));
    let columns = [
        SAMPLE_ID.of(task.test.ids.repeat(blocks.len())),
        LABEL.of(task.test.labels.repeat(blocks.len())),
        PREDICTED.of(flat().map(|&(class, _)| task.classes[class])),
        SCORE.of(flat().map(|&(_, score)| score)),
        K.of(ks),
    ];
    (table, table.rows(columns.into_iter().filter(|(column, _)| table.columns.contains(column))))
}
