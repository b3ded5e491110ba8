//! Compares the diagnostics in a cached training with those that a spec asks for. Diagnostics (health rows, kNN during
//! training) are not part of the key, so the two may differ.

use arrow::array::RecordBatch;

use crate::{
    artifact::Artifact,
    tables::{METRICS, column},
    train::HealthConfig,
};

/// The rows of diagnostics in the artifact of a training, and their distance in steps or epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    pub health_rows: usize,
    /// Steps from one row of health to the next; None with fewer than two rows.
    pub health_every: Option<i64>,
    pub knn_rows: usize,
    /// Epochs before the first row of kNN.
    pub knn_every: Option<usize>,
}

impl Diagnostics {
    /// Reads the diagnostics from the pretrain artifact.
    ///
    /// # Errors
    /// When its table cannot be read.
    pub fn of(pretrain: &Artifact) -> anyhow::Result<Self> {
        let mut found = Diagnostics::default();
        let mut first = None;
        for batch in pretrain.rows_of(&METRICS)? {
            found.take(&batch?, &mut first)?;
        }
        Ok(found)
    }

    fn take(&mut self, rows: &RecordBatch, first: &mut Option<i64>) -> anyhow::Result<()> {
        let (steps, spread) = (METRICS.integers(rows, column::STEP)?, METRICS.reals(rows, column::STD)?);
        for (step, spread) in steps.iter().zip(spread) {
            let (Some(step), Some(_)) = (step, spread) else { continue };
            self.health_rows += 1;
            match *first {
                None => *first = Some(step),
                Some(first) => self.health_every = self.health_every.or(Some(step - first)),
            }
        }
        let (knn, epochs) = (METRICS.reals(rows, column::KNN_TOP1)?, METRICS.reals(rows, column::EPOCH)?);
        for (top1, epoch) in knn.iter().zip(epochs) {
            if let (Some(_), Some(epoch)) = (top1, epoch) {
                self.knn_rows += 1;
                // The last step of an epoch starts before the epoch's end, so its epoch is rounded up.
                self.knn_every = self.knn_every.or(Some(epoch.floor() as usize + 1));
            }
        }
        Ok(())
    }

    /// A note on the diagnostics that were kept, if they differ from those that `asked` requests.
    pub fn unlike(&self, asked: &HealthConfig) -> Option<String> {
        let health = self.health_every.is_some_and(|every| every != asked.every as i64);
        let knn = self.knn_every.unwrap_or(0) != asked.knn_every_epochs;
        let mut parts = Vec::new();
        if health {
            let every = self.health_every.unwrap_or_default();
            parts.push(format!(
                "{} rows of health, every {every} steps (health.every: {})",
                self.health_rows, asked.every
            ));
        }
        if knn {
            let kept = match self.knn_every {
                None => "no kNN during training".to_owned(),
                Some(every) => format!("{} of kNN, every {every} epochs", self.knn_rows),
            };
            parts.push(format!("{kept} (health.knn_every_epochs: {})", asked.knn_every_epochs));
        }
        (!parts.is_empty()).then(|| format!("kept with {}; diagnostics alone rerun nothing", parts.join(" and ")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, Int64Array};

    use super::*;

    fn diagnostics(every: i64, knn: &[Option<f64>]) -> Diagnostics {
        let steps: Vec<i64> = (0..12).collect();
        let spread: Float64Array = steps.iter().map(|step| (step % every == 0).then_some(0.5)).collect();
        let epochs: Vec<f64> = steps.iter().map(|step| *step as f64 / 3.0).collect();
        let knn: Float64Array = (0..12).map(|i| knn.get(i).copied().flatten()).collect();
        let batch = RecordBatch::try_from_iter_with_nullable([
            (column::STEP.name, Arc::new(Int64Array::from(steps)) as ArrayRef, false),
            (column::EPOCH.name, Arc::new(Float64Array::from(epochs)) as ArrayRef, false),
            (column::STD.name, Arc::new(spread) as ArrayRef, true),
            (column::KNN_TOP1.name, Arc::new(knn) as ArrayRef, true),
        ])
        .unwrap();
        let (mut found, mut first) = (Diagnostics::default(), None);
        // In two batches, as a long table is read.
        found.take(&batch.slice(0, 2), &mut first).unwrap();
        found.take(&batch.slice(2, 10), &mut first).unwrap();
        found
    }

    #[test]
    fn what_there_is_is_said_where_something_else_is_asked_for() {
        let asked = |every, knn_every_epochs| HealthConfig { every, knn_every_epochs, ..HealthConfig::default() };
        let knn = [None, None, None, None, None, Some(0.5), None, None, None, None, None, Some(0.5)];
        let found = diagnostics(4, &knn);
        assert_eq!(found, Diagnostics { health_rows: 3, health_every: Some(4), knn_rows: 2, knn_every: Some(2) });
        assert_eq!(found.unlike(&asked(4, 2)), None);
        assert_eq!(
            found.unlike(&asked(1, 2)).as_deref(),
            Some("kept with 3 rows of health, every 4 steps (health.every: 1); diagnostics alone rerun nothing")
        );
        assert_eq!(
            diagnostics(4, &[]).unlike(&asked(2, 1)).as_deref(),
            Some(
                "kept with 3 rows of health, every 4 steps (health.every: 2) and no kNN during training \
                 (health.knn_every_epochs: 1); diagnostics alone rerun nothing"
            )
        );
        assert_eq!(
            found.unlike(&asked(4, 0)).as_deref(),
            Some("kept with 2 of kNN, every 2 epochs (health.knn_every_epochs: 0); diagnostics alone rerun nothing")
        );
    }
}
