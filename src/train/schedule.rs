//! Learning rate and EMA momentum over (fractional) epochs.

use std::f64::consts::PI;

use super::{LrScaling, OptimizerConfig};

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
        self.peak * 0.5 * (1.0 + (PI * (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)).cos())
    }
}

/// EMA momentum: half a cosine from `start` to 1.
pub fn momentum_at(epoch: f64, start: f64, epochs: f64) -> f64 {
    1.0 - 0.5 * (1.0 + (PI * epoch / epochs).cos()) * (1.0 - start)
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
