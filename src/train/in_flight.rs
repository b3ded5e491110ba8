//! A step in flight: it was launched on the device, and its metrics reach the host later.

use super::{
    StepRow,
    recorder::{Projections, Recorder},
    schedule::StepPlan,
};
use crate::{
    method::Positives,
    ops::{Real, pending::Pending},
};

/// The pending values from which the row of a step is built.
pub struct InFlight<E> {
    pub due: StepPlan,
    pub samples: Vec<i64>,
    pub labels: Vec<i64>,
    pub loss: Pending<Vec<E>>,
    pub positives: Pending<Positives<E>>,
    /// Projections of both full views and their width, in steps with a diagnosis.
    pub y: Option<([Pending<Vec<E>>; 2], usize)>,
}

impl<E: Real> InFlight<E> {
    /// The row of the step. Waits for the values that have not arrived yet.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn into_row(self, recorder: &mut Recorder) -> anyhow::Result<StepRow> {
        let (loss, positives) = (self.loss.wait()?[0].as_f64(), self.positives.wait()?);
        let projections = match self.y {
            Some(([y1, y2], dim)) => Some(Projections { y: [y1.wait()?, y2.wait()?], dim }),
            None => None,
        };
        Ok(recorder.row(self.due, loss, &positives, [&self.samples, &self.labels], projections))
    }
}
