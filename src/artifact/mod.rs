//! Content-addressed store: stage key -> manifest and Parquet tables; checkpoints, locks, integrity. Unaware of what stages do.
//!
//! Layout under the runs root:
//!
//! | path | what it holds |
//! |---|---|
//! | `store/<stage>/<key>/` | a committed artifact: `manifest.json` and one Parquet file per table |
//! | `store/<stage>/.<key>.staging/` | an artifact in the making; never a hit |
//! | `work/<stage>-<key>/` | checkpoints and metric segments of an unfinished stage |
//! | `locks/` | who works on what, and which artifacts runs at work count on |
//! | `cache/` | hashes of files seen before, with their size and times; an accelerator that may be deleted |
//! | `damaged/` | what no longer matched its hash, moved out of the way |
//! | `results/<name>-<id>/` | `spec.yaml`, `run.json` and `report.parquet` of a run |
//! | `unfinished/<name>-<id>/` | `spec.yaml` and `run.json` of a run without results: at work, interrupted, diverged or failed |

pub mod atomic;
mod attempt;
mod checkpoint;
mod committed;
mod content;
mod environment;
mod garbage;
pub mod hash;
mod hash_list;
mod inspect;
mod key;
mod lease;
mod lock;
mod manifest;
mod record;
mod segment;
mod stat;
mod store;
pub mod table;
mod writer;

pub use attempt::RunAttempt;
pub use checkpoint::{Checkpoints, State};
pub use committed::Artifact;
pub use content::of_batch as content_of;
pub use environment::{Environment, cpu_model};
pub use garbage::{Cleaning, Item, Keep, Listed};
pub use hash_list::HashList;
pub use inspect::{Damage, Inspected};
pub use key::{Components, Key};
pub use lock::{Attempt, Lock};
pub use manifest::{FileEntry, Kind, Manifest};
pub use record::{RunRecord, RunState, StageRecord, UNFINISHED, Unfinished};
pub use stat::{Entry, Stamp, StatCache};
pub use store::{Found, Store};
pub use writer::{ArtifactWriter, TableWriter};

#[cfg(test)]
mod tests;
