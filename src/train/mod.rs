//! Pretraining: the training step, schedules, optimisers, moving average, batches and health metrics.

mod batch;
mod config;
mod cost;
mod device;
mod feed;
mod groups;
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
mod views;
mod warning;
mod watcher;

#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Crop, Loaded};
pub use config::*;
pub use cost::Part;
pub use device::{Device, DeviceError, NOT_BUILT, OnDevice, Trains, found_cuda};
pub use feed::Feed;
pub use health::Health;
pub use loader::Loader;
pub use model::{BranchValues, Model};
pub use neighbours::{Neighbour, Watch};
pub use optimizer::{Optimize, Scaling};
pub use positiveness::Positiveness;
pub use schedule::learning_rates;
pub use trainer::{StepRow, Trainer};
pub use views::augment;
pub use warning::Warning;
pub use watcher::{Watched, WatchedHealth, Watcher};
