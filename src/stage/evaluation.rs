//! What an evaluation stage writes: `scores`, `notes` and tables of its own.

use std::sync::Arc;

use anyhow::ensure;
use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use super::{
    Depends, Input, Progress, Stage,
    features::{self, SplitFeatures},
    labelled::{Predictions, Task},
};
use crate::artifact::{Artifact, ArtifactWriter, Kind};

/// What an evaluation reads: the features of the trained encoder, and of the controls that there are.
pub const INPUTS: [Input; 3] =
    [features_of(Stage::Embed), features_of(Stage::EmbedRandomInit), features_of(Stage::EmbedInitial)];

/// Table of predictions on the features of the trained encoder.
pub const PREDICTIONS: &str = "predictions";

/// Table of predictions on the features of the weights that training started from, where a file gave them.
pub const INITIAL_PREDICTIONS: &str = "initial_predictions";

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
        self.map(|artifact| features::read(artifact.read(features::TABLE)?))
    }
}

impl Scored<SplitFeatures> {
    /// What `score` writes of the tasks that the features pose; where they pose none, why `stage` was skipped.
    ///
    /// # Errors
    /// When they are of different samples, and those of `score`.
    pub fn evaluate(
        self,
        stage: &str,
        progress: &dyn Progress,
        score: impl FnOnce(Scored<Task>, &mut Evaluation) -> anyhow::Result<()>,
    ) -> anyhow::Result<Evaluation> {
        let tasks = match self.map(Task::new) {
            Ok(tasks) => tasks,
            Err(why) => {
                progress.log(&format!("{stage}: skipped, {why}"));
                return Ok(Evaluation::skipped(&why));
            }
        };
        let ids = |task: &Task| (task.train.ids.clone(), task.test.ids.clone());
        ensure!(
            tasks.controls().all(|control| ids(control) == ids(&tasks.trained)),
            "the features of the trained encoder and of a control are of different samples"
        );
        let mut result = Evaluation::default();
        if tasks.trained.unlabelled > 0 {
            result.note("unlabelled", format!("{} samples without a label were left out", tasks.trained.unlabelled));
        }
        score(tasks, &mut result)?;
        Ok(result)
    }
}

const fn features_of(stage: Stage) -> Input {
    Input { stage, tables: features::TABLE, depends: Depends::All }
}

/// Scores and what goes with them.
#[derive(Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Metric and value; accuracies are fractions.
    pub scores: Vec<(String, f64)>,
    /// What a reader of the scores should know: key and text.
    pub notes: Vec<(String, String)>,
    /// Further tables.
    pub tables: Vec<(&'static str, RecordBatch)>,
}

impl Evaluation {
    /// No scores, and why.
    fn skipped(why: &str) -> Self {
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
        let scores = scores_batch(&self.scores);
        let notes = text_batch("text", &self.notes);
        for (name, batch) in [("scores", &scores), ("notes", &notes)]
            .into_iter()
            .chain(self.tables.iter().map(|(name, batch)| (*name, batch)))
        {
            let mut table = out.table(name, batch.schema(), Kind::Content)?;
            table.write(batch)?;
            table.finish()?;
        }
        Ok(())
    }
}

/// Schema of `scores`: `metric`, `value`.
pub fn scores_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("metric", DataType::Utf8, false),
        Field::new("value", DataType::Float64, false),
    ]))
}

fn scores_batch(scores: &[(String, f64)]) -> RecordBatch {
    let metrics = StringArray::from_iter_values(scores.iter().map(|(metric, _)| metric));
    let values = Float64Array::from_iter_values(scores.iter().map(|&(_, value)| value));
    RecordBatch::try_new(scores_schema(), vec![Arc::new(metrics), Arc::new(values)]).expect("columns follow the schema")
}

/// Rows of `key` and a text column called `column`.
pub fn text_batch(column: &str, rows: &[(String, String)]) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("key", DataType::Utf8, false), Field::new(column, DataType::Utf8, false)]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, _)| key))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, text)| text))),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).expect("columns follow the schema")
}

/// The `predictions` table, one block of rows per (k, predictions); without a k, the table has no such column.
pub fn predictions_batch(task: &Task, blocks: &[(Option<usize>, &Predictions)]) -> RecordBatch {
    let mut fields = vec![
        Field::new("sample_id", DataType::Int64, false),
        Field::new("label", DataType::Int64, false),
        Field::new("predicted", DataType::Int64, false),
        Field::new("score", DataType::Float64, false),
    ];
    let n = task.test.ids.len();
    let repeat = |values: &[i64]| Arc::new(Int64Array::from_iter_values(values.repeat(blocks.len()))) as ArrayRef;
    let flat = || blocks.iter().flat_map(|(_, predictions)| predictions.iter());
    let mut columns = vec![
        repeat(&task.test.ids),
        repeat(&task.test.labels),
        Arc::new(Int64Array::from_iter_values(flat().map(|&(class, _)| task.classes[class]))),
        Arc::new(Float64Array::from_iter_values(flat().map(|&(_, score)| score))),
    ];
    if blocks.iter().all(|(k, _)| k.is_some()) {
        fields.push(Field::new("k", DataType::Int64, false));
        let ks = blocks.iter().flat_map(|(k, _)| std::iter::repeat_n(k.unwrap_or(0) as i64, n));
        columns.push(Arc::new(Int64Array::from_iter_values(ks)));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("one prediction per test sample")
}
