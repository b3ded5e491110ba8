//! Watches the rows of a training for problems, and gives warnings.

use super::{PretrainConfig, StepRow, Warning};

/// The number of consecutive health rows that must show a collapse, or saturated attention.
const ROWS: u64 = 3;
/// Attention counts as saturated if one neighbour has this share of the weight.
const SATURATED: f64 = 0.99;
/// A loss counts as flat within this share of its value without information, for at least this many steps.
const FLAT: f64 = 0.01;
const FLAT_STEPS: u64 = 50;

/// The state of the watch. It gives a warning that does not stop training only once.
pub struct Watcher {
    stops_on_collapse: bool,
    /// The positiveness from which attention counts as saturated; None without attention over several neighbours.
    saturated: Option<f64>,
    /// The loss of embeddings without information.
    uninformative: Option<f64>,
    warmup: f64,
    /// The number of steps that a loss must be flat for: at least an epoch.
    flat_steps: u64,
    collapsed_rows: u64,
    saturated_rows: u64,
    flat: u64,
}

impl Watcher {
    /// A watcher for a training whose epochs have `steps_per_epoch` steps.
    pub fn new(config: &PretrainConfig, steps_per_epoch: u64) -> Self {
        Self {
            stops_on_collapse: config.health.stop_on_collapse,
            saturated: config.method.share_of_positiveness(SATURATED),
            uninformative: config.method.uninformative_loss(config.batch_size),
            warmup: config.schedule.warmup_epochs,
            flat_steps: steps_per_epoch.max(FLAT_STEPS),
            collapsed_rows: 0,
            saturated_rows: 0,
            flat: 0,
        }
    }

    /// Examines the next row.
    pub fn look(&mut self, row: &StepRow) -> Option<Warning> {
        let &StepRow { step, loss, learning_rate, .. } = row;
        if !loss.is_finite() {
            return Some(Warning::NonFiniteLoss { step, loss, learning_rate });
        }
        if let Some((health, _)) = row.diagnosis {
            if counts(&mut self.collapsed_rows, health.is_collapsed()) == ROWS && self.stops_on_collapse {
                let (std, effective_rank) = (health.std, health.effective_rank);
                return Some(Warning::Collapse { step, std, effective_rank });
            }
            let largest = health.max_positiveness;
            let saturates = self.saturated.is_some_and(|most| largest > most);
            if counts(&mut self.saturated_rows, saturates) == ROWS {
                self.saturated = None;
                return Some(Warning::Saturated { step, largest });
            }
        }
        let expected = self.uninformative.filter(|_| row.epoch >= self.warmup)?;
        let flat = (loss - expected).abs() <= FLAT * expected;
        if counts(&mut self.flat, flat) == self.flat_steps {
            self.uninformative = None;
            return Some(Warning::Uninformative { step, loss, expected, steps: self.flat_steps });
        }
        None
    }
}

/// The number of consecutive times that something has held.
fn counts(so_far: &mut u64, holds: bool) -> u64 {
    *so_far = if holds { *so_far + 1 } else { 0 };
    *so_far
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{Health, Positiveness};

    fn watcher() -> Watcher {
        Watcher {
            stops_on_collapse: true,
            saturated: Some(0.99),
            uninformative: Some(4.605),
            warmup: 1.0,
            flat_steps: 50,
            collapsed_rows: 0,
            saturated_rows: 0,
            flat: 0,
        }
    }

    fn row(step: u64, loss: f64, diagnosed: Option<[f64; 2]>) -> StepRow {
        let diagnosis = diagnosed.map(|[std, max_positiveness]| {
            let health = Health {
                std,
                effective_rank: 10.0,
                alignment: 1.0,
                uniformity: -3.0,
                mean_positiveness: 0.2,
                max_positiveness,
                neighbour_agreement: 0.5,
            };
            let none = f64::NAN;
            let positiveness = Positiveness {
                positives: none,
                effective_positives: none,
                own_share: none,
                same_class_mass: none,
                neighbour_same_class_mass: none,
                label_agreement: none,
                queue_age: none,
                churn: none,
            };
            (health, positiveness)
        });
        let epoch = step as f64 / 10.0;
        let none = f64::NAN;
        StepRow { step, epoch, loss, learning_rate: 0.1, momentum: none, diagnosis, knn_top1: None, neighbours: vec![] }
    }

    #[test]
    fn a_loss_that_stays_where_it_tells_nothing_is_told_once() {
        let mut watcher = watcher();
        // The warm-up does not count, nor do steps before a better one.
        let losses = std::iter::repeat_n(4.6, 30).chain([4.4]).chain(std::iter::repeat_n(4.62, 200));
        let told: Vec<Warning> =
            losses.enumerate().filter_map(|(step, loss)| watcher.look(&row(step as u64, loss, None))).collect();
        assert_eq!(told, [Warning::Uninformative { step: 80, loss: 4.62, expected: 4.605, steps: 50 }]);
        assert!(!told[0].stops());
    }

    #[test]
    fn three_rows_show_that_attention_saturates_or_embeddings_collapse() {
        let mut seen = watcher();
        let told: Vec<Option<Warning>> = (0..6).map(|step| seen.look(&row(step, 2.0, Some([0.9, 0.995])))).collect();
        let saturated = Some(Warning::Saturated { step: 2, largest: 0.995 });
        assert_eq!(told, [None, None, saturated, None, None, None]);
        let mut seen = Watcher { saturated: None, ..watcher() };
        let rows = [0.01, 0.01, 0.5, 0.01, 0.01, 0.01].into_iter().enumerate();
        let told: Vec<bool> = rows
            .map(|(step, std)| seen.look(&row(step as u64, 2.0, Some([std, 1.0]))).is_some_and(|w| w.stops()))
            .collect();
        assert_eq!(told, [false, false, false, false, false, true]);
    }
}
