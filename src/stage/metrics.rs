//! Tables of a training run: one row of metrics and one of timing per step, one of its positives every few steps, and the
//! neighbours of a few images.

use std::sync::Arc;

use arrow::{
    array::{Array, Float64Array, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use crate::train::{Health, Neighbour, Positiveness, StepRow};

/// A column's name and its value in a row of health metrics or of positives.
type Column<T> = (&'static str, fn(&T) -> f64);

/// NaN (there are no neighbours, no labels) becomes null.
const HEALTH: [Column<Health>; 7] = [
    ("std", |h| h.std),
    ("effective_rank", |h| h.effective_rank),
    ("alignment", |h| h.alignment),
    ("uniformity", |h| h.uniformity),
    ("mean_positiveness", |h| h.mean_positiveness),
    ("max_positiveness", |h| h.max_positiveness),
    ("neighbour_agreement", |h| h.neighbour_agreement),
];

/// The same for every method; NaN becomes null.
const POSITIVENESS: [Column<Positiveness>; 8] = [
    ("positives", |p| p.positives),
    ("effective_positives", |p| p.effective_positives),
    ("own_share", |p| p.own_share),
    ("same_class_mass", |p| p.same_class_mass),
    ("neighbour_same_class_mass", |p| p.neighbour_same_class_mass),
    ("label_agreement", |p| p.label_agreement),
    ("queue_age", |p| p.queue_age),
    ("churn", |p| p.churn),
];

/// Schema of the metrics; health columns are null on steps without health metrics, momentum without a momentum
/// branch, knn_top1 where it was not measured.
pub fn metrics_schema() -> SchemaRef {
    let mut fields = vec![Field::new("step", DataType::Int64, false)];
    fields.extend(["epoch", "loss", "learning_rate"].map(|n| Field::new(n, DataType::Float64, false)));
    fields.push(Field::new("momentum", DataType::Float64, true));
    fields.extend(HEALTH.map(|(name, _)| Field::new(name, DataType::Float64, true)));
    fields.push(Field::new("knn_top1", DataType::Float64, true));
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
    let mut fields = vec![Field::new("step", DataType::Int64, false), Field::new("epoch", DataType::Float64, false)];
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
        Field::new("step", DataType::Int64, false),
        Field::new("epoch", DataType::Float64, false),
        Field::new("query_sample", DataType::Int64, false),
        Field::new("query_label", DataType::Int64, true),
        Field::new("rank", DataType::Int64, false),
        Field::new("neighbour_sample", DataType::Int64, true),
        Field::new("neighbour_label", DataType::Int64, true),
        Field::new("weight", DataType::Float64, false),
        Field::new("similarity", DataType::Float64, false),
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
    let mut fields = vec![Field::new("step", DataType::Int64, false)];
    fields.extend(["seconds", "waiting_seconds", "images_per_second"].map(|n| Field::new(n, DataType::Float64, false)));
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
