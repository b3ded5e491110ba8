//! What is told of a step that is looked at closely, on any device.

use dfdx::prelude::{HasShape, Storage};

use super::{Health, Positiveness};
use crate::{
    method::Positives,
    ops::{Real, normalize::normalize_rows, seam::Matrix},
};

/// Health and positiveness of a step, from the projections `y` [N, D] of both full views; `churn` as [`Positiveness::of`]
/// takes it.
pub(super) fn diagnosis<E: Real, D: Storage<E>>(
    y: [&Matrix<E, D>; 2],
    positives: &Positives<E>,
    labels: &[i64],
    churn: f64,
) -> (Health, Positiveness) {
    let dim = y[0].shape().1;
    let [y1, y2] = y.map(|y| {
        let mut y = y.as_vec();
        normalize_rows(&mut y, dim);
        y
    });
    let figures = Positiveness::of(positives, labels, churn);
    (Health::of(&y1, &y2, dim, positives, figures.label_agreement), figures)
}
