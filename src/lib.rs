//! `snclr`: declarative, cached, resumable pipelines for self-supervised visual pretraining.
//!
//! Data flows `spec -> plan -> stage -> artifact -> report`. The package [`snclr_engine`] (`engine.rs`) computes and stores; its
//! modules are available here too. These build on it, lowest layer first:
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | reads YAML, with bases and sweeps, into checked [`spec::Experiment`]s; errors name file and line |
//! | [`remote`] | the cache that machines share in object storage |
//! | [`plan`] | the stage graph of an experiment, with keys and explanations |
//! | [`run`] | carries out a plan: uses cached stages, resumes killed ones, runs the rest |
//! | [`cluster`] | lists the tasks of many points, each once, for schedulers |
//! | [`report`] | computes scores, comparisons and their uncertainty from artifacts, and writes HTML pages |
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
