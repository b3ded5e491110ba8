//! What is told of a step that is looked at closely, on any device.

use super::{Health, Positiveness};
use crate::{
    method::Positives,
    ops::{Real, normalize::normalize_rows},
};

/// Health and positiveness of a step, from the projections `y` [N, dim] of both full views; `churn` as
/// [`Positiveness::of`] takes it.
pub(super) fn diagnosis<E: Real>(
    y: [Vec<E>; 2],
    dim: usize,
    positives: &Positives<E>,
    labels: &[i64],
    churn: f64,
) -> (Health, Positiveness) {
    let [y1, y2] = y.map(|mut y| {
        normalize_rows(&mut y, dim);
        y
    });
    let figures = Positiveness::of(positives, labels, churn);
    (Health::of(&y1, &y2, dim, positives, figures.label_agreement), figures)
}
