//! The engine computes and stores: tensors, networks, methods, training, evaluation, and their artifacts. Specs, plans, reports
//! and commands build on it, in the package `snclr` (`lib.rs`).
//!
//! Imports go one way, lowest layer first:
//!
//! | module | what it holds |
//! |---|---|
//! | [`tables`] | the program's own tables: their names and columns |
//! | [`rule`] | how a broken rule between values is reported |
//! | [`ops`] | tensor operations that dfdx lacks or runs slowly, and their link to dfdx's tape |
//! | [`ranks`] | processes that train together, and how they exchange values |
//! | [`backend`] | one trait for the computations of a device, implemented for the host and the GPU |
//! | [`dataset`] | one file per image source; shards; augmentation |
//! | [`encoder`] | one file per encoder |
//! | [`method`] | one file per self-supervised method, its queue, heads and loss |
//! | [`train`] | the pretraining loop, schedules, optimisers, EMA, health metrics |
//! | [`artifact`] | content-addressed store: tables, manifests, checkpoints, locks |
//! | [`stage`] | the work of each stage, unaware of the plan |
//! | [`bench`] | measures the speed of the program |
//!
//! A later layer may use earlier ones, never the reverse (`tests/layers.rs` checks it).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "what tests compare with may be of any kind"))]

#[cfg(not(unix))]
compile_error!("snclr needs a Unix system (Linux or macOS): locks and positioned reads are those of Unix");

pub mod artifact;
pub mod backend;
pub mod bench;
pub mod dataset;
pub mod encoder;
pub mod method;
pub mod ops;
pub mod ranks;
pub mod rule;
pub mod stage;
pub mod tables;
pub mod train;
