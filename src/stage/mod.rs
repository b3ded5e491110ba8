//! The work of each stage: it reads configuration and input artifacts, and writes one artifact. Stages do not know the plan.

mod all;
mod config;
mod context;
pub mod data;
mod descriptor;
pub mod diagnostics;
pub mod duplicates;
pub mod embed;
pub mod embedder;
pub mod evaluation;
pub mod features;
mod findings;
mod frozen;
pub mod initial;
mod kept;
pub mod knn;
pub mod labelled;
pub mod linear_probe;
mod metrics;
pub mod near;
pub mod nearest;
mod online_knn;
pub mod pretrain;
#[cfg(test)]
mod probe_data;
mod softmax;
mod standardize;
mod state_dict;
pub mod tensors;
pub mod votes;
pub mod weights;

pub use config::*;
pub use context::*;
pub use descriptor::*;
