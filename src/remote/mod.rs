//! The shared cache: artifacts in object storage, so that a result of one machine is a hit on the others.
//!
//! The cache only mirrors the store. An artifact from the cache is checked, and put into the store before it is used. Layout:
//!
//! | object | what it holds |
//! |---|---|
//! | `ac/<stage>/<key>.json` | the manifest of an artifact, written when its tables are there |
//! | `cas/<hash>` | a table, by the hash of its bytes |
//! | `checkpoints/<stage>/<key>/<step>.json` | files of a checkpoint, written when they are there |
//! | `checkpoints/<stage>/<key>/<hash>` | a file of it |
//!
//! Objects are named by what they are and replaced by nothing else, so that locks and conditional writes are not needed: where the
//! server knows the latter, the first result of a key stays, and where it does not, one of them. Whoever finds a manifest whose
//! tables are gone, or others than it says, has found nothing.
//!
//! A cache that fails, lies or hangs costs one warning and a few seconds, never a run.

mod address;
#[cfg(feature = "remote")]
mod bucket;
mod cache;
mod checkpoints;
mod cleaning;
mod health;
mod objects;
mod shared;
mod uploads;

pub use address::Address;
pub use cache::Cache;
pub use cleaning::{Cleaned, Item, clean};
pub use shared::{Mode, Options};

use objects::{Failure, Objects};

use crate::artifact::Key;

/// Whether this build can use a cache.
pub const AVAILABLE: bool = cfg!(feature = "remote");

#[cfg(feature = "remote")]
use bucket::open;

/// Without the feature `remote` there is nothing that could be opened.
#[cfg(not(feature = "remote"))]
fn open(_: &Address) -> Result<Box<dyn Objects>, Failure> {
    Err(Failure::Broken("this build has none; build it with --features remote".to_owned()))
}

/// Name of the manifest of an artifact.
fn manifest_name(stage: &str, key: &Key) -> String {
    format!("{MANIFESTS}/{stage}/{key}.json")
}

/// Name of a table with this hash; None when it is no hash.
fn table_name(sha256: &str) -> Option<String> {
    Key::parse(sha256).map(|hash| format!("{TABLES}/{hash}"))
}

/// Longest manifest that is read.
const LONGEST_MANIFEST: usize = 64 << 20;

const MANIFESTS: &str = "ac";
const TABLES: &str = "cas";
const CHECKPOINTS: &str = "checkpoints";
