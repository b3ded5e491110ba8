//! What an evaluation stage writes: `scores`, `notes` and tables of its own.

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

/// What an evaluation reads: the features of the trained encoder, and of the controls that there are.
pub const INPUTS: [Input; 3] =
    [features_of(Stage::Embed), features_of(Stage::EmbedRandomInit), features_of(Stage::EmbedInitial)];

/// Features that are scored, each of the same samples.
pub struct Scored<T> {
    pub trained: T,
    /// Control: the encoder as random initialisation leaves it.
    pub random_init: T,
    /// Control: the weights that training started from; None where it started from random ones.
    pub initial: Option<T>,
}

impl<T> Scored<T> {
    /// `f` of each.
    ///
    /// # Errors
    /// The first one of `f`.
    pub fn map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<Scored<U>, E> {
        Ok(Scored {
            trained: f(self.trained)?,
            random_init: f(self.random_init)?,
            initial: self.initial.map(f).transpose()?,
        })
    }

    /// References to them.
    pub fn as_ref(&self) -> Scored<&T> {
        Scored { trained: &self.trained, random_init: &self.random_init, initial: self.initial.as_ref() }
    }

    /// The controls.
    pub fn controls(&self) -> impl Iterator<Item = &T> {
        [Some(&self.random_init), self.initial.as_ref()].into_iter().flatten()
    }

    /// All of them, to be changed.
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
    /// The tasks that the features pose, or why they pose none.
    ///
    /// # Errors
    /// When they are of different samples.
    pub fn tasks(self) -> anyhow::Result<Result<Scored<Task>, String>> {
        let tasks = match self.map(Task::new) {
            Ok(tasks) => tasks,
            Err(why) => return Ok(Err(why)),
        };
        let ids = |task: &Task| (task.train.ids.clone(), task.test.ids.clone());
        ensure!(
            tasks.controls().all(|control| ids(control) == ids(&tasks.trained)),
            "the features of the trained encoder and of a control are of different samples"
        );
        Ok(Ok(tasks))
    }
}

const fn features_of(stage: Stage) -> Input {
    Input { stage, table: tables::FEATURES, depends: Depends::All }
}

/// Scores and what goes with them.
#[derive(Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Metric and value; accuracies are fractions.
    pub scores: Vec<(String, f64)>,
    /// What a reader of the scores should know: key and text.
    pub notes: Vec<(String, String)>,
    /// Further tables.
    pub tables: Vec<(Table, RecordBatch)>,
}

impl Evaluation {
    /// The tasks that the features pose, and the evaluation of them, yet without scores; where they pose none, what there is instead.
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
            evaluation.note("unlabelled", format!("{unlabelled} samples without a label were left out"));
        }
        Ok(Ok((tasks, evaluation)))
    }

    /// No scores, and why.
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
    /// When the disk does not take them.
    pub fn write(&self, out: &mut ArtifactWriter) -> anyhow::Result<()> {
        out.whole(&tables::SCORES, Kind::Content, &scores_rows(&self.scores))?;
        out.whole(&tables::NOTES, Kind::Content, &tables::NOTES.texts_of(&self.notes))?;
        self.tables.iter().try_for_each(|(table, rows)| out.whole(table, Kind::Content, rows))
    }
}

/// Rows of a table of figures.
pub fn scores_rows(scores: &[(String, f64)]) -> RecordBatch {
    tables::SCORES
        .rows([METRIC.of(scores.iter().map(|(metric, _)| metric)), VALUE.of(scores.iter().map(|(_, value)| *value))])
}

/// The rows of a table of predictions, one block per (k, predictions), where it has a column of k.
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
