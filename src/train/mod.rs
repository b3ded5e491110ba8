//! Pretraining: the loop, schedules, optimisers, EMA and health metrics.

mod config;

pub use config::*;
