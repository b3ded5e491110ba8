//! Pretraining: one step, schedules, optimisers, EMA, batches and health metrics.

mod batch;
mod config;
mod cost;
mod device;
mod health;
mod in_flight;
mod loader;
mod model;
mod neighbours;
mod optimizer;
mod positiveness;
mod recorder;
mod schedule;
mod trainer;
mod warning;

#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Crop, Feed, Loaded};
pub use config::*;
pub use device::{Device, DeviceError, NOT_BUILT, OnDevice, Trains, found_cuda};
pub use health::Health;
pub use loader::{Loader, augment};
pub use model::{BranchValues, Model};
pub use neighbours::{Neighbour, Watch};
pub use optimizer::{Optimize, Scaling};
pub use positiveness::Positiveness;
pub use schedule::learning_rates;
pub use trainer::{StepRow, Trainer};
pub use warning::Warning;
