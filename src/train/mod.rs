//! Pretraining: one step, schedules, optimisers, EMA, batches and health metrics.

mod config;
mod ema;
mod health;
mod loader;
mod model;
mod neighbours;
mod optimizer;
mod positiveness;
mod schedule;
mod trainer;
mod warning;

#[cfg(test)]
mod tests;

pub use config::*;
pub use health::Health;
pub use loader::{Loader, augment};
pub use model::{Branch, Model};
pub use neighbours::{Neighbour, Watch};
pub use positiveness::Positiveness;
pub use schedule::learning_rates;
pub use trainer::{Batch, Crop, StepRow, Trainer};
pub use warning::Warning;
