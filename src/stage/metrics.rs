//! Tables of a training run: one row of metrics and one of timing per step, one of its positives every few steps, and the
//! neighbours of a few images.

use std::sync::Arc;

use arrow::{
    array::{Array, Float64Array, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use super::column;
use crate::train::{Health, Neighbour, Positiveness, StepRow};

/// A column's name and its value in a row of health metrics or of positives.
type Column<T> = (&'static str, fn(&T) -> f64);

/// NaN (there are no neighbours, no labels) becomes null.
const HEALTH: [Column<Health>; 7] = [
    (column::STD, |h| h.std),
    (column::EFFECTIVE_RANK, |h| h.effective_rank),
    (column::ALIGNMENT, |h| h.alignment),
    (column::UNIFORMITY, |h| h.uniformity),
    (column::MEAN_POSITIVENESS, |h| h.mean_positiveness),
    (column::MAX_POSITIVENESS, |h| h.max_positiveness),
    (column::NEIGHBOUR_AGREEMENT, |h| h.neighbour_agreement),
];

/// The same for every method; NaN becomes null.
const POSITIVENESS: [Column<Positiveness>; 8] = [
    (column::POSITIVES, |p| p.positives),
    (column::EFFECTIVE_POSITIVES, |p| p.effective_positives),
    (column::OWN_SHARE, |p| p.own_share),
    (column::SAME_CLASS_MASS, |p| p.same_class_mass),
    (column::NEIGHBOUR_SAME_CLASS_MASS, |p| p.neighbour_same_class_mass),
    (column::LABEL_AGREEMENT, |p| p.label_agreement),
    (column::QUEUE_AGE, |p| p.queue_age),
    (column::CHURN, |p| p.churn),
];

/// Schema of the metrics; health columns are null on steps without health metrics, momentum without a momentum
/// branch, knn_top1 where it was not measured.
pub fn metrics_schema() -> SchemaRef {
    let mut fields = vec![Field::new(column::STEP, DataType::Int64, false)];
    fields
        .extend([column::EPOCH, column::LOSS, column::LEARNING_RATE].map(|n| Field::new(n, DataType::Float64, false)));
    fields.push(Field::new(column::MOMENTUM, DataType::Float64, true));
    fields.extend(HEALTH.map(|(name, _)| Field::new(name, DataType::Float64, true)));
    fields.push(Field::new(column::KNN_TOP1, DataType::Float64, true));
    Arc::new(Schema::new(fields))
}

/// Rows of metrics.
pub fn metrics_rows(rows: &[StepRow]) -> RecordBatch {
    let column = |value: fn(&StepRow) -> f64| -> Arc<dyn Array> {
        Arc::new(Float64Array::from_iter_values(rows.iter().map(value)))
    };
    let nullable = |value: &dyn Fn(&StepRow) -> Option<f64>| -> Arc<dyn Array> {
        Arc::new(rows.iter().map(|r| value(r).filter(|v| !v.is_nan())).collect::<Float64Array>())
    };
    let mut columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.step as i64))),
        column(|r| r.epoch),
        column(|r| r.loss),
        column(|r| r.learning_rate),
        nullable(&|r| Some(r.momentum)),
    ];
    columns.extend(HEALTH.map(|(_, value)| nullable(&|r| r.diagnosis.as_ref().map(|(health, _)| value(health)))));
    columns.push(nullable(&|r| r.knn_top1));
    RecordBatch::try_new(metrics_schema(), columns).expect("columns follow the schema")
}

/// Schema of the positives that a method used.
pub fn positiveness_schema() -> SchemaRef {
    let mut fields =
        vec![Field::new(column::STEP, DataType::Int64, false), Field::new(column::EPOCH, DataType::Float64, false)];
    fields.extend(POSITIVENESS.map(|(name, _)| Field::new(name, DataType::Float64, true)));
    Arc::new(Schema::new(fields))
}

