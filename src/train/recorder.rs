//! Builds the row of metrics of a step. In steps with a diagnosis, the row has health and positiveness too.

use super::{Health, Positiveness, StepRow, Watch, positiveness::Churn, schedule::StepPlan};
use crate::{
    method::Positives,
    ops::{Real, named::NamedTensor, normalize::normalize_rows},
};

/// The state that rows depend on besides their step: the watched images, and earlier choices of positives.
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
    /// A recorder for a data set of this many images.
    pub(super) fn new(images: usize, seed: u64) -> Self {
        Self { churn: Churn::new(images), watch: Watch::new(images, seed) }
    }

    /// The row of a step. Steps must be recorded in order. `samples` and `labels` are those of the batch; `projections` are
    /// given in steps with a diagnosis.
    pub(super) fn row<E: Real>(
        &mut self,
        due: StepPlan,
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
        let StepPlan { step, epoch, learning_rate, momentum, .. } = due;
        StepRow { step, epoch, loss, learning_rate, momentum, diagnosis, knn_top1: None, neighbours }
    }

    /// The state for a checkpoint.
    pub(super) fn state<E>(&self) -> Vec<NamedTensor<E>> {
        self.churn.state()
    }

    /// Restores the state of [`Recorder::state`]; ignores tensors of other names.
    pub(super) fn restore<E>(&mut self, tensors: &[NamedTensor<E>]) {
        self.churn.restore(tensors);
    }
}
