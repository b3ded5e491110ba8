//! Pretraining: one step, schedules, optimisers, EMA, batches and health metrics.

mod any;
mod config;
mod cost;
mod device;
mod ema;
#[cfg(any(test, feature = "cuda"))]
mod gpu;
mod health;
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
mod tests;

pub use any::AnyTrainer;
pub use config::*;
pub use device::{Device, DeviceError, NOT_BUILT, found_cuda};
pub use health::Health;
#[cfg(any(test, feature = "cuda"))]
pub use loader::RawBatch;
pub use loader::{Loaded, Loader, augment};
pub use model::{Branch, Model};
pub use neighbours::{Neighbour, Watch};
pub use positiveness::Positiveness;
pub use schedule::learning_rates;
pub use trainer::{Batch, Crop, StepRow, Trainer};
pub use warning::Warning;
