//! A step that was launched: its row can be told when what it is made of has come to the host.

use crate::{
    method::Positives,
    ops::later::Later,
    train::{
        StepRow,
        recorder::{Projections, Recorder},
        schedule::Due,
    },
};

/// What the row of a step will be made of.
pub struct Unfinished {
    pub due: Due,
    pub samples: Vec<i64>,
    pub labels: Vec<i64>,
    pub loss: Later<Vec<f32>>,
    pub positives: Later<Positives<f32>>,
    /// Projections of both full views, where the step is looked at closely, and their width.
    pub y: Option<([Later<Vec<f32>>; 2], usize)>,
}

impl Unfinished {
    /// The row. Waits for what is still on its way.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn finish(self, recorder: &mut Recorder) -> anyhow::Result<StepRow> {
        let (loss, positives) = (f64::from(self.loss.wait()?[0]), self.positives.wait()?);
        let projections = match self.y {
            Some(([y1, y2], dim)) => Some(Projections { y: [y1.wait()?, y2.wait()?], dim }),
            None => None,
        };
        Ok(recorder.row(self.due, loss, &positives, [&self.samples, &self.labels], projections))
    }
}
