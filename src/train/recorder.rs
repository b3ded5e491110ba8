//! What is told of a step, on any device: its row, and health and positiveness where it is looked at closely.

use super::{Health, Positiveness, StepRow, Watch, positiveness::Churn, schedule::Due};
use crate::{
    method::Positives,
    ops::{Real, named::NamedTensor, normalize::normalize_rows},
};

/// What rows depend on beside their step: the images that are watched, and what others chose before.
pub(super) struct Recorder {
    churn: Churn,
    watch: Watch,
}

/// Projections y [N, dim] of both full views.
pub(super) struct Projections<E> {
    pub y: [Vec<E>; 2],
    pub dim: usize,
}

impl Recorder {
    /// Nothing was recorded yet of a data set of so many images.
    pub(super) fn new(images: usize, seed: u64) -> Self {
        Self { churn: Churn::new(images), watch: Watch::new(images, seed) }
    }

    /// The row of a step, which must come after those of the steps before. `samples` and `labels` are the batch's;
    /// `projections` are there where the step is looked at closely.
    pub(super) fn row<E: Real>(
        &mut self,
        due: Due,
        loss: f64,
        positives: &Positives<E>,
        [samples, labels]: [&[i64]; 2],
        projections: Option<Projections<E>>,
    ) -> StepRow {
        let neighbours = self.watch.of(positives, samples, labels);
        self.churn.update(samples, &positives.choices);
        let diagnosis = projections.map(|Projections { y, dim }| {
            let figures = Positiveness::of(positives, labels, self.churn.take());
            let [y1, y2] = y.map(|mut y| {
                normalize_rows(&mut y, dim);
                y
            });
            (Health::of(&y1, &y2, dim, positives, figures.label_agreement), figures)
        });
        let Due { step, epoch, learning_rate, momentum, .. } = due;
        StepRow { step, epoch, loss, learning_rate, momentum, diagnosis, knn_top1: None, neighbours }
    }

    /// What a checkpoint must hold.
    pub(super) fn state<E>(&self) -> Vec<NamedTensor<E>> {
        self.churn.state()
    }

    /// Takes over what [`Recorder::state`] gave; tensors of other names are left alone.
    pub(super) fn restore<E>(&mut self, tensors: &[NamedTensor<E>]) {
        self.churn.restore(tensors);
    }
}
