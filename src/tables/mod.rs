//! The program's own tables: a name and the columns of each, which writers and readers share. For tables from other programs see
//! `dataset::table`.

pub mod column;

use std::sync::Arc;

use anyhow::{Context, bail};
use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{Field, Float32Type, Float64Type, Int64Type, Schema, SchemaRef},
};

use column::{Column, *};

/// A table: its name and its columns in order. A name that ends in `*` stands for all tables whose names begin with the part
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [Column],
}

const fn table(name: &'static str, columns: &'static [Column]) -> Table {
    Table { name, columns }
}

/// Shards of images. `sample_id` counts from 0 within the split, across its shards.
pub const TRAIN: Table = table("train-*", &[SAMPLE_ID, IMAGE, LABEL.or_null(), BYTES_SIZE, CONTENT_HASH]);
pub const TEST: Table = table("test-*", TRAIN.columns);
/// Class names.
pub const CLASSES: Table = table("classes", &[LABEL, NAME]);
/// Images that could not be read.
pub const SKIPPED: Table = table("skipped", &[SPLIT, NAME, KIND, REASON]);
/// Files that are no images, by kind.
pub const LEFT_OUT: Table = table("left_out", &[SPLIT, KIND, FILES]);
/// Each image that occurred before, and where it occurred first.
pub const DUPLICATES: Table =
    table("duplicates", &[SPLIT, SAMPLE_ID, LABEL.or_null(), FIRST_SPLIT, FIRST_SAMPLE_ID, FIRST_LABEL]);
/// What a reader of scores should know.
pub const NOTES: Table = table("notes", &[KEY, TEXT]);

/// One row per step. Columns of health are null on steps where health is not measured, `momentum` is null without a momentum
/// branch, and `knn_top1` is null where it was not measured.
pub const METRICS: Table = table(
    "metrics",
    &[
        STEP,
        EPOCH,
        LOSS,
        LEARNING_RATE,
        MOMENTUM,
        STD,
        EFFECTIVE_RANK,
        ALIGNMENT,
        UNIFORMITY,
        MEAN_POSITIVENESS,
        MAX_POSITIVENESS,
        NEIGHBOUR_AGREEMENT,
        KNN_TOP1,
    ],
);
/// Measures of the positives that a method used. The columns are the same for every method.
pub const POSITIVENESS: Table = table(
    "positiveness",
    &[
        STEP,
        EPOCH,
        POSITIVES,
        EFFECTIVE_POSITIVES,
        OWN_SHARE,
        SAME_CLASS_MASS,
        NEIGHBOUR_SAME_CLASS_MASS,
        LABEL_AGREEMENT,
        QUEUE_AGE,
        CHURN,
    ],
);
/// Neighbours of watched images: one row per neighbour, `rank` from 0 (the most similar). Samples and labels are null for rows
/// that the queue held from the start, labels also for images without a label.
pub const NEIGHBOURS: Table = table(
    "neighbours",
    &[STEP, EPOCH, QUERY_SAMPLE, QUERY_LABEL, RANK, NEIGHBOUR_SAMPLE, NEIGHBOUR_LABEL, WEIGHT, SIMILARITY],
);
/// How long each step took.
pub const TIMING: Table = table("timing", &[STEP, SECONDS, WAITING_SECONDS, IMAGES_PER_SECOND]);
/// Final figures of a training.
pub const SUMMARY: Table = table("summary", SCORES.columns);
/// Tensors of the trained encoder, of its heads, of its momentum branch, and of the method's queues.
pub const WEIGHTS: Table = table("weights", &[NAME, SHAPE, DTYPE, BYTES]);
pub const HEADS: Table = table("heads", WEIGHTS.columns);
pub const MOMENTUM_BRANCH: Table = table("momentum", WEIGHTS.columns);
pub const QUEUE: Table = table("queue", WEIGHTS.columns);
/// The state of a training in its checkpoints, and the columns by which the metric rows beside it are put in order.
pub const STATE: Table = table("state", WEIGHTS.columns);
pub const SEGMENT: Table = table("segment", &[STEP, ATTEMPT]);

/// The features that an encoder computes from each image.
pub const FEATURES: Table = table("features", &[SAMPLE_ID, SPLIT, LABEL.or_null(), EMBEDDING]);
/// What the embedding stage records about its encoder, e.g. the hash of its weights.
pub const AUDIT: Table = table("audit", &[KEY, VALUE.holding(Holds::Text)]);

