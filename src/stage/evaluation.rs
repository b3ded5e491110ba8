//! What an evaluation stage writes: `scores`, `notes` and tables of its own.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use super::{
    Depends, Input, Stage, features,
    labelled::{Predictions, Task},
};
use crate::artifact::{ArtifactWriter, Kind};

/// What an evaluation reads: the features of the trained encoder, and of the control.
pub const INPUTS: [Input; 2] = [features_of(Stage::Embed), features_of(Stage::EmbedRandomInit)];

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
