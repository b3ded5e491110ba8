//! The content-addressed store: maps the key of a stage to its manifest and Parquet tables. It has checkpoints, locks and integrity
//! checks, and does not know what stages do.
//!
//! Layout under the runs root:
//!
//! | path | what it holds |
//! |---|---|
//! | `store/<stage>/<key>/` | a committed artifact: `manifest.json` and one Parquet file per table |
//! | `store/<stage>/.<key>.<process>.staging/` | an artifact in the making; never a hit |
//! | `work/<stage>-<key>/` | checkpoints and metric segments of an unfinished stage |
//! | `locks/` | who works on what, and which artifacts runs at work count on; files of locks stay, empty when nobody holds them |
//! | `cache/` | hashes of files seen before, with their size and times; an accelerator that may be deleted |
//! | `uploads/` | a file per artifact that a shared cache does not have yet |
//! | `tables/` | records, figures and curves of all runs, derived from their folders and artifacts; may be deleted |
//! | `damaged/` | what no longer matched its hash, moved out of the way |
//! | `results/<name>-<id>/` | `spec.yaml`, `run.json` and `report.parquet` of a run |
//! | `unfinished/<name>-<id>/` | `spec.yaml` and `run.json` of a run without results: at work, interrupted, diverged or failed |
//!
//! The folder may lie on a network file system that many machines use at once. No two writers write the same file: what is in the
//! making bears the name of its process, and appears in one rename. Of two artifacts of one key the first stays. Locks and leases
//! save work and spare what others need; where they do not reach other machines, a stage may be computed twice, and nothing else.

pub mod atomic;
mod attempt;
mod beat;
mod catalogue;
mod checkpoint;
mod committed;
mod content;
mod environment;
mod filesystem;
mod gc;
pub mod hash;
mod hash_list;
pub mod incoming;
mod inspect;
mod key;
mod lease;
mod leftover;
mod lock;
mod manifest;
mod process;
mod record;
mod segment;
mod stat;
mod store;
pub mod table;
mod writer;

pub use attempt::RunAttempt;
pub use catalogue::{Catalogued, TABLES, catalogue};
pub use checkpoint::{CheckpointFile, Checkpoints, State};
pub use committed::Artifact;
pub use content::of_batch as content_of;
pub use environment::{Environment, cpu_model};
pub use filesystem::{FileSystem, Reach, UnfitFolder};
pub use gc::{Cleaning, Item, Keep, Listed};
pub use hash_list::HashList;
pub use incoming::{Incoming, Refused};
pub use inspect::{Damage, Inspected};
pub use key::{Components, Key};
pub use leftover::Leftovers;
pub use lock::{Attempt, Lock};
pub use manifest::{FileEntry, Kind, Manifest};
pub use process::Process;
pub use record::{FILE as RECORD, RunRecord, RunState, SPEC, StageRecord, UNFINISHED, Unfinished};
pub use stat::{Entry, Stamp, StatCache};
pub use store::{Found, Store};
pub use writer::{ArtifactWriter, TableWriter};

#[cfg(test)]
mod tests;
