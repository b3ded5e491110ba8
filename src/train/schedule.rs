//! Schedules: learning rate and EMA momentum over (fractional) epochs, and the values for each step.

use std::f64::consts::PI;

use super::{LrScaling, OptimizerConfig, PretrainConfig};

/// The schedules of a training.
#[derive(Clone, Copy, Debug)]
pub struct Schedules {
    lr: LrSchedule,
    /// EMA momentum at the start; None without a momentum branch.
    momentum: Option<f64>,
    steps_per_epoch: u64,
    accumulation: u64,
    health_every: u64,
}

/// The values of all schedules in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPlan {
    pub step: u64,
    /// Epochs before the step, with fraction.
    pub epoch: f64,
    pub learning_rate: f64,
    /// EMA momentum; NaN without a momentum branch.
    pub momentum: f64,
    /// Whether the step is the first, or the last, of those whose gradients are accumulated for one update.
    pub begins: bool,
    pub ends: bool,
    /// Whether the step has a diagnosis: health and positives in full.
    pub diagnosis: bool,
}

impl Schedules {
    /// The schedules of a training whose epochs have `steps_per_epoch` steps.
    pub fn new(config: &PretrainConfig, steps_per_epoch: u64) -> Self {
        let (_, peak) = learning_rates(config.optimizer, config.batch_size * config.gradient_accumulation);
        let (warmup_epochs, epochs) = (config.schedule.warmup_epochs, config.epochs as f64);
        Self {
            lr: LrSchedule { peak, warmup_epochs, epochs },
            momentum: config.method.momentum(),
            steps_per_epoch,
            accumulation: config.gradient_accumulation as u64,
            health_every: config.health.every as u64,
        }
    }

    /// The values in a step. Steps whose gradients are accumulated share epoch, learning rate and momentum.
    pub fn at(&self, step: u64) -> StepPlan {
        let first = step / self.accumulation * self.accumulation;
        let epoch = first as f64 / self.steps_per_epoch as f64;
        StepPlan {
            step,
            epoch,
            learning_rate: self.lr.at(epoch),
            momentum: self.momentum.map_or(f64::NAN, |start| momentum_at(epoch, start, self.lr.epochs)),
            begins: step == first,
            ends: self.is_between_updates(step + 1),
            diagnosis: step.is_multiple_of(self.health_every),
        }
    }

    /// Whether no gradients are accumulated before `step`.
    pub fn is_between_updates(&self, step: u64) -> bool {
        step.is_multiple_of(self.accumulation)
    }

    /// Number of steps whose gradients are accumulated for one update.
    pub fn accumulation(&self) -> u64 {
        self.accumulation
    }
}

/// Learning rate over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedule {
    /// After scaling with the batch size.
    pub peak: f64,
    pub warmup_epochs: f64,
    pub epochs: f64,
}

impl LrSchedule {
    /// Linear from 0 to the peak, then half a cosine to 0.
    pub fn at(&self, epoch: f64) -> f64 {
        if epoch < self.warmup_epochs {
            return self.peak * epoch / self.warmup_epochs;
        }
        self.peak * 0.5 * (1.0 + libm::cos(PI * (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)))
    }
}

/// EMA momentum: half a cosine from `start` to 1.
pub fn momentum_at(epoch: f64, start: f64, epochs: f64) -> f64 {
    1.0 - 0.5 * (1.0 + libm::cos(PI * epoch / epochs)) * (1.0 - start)
}

/// The learning rate before and after scaling with the images per step of the optimiser.
pub fn learning_rates(config: &OptimizerConfig, batch_size: usize) -> (f64, f64) {
    let (base, scaling) = match config {
        OptimizerConfig::Sgd(c) => (c.base_lr, c.lr_scaling),
        OptimizerConfig::Adamw(c) => (c.base_lr, c.lr_scaling),
        OptimizerConfig::Lars(c) => (c.base_lr, c.lr_scaling),
    };
    let factor = match scaling {
        LrScaling::Linear => batch_size as f64 / 256.0,
        LrScaling::None => 1.0,
    };
    (base, base * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden::{Golden, assert_close};

    #[test]
    fn schedules_agree_with_the_reference() {
        let golden = Golden::load("schedules");
        let epochs = golden.get::<f64>("in.epoch");
        let lr = LrSchedule { peak: 0.6 * 512.0 / 256.0, warmup_epochs: 2.0, epochs: 10.0 };
        let lrs: Vec<f64> = epochs.iter().map(|e| lr.at(*e)).collect();
        assert_close("lr", &lrs, &golden.get("out.lr"), 1e-12);
        let momenta: Vec<f64> = epochs.iter().map(|e| momentum_at(*e, 0.99, 10.0)).collect();
        assert_close("momentum", &momenta, &golden.get("out.momentum"), 1e-12);
    }
}
