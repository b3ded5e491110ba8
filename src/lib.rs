//! `snclr`: declarative, cached, resumable pipelines for self-supervised visual pretraining.
//!
//! Data flows `spec -> plan -> stage -> artifact -> report`. The package [`snclr_engine`] (`engine.rs`) computes and stores; its
//! modules are available here too. These build on it, lowest layer first:
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | YAML, its bases and sweeps, to located, schema-checked [`spec::Experiment`]s |
//! | [`remote`] | the cache that machines share in object storage |
//! | [`plan`] | experiment to stage graph, keys and explanations |
//! | [`run`] | drives a plan: cached, run, resumed |
//! | [`cluster`] | the work of many points, each piece once, for schedulers |
//! | [`report`] | artifacts to scores, comparisons, their uncertainty, and HTML pages |
//! | [`cli`] | one file per command |
//!
//! A later layer may use earlier ones, never the reverse (`tests/layers.rs` checks it).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "what tests compare with may be of any kind"))]

pub mod cli;
pub mod cluster;
pub mod plan;
pub mod remote;
pub mod report;
pub mod run;
pub mod spec;

pub use snclr_engine::{artifact, backend, bench, dataset, encoder, method, ops, ranks, rule, stage, tables, train};
