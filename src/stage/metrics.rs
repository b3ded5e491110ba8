//! Builds the tables of a training: a row of metrics and a row of timing per step, a row of positives every few steps, and the
//! neighbours of a few images.

use arrow::array::{Array, Float64Array, RecordBatch};

use crate::{
    tables::{self, METRICS, NEIGHBOURS, TIMING, column::*},
    train::{Health, Positiveness, StepRow, Watched, WatchedHealth},
};

/// A column and its value in a row of health metrics or of positives.
type Of<T> = (Column, fn(&T) -> f64);

/// The columns of health metrics. NaN (without neighbours or labels) becomes null.
const HEALTH: [Of<Health>; 7] = [
    (STD, |h| h.std),
    (EFFECTIVE_RANK, |h| h.effective_rank),
    (ALIGNMENT, |h| h.alignment),
    (UNIFORMITY, |h| h.uniformity),
    (MEAN_POSITIVENESS, |h| h.mean_positiveness),
    (MAX_POSITIVENESS, |h| h.max_positiveness),
    (NEIGHBOUR_AGREEMENT, |h| h.neighbour_agreement),
];

/// The columns of positives, which are the same for every method. NaN becomes null.
const POSITIVENESS: [Of<Positiveness>; 8] = [
    (POSITIVES, |p| p.positives),
    (EFFECTIVE_POSITIVES, |p| p.effective_positives),
    (OWN_SHARE, |p| p.own_share),
    (SAME_CLASS_MASS, |p| p.same_class_mass),
    (NEIGHBOUR_SAME_CLASS_MASS, |p| p.neighbour_same_class_mass),
    (LABEL_AGREEMENT, |p| p.label_agreement),
    (QUEUE_AGE, |p| p.queue_age),
    (CHURN, |p| p.churn),
];

/// Builds rows of metrics.
pub fn metrics_rows(rows: &[StepRow]) -> RecordBatch {
    let mut columns = vec![
        STEP.of(rows.iter().map(|r| r.step as i64)),
        EPOCH.of(rows.iter().map(|r| r.epoch)),
        LOSS.of(rows.iter().map(|r| r.loss)),
        LEARNING_RATE.of(rows.iter().map(|r| r.learning_rate)),
        MOMENTUM.of(rows.iter().map(|r| known(r.momentum))),
    ];
    columns.extend(HEALTH.map(|(column, value)| {
        column.of(rows.iter().map(|r| r.diagnosis.as_ref().and_then(|(health, _)| known(value(health)))))
    }));
    columns.push(KNN_TOP1.of(rows.iter().map(|r| r.knn_top1.and_then(known))));
    METRICS.rows(columns)
}

/// The values that the watcher examines, from rows of metrics. They equal those of [`Watched::of`] for the trainer's rows.
///
/// # Errors
/// If a column of the metrics is missing.
pub fn watched(metrics: &RecordBatch) -> anyhow::Result<Vec<Watched>> {
    let steps = METRICS.integers(metrics, STEP)?;
    let [epochs, losses, rates] = [EPOCH, LOSS, LEARNING_RATE].map(|column| METRICS.reals(metrics, column));
    let [std, rank, largest] = [STD, EFFECTIVE_RANK, MAX_POSITIVENESS].map(|column| METRICS.reals(metrics, column));
    let (epochs, losses, rates, std, rank, largest) = (epochs?, losses?, rates?, std?, rank?, largest?);
    let value = |column: &Float64Array, row| if column.is_null(row) { f64::NAN } else { column.value(row) };
    let row = |row| Watched {
        step: steps.value(row) as u64,
        epoch: epochs.value(row),
        loss: losses.value(row),
        learning_rate: rates.value(row),
        health: (!rank.is_null(row)).then(|| WatchedHealth {
            std: value(std, row),
            effective_rank: value(rank, row),
            max_positiveness: value(largest, row),
        }),
    };
    Ok((0..metrics.num_rows()).map(row).collect())
}

fn known(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

/// Builds rows of positives. Steps without a diagnosis have none.
pub fn positiveness_rows(rows: &[StepRow]) -> RecordBatch {
    let rows: Vec<_> = rows.iter().filter_map(|r| Some((r, &r.diagnosis.as_ref()?.1))).collect();
    let mut columns =
        vec![STEP.of(rows.iter().map(|(r, _)| r.step as i64)), EPOCH.of(rows.iter().map(|(r, _)| r.epoch))];
    columns.extend(POSITIVENESS.map(|(column, value)| column.of(rows.iter().map(|(_, p)| known(value(p))))));
    tables::POSITIVENESS.rows(columns)
}

/// Builds rows of neighbours. Steps without a watched image have none.
pub fn neighbours_rows(rows: &[StepRow]) -> RecordBatch {
    let rows: Vec<_> = rows.iter().flat_map(|r| r.neighbours.iter().map(move |neighbour| (r, neighbour))).collect();
    let known = |id: i64| (id >= 0).then_some(id);
    NEIGHBOURS.rows([
        STEP.of(rows.iter().map(|(r, _)| r.step as i64)),
        EPOCH.of(rows.iter().map(|(r, _)| r.epoch)),
        QUERY_SAMPLE.of(rows.iter().map(|(_, n)| n.query)),
        QUERY_LABEL.of(rows.iter().map(|(_, n)| known(n.query_label))),
        RANK.of(rows.iter().map(|(_, n)| n.rank as i64)),
        NEIGHBOUR_SAMPLE.of(rows.iter().map(|(_, n)| known(n.sample))),
        NEIGHBOUR_LABEL.of(rows.iter().map(|(_, n)| known(n.label))),
        WEIGHT.of(rows.iter().map(|(_, n)| n.weight)),
        SIMILARITY.of(rows.iter().map(|(_, n)| n.similarity)),
    ])
}

/// Timing of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    pub step: u64,
    /// Seconds of the whole step, including the wait for the batch.
    pub seconds: f64,
    /// Seconds of waiting for the batch.
    pub waiting_seconds: f64,
    pub images_per_second: f64,
}

/// Builds rows of timing.
pub fn timing_rows(rows: &[Timing]) -> RecordBatch {
    TIMING.rows([
        STEP.of(rows.iter().map(|r| r.step as i64)),
        SECONDS.of(rows.iter().map(|r| r.seconds)),
        WAITING_SECONDS.of(rows.iter().map(|r| r.waiting_seconds)),
        IMAGES_PER_SECOND.of(rows.iter().map(|r| r.images_per_second)),
    ])
}
