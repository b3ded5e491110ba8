//! Image sources, the shards they are ingested into, and augmentation.

pub mod augment;
mod config;

pub use config::*;
