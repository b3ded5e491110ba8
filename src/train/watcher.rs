//! Watches the metrics of a training for problems, and warns of them.

use super::{Health, PretrainConfig, StepRow, Warning, health::is_collapsed};

/// The number of consecutive health rows that must show a collapse, or saturated attention.
const ROWS: u64 = 3;
/// Attention counts as saturated if one neighbour has this share of the weight.
const SATURATED: f64 = 0.99;
/// A loss counts as flat if it stays within this share of the loss of embeddings without information, for at least this many
/// steps.
const FLAT: f64 = 0.01;
const FLAT_STEPS: u64 = 50;

/// The values of a step that the watcher examines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watched {
    pub step: u64,
    pub epoch: f64,
    pub loss: f64,
    pub learning_rate: f64,
    /// None at steps without a diagnosis.
    pub health: Option<WatchedHealth>,
}

/// The values of [`Health`] that the watcher examines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WatchedHealth {
    pub std: f64,
    pub effective_rank: f64,
    /// NaN where there are no neighbours.
    pub max_positiveness: f64,
}

impl Watched {
    pub fn of(row: &StepRow) -> Self {
        let &StepRow { step, epoch, loss, learning_rate, .. } = row;
        let health = row.diagnosis.map(|(Health { std, effective_rank, max_positiveness, .. }, _)| WatchedHealth {
            std,
            effective_rank,
            max_positiveness,
        });
        Self { step, epoch, loss, learning_rate, health }
    }
}

/// The state of the watch. Each kind of warning that does not stop training is given only once.
pub struct Watcher {
    stops_on_collapse: bool,
    /// The positiveness from which attention counts as saturated; None without attention over several neighbours.
    saturated: Option<f64>,
    /// The loss of embeddings without information.
    uninformative: Option<f64>,
    warmup: f64,
    /// The number of steps for which a loss must be flat: at least an epoch.
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

    /// Examines the next step.
    pub fn look(&mut self, watched: Watched) -> Option<Warning> {
        let Watched { step, epoch, loss, learning_rate, health } = watched;
        if !loss.is_finite() {
            return Some(Warning::NonFiniteLoss { step, loss, learning_rate });
        }
        if let Some(WatchedHealth { std, effective_rank, max_positiveness: largest }) = health {
            let collapsed = is_collapsed(std, effective_rank);
            if counts(&mut self.collapsed_rows, collapsed) == ROWS && self.stops_on_collapse {
                return Some(Warning::Collapse { step, std, effective_rank });
            }
            let saturates = self.saturated.is_some_and(|most| largest > most);
            if counts(&mut self.saturated_rows, saturates) == ROWS {
                self.saturated = None;
                return Some(Warning::Saturated { step, largest });
            }
        }
        let expected = self.uninformative.filter(|_| epoch >= self.warmup)?;
        let flat = (loss - expected).abs() <= FLAT * expected;
        if counts(&mut self.flat, flat) == self.flat_steps {
            self.uninformative = None;
            return Some(Warning::Uninformative { step, loss, expected, steps: self.flat_steps });
        }
        None
    }

    /// The counters, and which warnings are still to be given. The watcher of another rank can continue from this state.
    pub fn state(&self) -> [u64; 5] {
        let pending = [self.saturated, self.uninformative].map(|still| u64::from(still.is_some()));
        [self.collapsed_rows, self.saturated_rows, self.flat, pending[0], pending[1]]
    }

    /// Continues from the [state](Self::state) of another watcher of the same training.
    pub fn restore(&mut self, state: [u64; 5]) {
        let [collapsed_rows, saturated_rows, flat, pending @ ..] = state;
        (self.collapsed_rows, self.saturated_rows, self.flat) = (collapsed_rows, saturated_rows, flat);
        let [saturated, uninformative] = pending.map(|still| still == 1);
        self.saturated = self.saturated.filter(|_| saturated);
        self.uninformative = self.uninformative.filter(|_| uninformative);
    }
}

/// Updates and returns the number of consecutive times that a condition has held.
fn counts(so_far: &mut u64, holds: bool) -> u64 {
    *so_far = if holds { *so_far + 1 } else { 0 };
    *so_far
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn watched(step: u64, loss: f64, health: Option<[f64; 2]>) -> Watched {
        let health =
            health.map(|[std, max_positiveness]| WatchedHealth { std, effective_rank: 10.0, max_positiveness });
        Watched { step, epoch: step as f64 / 10.0, loss, learning_rate: 0.1, health }
    }

    #[test]
    fn a_loss_that_stays_where_it_tells_nothing_is_told_once() {
        let mut watcher = watcher();
        // Steps of the warm-up do not count, nor do flat steps before a better loss.
        let losses = std::iter::repeat_n(4.6, 30).chain([4.4]).chain(std::iter::repeat_n(4.62, 200));
        let told: Vec<Warning> =
            losses.enumerate().filter_map(|(step, loss)| watcher.look(watched(step as u64, loss, None))).collect();
        assert_eq!(told, [Warning::Uninformative { step: 80, loss: 4.62, expected: 4.605, steps: 50 }]);
        assert!(!told[0].stops());
    }

    #[test]
    fn three_rows_show_that_attention_saturates_or_embeddings_collapse() {
        let mut seen = watcher();
        let told: Vec<Option<Warning>> = (0..6).map(|step| seen.look(watched(step, 2.0, Some([0.9, 0.995])))).collect();
        let saturated = Some(Warning::Saturated { step: 2, largest: 0.995 });
        assert_eq!(told, [None, None, saturated, None, None, None]);
        let mut seen = Watcher { saturated: None, ..watcher() };
        let rows = [0.01, 0.01, 0.5, 0.01, 0.01, 0.01].into_iter().enumerate();
        let told: Vec<bool> = rows
            .map(|(step, std)| seen.look(watched(step as u64, 2.0, Some([std, 1.0]))).is_some_and(|w| w.stops()))
            .collect();
        assert_eq!(told, [false, false, false, false, false, true]);
    }

    #[test]
    fn a_watcher_goes_on_where_another_one_was() {
        let rows: Vec<Watched> = (0..200).map(|step| watched(step, 4.6, Some([0.9, 0.995]))).collect();
        let mut whole = watcher();
        let expected: Vec<Warning> = rows.iter().filter_map(|row| whole.look(*row)).collect();
        assert_eq!(expected.len(), 2);
        for cut in [0, 1, 2, 3, 30, 60, 150] {
            let mut first = watcher();
            let mut told: Vec<Warning> = rows[..cut].iter().filter_map(|row| first.look(*row)).collect();
            let mut second = watcher();
            second.restore(first.state());
            told.extend(rows[cut..].iter().filter_map(|row| second.look(*row)));
            assert_eq!(told, expected, "cut at {cut}");
        }
    }
}
