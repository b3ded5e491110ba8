//! The work of each stage, unaware of the plan: configuration and input artifacts in, one artifact out.

mod config;

pub use config::*;