/// Figures of an evaluation.
pub const SCORES: Table = table("scores", &[METRIC, VALUE]);
/// Predictions of the linear probe on the test split, and those of kNN, for every k.
pub const PREDICTIONS: Table = table("predictions", &[SAMPLE_ID, LABEL, PREDICTED, SCORE]);
pub const VOTES: Table = table(PREDICTIONS.name, &[SAMPLE_ID, LABEL, PREDICTED, SCORE, K]);
/// The same predictions on features of the initial weights, if training started from a file of weights.
pub const INITIAL_PREDICTIONS: Table = table("initial_predictions", PREDICTIONS.columns);
pub const INITIAL_VOTES: Table = table(INITIAL_PREDICTIONS.name, VOTES.columns);
/// The linear probe: its training by epoch, its tensors, and the labels of its classes.
pub const CURVE: Table = table("curve", &[EPOCH.holding(Holds::Integer), LOSS, TRAIN_TOP1]);
pub const CLASSIFIER: Table = table("classifier", WEIGHTS.columns);
pub const CLASSIFIER_CLASSES: Table = table("classes", &[LABEL]);

/// The figures of a run, beside its record.
pub const REPORT: Table = table("report", &[METRIC, VALUE.or_null(), STAGE, RUN, SEED]);
/// All finished runs: `created` in seconds since 1970, record and resolved spec as JSON, and the hashes of the files that they
/// were read from.
pub const RUNS: Table = table("runs", &[RUN, NAME, CREATED, RECORD, SPEC, RECORD_SHA256, SPEC_SHA256]);
/// The figures of all finished runs, in the order of the runs.
pub const FIGURES: Table = table("figures", &[RUN, NAME, SEED, METRIC, VALUE.or_null()]);
/// The trainings of all finished runs step by step, in the order of the runs: the run, then the columns of [`METRICS`].
pub const CURVES: Table = table(
    "metrics",
    &[
        RUN,
        STEP,
        EPOCH,
        LOSS,
        LEARNING_RATE,
        MOMENTUM,
        STD,
        EFFECTIVE_RANK,
        ALIGNMENT,
        UNIFORMITY,
        MEAN_POSITIVENESS,
        MAX_POSITIVENESS,
        NEIGHBOUR_AGREEMENT,
        KNN_TOP1,
    ],
);
/// A comparison in long form.
pub const COMPARISON: Table = table("comparison", &[RUN, KIND, KEY, VALUE.holding(Holds::Text).or_null(), NUMBER]);
/// What `snclr embed` writes.
pub const EMBEDDINGS: Table =
    table("embeddings", &[SAMPLE_ID, SPLIT.or_null(), PATH, LABEL.or_null(), IMAGE_SHA256, EMBEDDING]);

impl Table {
    /// Whether `name` is the table's name, or a name that it stands for.
    pub fn is(&self, name: &str) -> bool {
        self.name.strip_suffix('*').map_or(self.name == name, |prefix| name.starts_with(prefix))
    }

    /// The name with this number among those that the table's name stands for, e.g. `train-00001`.
    pub fn numbered(&self, number: usize) -> String {
        format!("{}{number:05}", self.name.trim_end_matches('*'))
    }

    /// Its schema.
    pub fn schema(&self) -> SchemaRef {
        self.schema_of_width(0)
    }

