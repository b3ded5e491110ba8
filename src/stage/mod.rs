//! The work of each stage, unaware of the plan: configuration and input artifacts in, one artifact out.

mod config;
mod context;
pub mod data;
pub mod embed;
pub mod knn;
pub mod linear_probe;
pub mod pretrain;
pub mod weights;

pub use config::*;
pub use context::*;