/// Rows of positives; steps without a diagnosis have none.
pub fn positiveness_rows(rows: &[StepRow]) -> RecordBatch {
    let rows: Vec<_> = rows.iter().filter_map(|r| Some((r, &r.diagnosis.as_ref()?.1))).collect();
    let mut columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(r, _)| r.step as i64))),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|(r, _)| r.epoch))),
    ];
    columns.extend(POSITIVENESS.map(|(_, value)| -> Arc<dyn Array> {
        Arc::new(rows.iter().map(|(_, p)| Some(value(p)).filter(|v| !v.is_nan())).collect::<Float64Array>())
    }));
    RecordBatch::try_new(positiveness_schema(), columns).expect("columns follow the schema")
}

/// Schema of the neighbours of watched images: one row per neighbour, `rank` from 0 (the most similar). Samples and labels
/// are null for rows that the queue held from the start, and where there is no label.
pub fn neighbours_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(column::STEP, DataType::Int64, false),
        Field::new(column::EPOCH, DataType::Float64, false),
        Field::new(column::QUERY_SAMPLE, DataType::Int64, false),
        Field::new(column::QUERY_LABEL, DataType::Int64, true),
        Field::new(column::RANK, DataType::Int64, false),
        Field::new(column::NEIGHBOUR_SAMPLE, DataType::Int64, true),
        Field::new(column::NEIGHBOUR_LABEL, DataType::Int64, true),
        Field::new(column::WEIGHT, DataType::Float64, false),
        Field::new(column::SIMILARITY, DataType::Float64, false),
    ]))
}

/// Rows of neighbours; steps without a watched image have none.
pub fn neighbours_rows(rows: &[StepRow]) -> RecordBatch {
    let rows: Vec<_> = rows.iter().flat_map(|r| r.neighbours.iter().map(move |neighbour| (r, neighbour))).collect();
    let integers = |value: fn(&Neighbour) -> i64| -> Arc<dyn Array> {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, n)| value(n))))
    };
    let known = |value: fn(&Neighbour) -> i64| -> Arc<dyn Array> {
        Arc::new(rows.iter().map(|(_, n)| Some(value(n)).filter(|v| *v >= 0)).collect::<Int64Array>())
    };
    let reals = |value: fn(&Neighbour) -> f64| -> Arc<dyn Array> {
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|(_, n)| value(n))))
    };
    let columns = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(r, _)| r.step as i64))) as Arc<dyn Array>,
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|(r, _)| r.epoch))),
        integers(|n| n.query),
        known(|n| n.query_label),
        integers(|n| n.rank as i64),
        known(|n| n.sample),
        known(|n| n.label),
        reals(|n| n.weight),
        reals(|n| n.similarity),
    ];
    RecordBatch::try_new(neighbours_schema(), columns).expect("columns follow the schema")
}

/// Wall-clock figures of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    pub step: u64,
    /// Of the whole step, waiting for the batch included.
    pub seconds: f64,
    /// Spent waiting for the batch.
    pub waiting_seconds: f64,
    pub images_per_second: f64,
}

/// Schema of the timing.
pub fn timing_schema() -> SchemaRef {
    let mut fields = vec![Field::new(column::STEP, DataType::Int64, false)];
    fields.extend(
        [column::SECONDS, column::WAITING_SECONDS, column::IMAGES_PER_SECOND]
            .map(|n| Field::new(n, DataType::Float64, false)),
    );
    Arc::new(Schema::new(fields))
}

/// Rows of timing.
pub fn timing_rows(rows: &[Timing]) -> RecordBatch {
    let column = |value: fn(&Timing) -> f64| -> Arc<dyn Array> {
        Arc::new(Float64Array::from_iter_values(rows.iter().map(value)))
    };
    let columns = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.step as i64))) as Arc<dyn Array>,
        column(|r| r.seconds),
        column(|r| r.waiting_seconds),
        column(|r| r.images_per_second),
    ];
    RecordBatch::try_new(timing_schema(), columns).expect("columns follow the schema")
}
