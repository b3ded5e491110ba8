//! The content-addressed store: maps the key of a stage to its manifest and Parquet tables. It has checkpoints, locks and
//! integrity checks, and does not know what stages do.
//!
//! Layout under the runs root:
//!
//! | path | what it holds |
//! |---|---|
//! | `store/<stage>/<key>/` | a committed artifact: `manifest.json` and one Parquet file per table |
//! | `store/<stage>/.<key>.<process>.staging/` | an artifact that is being written; lookups ignore it |
//! | `work/<stage>-<key>/` | checkpoints and metric segments of an unfinished stage |
//! | `locks/` | locks of stages and runs, and leases on artifacts that are in use; a lock's file stays after its release, empty |
//! | `cache/` | hashes of files read before, with their sizes and times; they only save time and may be deleted |
//! | `uploads/` | a marker file per artifact that is still to be uploaded to a shared cache |
//! | `tables/` | records, figures and curves of all runs, derived from their folders and artifacts; may be deleted |
//! | `damaged/` | files and folders that no longer matched their hashes, moved out of the way |
//! | `results/<name>-<id>/` | `spec.yaml`, `run.json` and `report.parquet` of a run |
//! | `unfinished/<name>-<id>/` | `spec.yaml` and `run.json` of a run without results: running, interrupted, diverged or failed |
//!
//! The runs root may be on a network file system that many machines use at once. No two writers write the same file: unfinished
//! files and folders carry the name of the process that writes them, and get their final name in one rename. If two artifacts of
//! the same key are committed, the first one stays. Locks avoid duplicate work, and leases protect artifacts in use from removal.
//! Where locks do not reach other machines, a stage may be computed twice, but nothing worse happens.

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
