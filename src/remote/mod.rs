//! The shared cache: artifacts in object storage, so that a result of one machine is a hit on the others.
//!
//! The cache only mirrors the store. An artifact from the cache is checked, and put into the store before it is used. Layout:
//!
//! | object | what it holds |
//! |---|---|
//! | `ac/<stage>/<key>.json` | the manifest of an artifact, written after its tables |
//! | `cas/<hash>` | a table, by the hash of its bytes |
//! | `checkpoints/<stage>/<key>/<step>.json` | the list of a checkpoint's files, written after these files |
//! | `checkpoints/<stage>/<key>/<hash>` | a file of a checkpoint, by the hash of its bytes |
//!
//! The name of an object determines what it holds, and an object is replaced only by an equivalent one. So locks and conditional
//! writes are not needed: if the server supports conditional writes, the first artifact of a key stays, otherwise any one of
//! them. A manifest whose tables are missing or damaged is not a hit.
//!
//! A cache that fails, returns wrong data or hangs costs one warning and a few seconds, never a run.

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

/// Without the feature `remote` no cache can be opened.
#[cfg(not(feature = "remote"))]
fn open(_: &Address) -> Result<Box<dyn Objects>, Failure> {
    Err(Failure::Broken("this build has none; build it with --features remote".to_owned()))
}

/// Name of the manifest of an artifact.
fn manifest_name(stage: &str, key: &Key) -> String {
    format!("{MANIFESTS}/{stage}/{key}.json")
}

/// Name of the table with this hash; None when the text is not a hash.
fn table_name(sha256: &str) -> Option<String> {
    Key::parse(sha256).map(|hash| format!("{TABLES}/{hash}"))
}

/// Size in bytes of the largest manifest that is read.
const LONGEST_MANIFEST: usize = 64 << 20;

const MANIFESTS: &str = "ac";
const TABLES: &str = "cas";
const CHECKPOINTS: &str = "checkpoints";