    /// Its schema where vectors have `width` values.
    pub fn schema_of_width(&self, width: usize) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(|column| column.field(width)).collect::<Vec<_>>()))
    }

    /// Rows of the table, by columns.
    ///
    /// # Panics
    /// When `columns` are not the table's columns in order, or have other types or different lengths.
    pub fn rows(&self, columns: impl IntoIterator<Item = (Column, ArrayRef)>) -> RecordBatch {
        let (columns, values): (Vec<Column>, Vec<ArrayRef>) = columns.into_iter().unzip();
        let names = |columns: &[Column]| columns.iter().map(|column| column.name).collect::<Vec<_>>();
        assert_eq!(names(&columns), names(self.columns), "columns of the table `{}`", self.name);
        let fields = self.columns.iter().zip(&values).map(|(column, values)| match column.is_of(values.data_type()) {
            true => Field::new(column.name, values.data_type().clone(), column.nullable),
            false => column.field(0),
        });
        let schema = Schema::new(fields.collect::<Vec<_>>());
        RecordBatch::try_new(schema.into(), values).expect("values are of their columns' types, as many in each")
    }

    /// Rows of a table of two columns of texts.
    ///
    /// # Panics
    /// When the table's columns are not two columns of texts.
    pub fn texts_of(&self, rows: &[(String, String)]) -> RecordBatch {
        self.rows([
            self.columns[0].of(rows.iter().map(|(key, _)| key)),
            self.columns[1].of(rows.iter().map(|(_, text)| text)),
        ])
    }

    /// Only the table's columns, from rows that may have more.
    ///
    /// # Errors
    /// As [`Table::place`].
    pub fn select(&self, rows: &RecordBatch) -> anyhow::Result<RecordBatch> {
        let places = self.columns.iter().map(|column| self.place(*column, rows.schema_ref()));
        Ok(rows.project(&places.collect::<anyhow::Result<Vec<_>>>()?)?)
    }

    /// Index of a column among the columns of a file.
    ///
    /// # Errors
    /// When the column is missing or has another type. The message names the columns that exist.
    pub fn place(&self, column: Column, schema: &Schema) -> anyhow::Result<usize> {
        match schema.column_with_name(column.name) {
            Some((place, field)) if column.is_of(field.data_type()) => Ok(place),
            _ => {
                let there = schema.fields().iter().map(|field| format!("{}: {}", field.name(), field.data_type()));
                let there = there.collect::<Vec<_>>().join(", ");
                bail!("the table `{}` has no column {column}; it has {there}", self.name)
            }
        }
    }

    /// The values of a column.
    ///
    /// # Errors
    /// As [`Table::place`].
    pub fn values<'a>(&self, rows: &'a RecordBatch, column: Column) -> anyhow::Result<&'a ArrayRef> {
        Ok(rows.column(self.place(column, rows.schema_ref())?))
    }

    /// The values of a column of integers.
    ///
    /// # Errors
    /// As [`Table::place`].
    pub fn integers<'a>(&self, rows: &'a RecordBatch, column: Column) -> anyhow::Result<&'a Int64Array> {
        Ok(self.values(rows, column)?.as_primitive::<Int64Type>())
    }

    /// The values of a column of reals.
    ///
    /// # Errors
    /// As [`Table::place`].
    pub fn reals<'a>(&self, rows: &'a RecordBatch, column: Column) -> anyhow::Result<&'a Float64Array> {
        Ok(self.values(rows, column)?.as_primitive::<Float64Type>())
    }

    /// The values of a column of texts.
    ///
    /// # Errors
    /// As [`Table::place`].
    pub fn texts<'a>(&self, rows: &'a RecordBatch, column: Column) -> anyhow::Result<&'a StringArray> {
        Ok(self.values(rows, column)?.as_string())
    }

    /// Width and values of a column of vectors, row by row.
    ///
    /// # Errors
    /// As [`Table::place`].
    pub fn vectors<'a>(&self, rows: &'a RecordBatch, column: Column) -> anyhow::Result<(usize, &'a [f32])> {
        let lists = self.values(rows, column)?.as_fixed_size_list();
        let width = lists.value_length() as usize;
        let values = lists.values().as_primitive::<Float32Type>().values();
        Ok((width, &values[lists.value_offset_at(0)..][..rows.num_rows() * width]))
    }

    /// One part of the image column, e.g. [`BYTES`].
    ///
    /// # Errors
    /// As [`Table::place`].
    pub fn part<'a>(&self, rows: &'a RecordBatch, part: Column) -> anyhow::Result<&'a ArrayRef> {
        let found = self.values(rows, IMAGE)?.as_struct().column_by_name(part.name);
        found.with_context(|| format!("the table `{}` has no column {}.{}", self.name, IMAGE.name, part.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_column_is_named_beside_those_that_there_are() {
        let rows = CURVE.rows([EPOCH.of([1i64, 2]), LOSS.of([0.5, 0.25]), TRAIN_TOP1.of([0.1, 0.2])]);
        assert_eq!(rows.schema(), CURVE.schema());
        assert_eq!(CURVE.reals(&rows, LOSS).unwrap().values(), &[0.5, 0.25]);
        let message = |error: anyhow::Error| error.to_string();
        let has = "epoch: Int64, loss: Float64, train_top1: Float64";
        assert_eq!(
            CURVE.texts(&rows, NAME).map_err(message).unwrap_err(),
            format!("the table `curve` has no column name: Utf8; it has {has}")
        );
        assert_eq!(
            METRICS.reals(&rows, EPOCH).map_err(message).unwrap_err(),
            format!("the table `metrics` has no column epoch: Float64; it has {has}"),
            "one of another type is another column"
        );
    }

    #[test]
    fn vectors_of_some_rows_are_those_rows() {
        let vectors = EMBEDDING.of_vectors(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2);
        let rows = FEATURES.rows([SAMPLE_ID.of(0..3i64), SPLIT.of(["a"; 3]), LABEL.of([None::<i64>; 3]), vectors]);
        assert_eq!(rows.schema(), FEATURES.schema_of_width(2));
        assert_eq!(FEATURES.vectors(&rows.slice(1, 2), EMBEDDING).unwrap(), (2, &[3.0, 4.0, 5.0, 6.0][..]));
        assert_eq!(FEATURES.vectors(&rows.slice(0, 0), EMBEDDING).unwrap(), (2, &[][..]));
    }

    #[test]
    #[should_panic(expected = "columns of the table `notes`")]
    fn what_is_written_are_the_columns_in_their_order() {
        NOTES.rows([TEXT.of(["b"]), KEY.of(["a"])]);
    }

    #[test]
    fn a_star_stands_for_all_names_that_begin_so() {
        assert!(TRAIN.is("train-00001") && !TRAIN.is("test-00001") && CURVE.is("curve") && !CURVE.is("curves"));
    }
}
