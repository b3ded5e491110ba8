//! Tables of a training run: one row of metrics and one of timing per step.

use std::sync::Arc;

use arrow::{
    array::{Array, Float64Array, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use crate::train::{Health, StepRow};

/// A health column's name and its value.
type HealthColumn = (&'static str, fn(&Health) -> f64);

/// NaN (there are no neighbours, no labels) becomes null.
const HEALTH: [HealthColumn; 7] = [
    ("std", |h| h.std),
    ("effective_rank", |h| h.effective_rank),
    ("alignment", |h| h.alignment),
    ("uniformity", |h| h.uniformity),
    ("mean_positiveness", |h| h.mean_positiveness),
    ("max_positiveness", |h| h.max_positiveness),
    ("neighbour_agreement", |h| h.neighbour_agreement),
];

/// Schema of the metrics; health columns are null on steps without health metrics.
pub fn metrics_schema() -> SchemaRef {
    let mut fields = vec![Field::new("step", DataType::Int64, false)];
    fields.extend(["epoch", "loss", "learning_rate", "momentum"].map(|n| Field::new(n, DataType::Float64, false)));
    fields.extend(HEALTH.map(|(name, _)| Field::new(name, DataType::Float64, true)));
    Arc::new(Schema::new(fields))
}

/// Rows of metrics.
pub fn metrics_rows(rows: &[StepRow]) -> RecordBatch {
    let column = |value: fn(&StepRow) -> f64| -> Arc<dyn Array> {
        Arc::new(Float64Array::from_iter_values(rows.iter().map(value)))
    };
    let mut columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.step as i64))),
        column(|r| r.epoch),
        column(|r| r.loss),
        column(|r| r.learning_rate),
        column(|r| r.momentum),
    ];
    for (_, value) in HEALTH {
        let values = rows.iter().map(|r| r.health.as_ref().map(value).filter(|v| !v.is_nan()));
        columns.push(Arc::new(values.collect::<Float64Array>()));
    }
    RecordBatch::try_new(metrics_schema(), columns).expect("columns follow the schema")
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
