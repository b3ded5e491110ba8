//! Removes objects from the shared cache that have not been used for a long time. No machine knows the runs of all others, so age
//! decides.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use super::{
    Address, CHECKPOINTS, Failure, LONGEST_MANIFEST, MANIFESTS, Objects, TABLES, manifest_name,
    objects::{self, Meta},
    table_name,
};
use crate::artifact::{Key, Manifest};

/// Younger tables stay, because the manifest that needs them may not be uploaded yet.
const GRACE: Duration = Duration::from_secs(24 * 3600);

/// Something that is removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// An artifact: stage and key.
    Artifact(String, String),
    /// A checkpoint, or a file of one.
    Checkpoint(String),
    /// A table that no remaining artifact has.
    Table(String),
}

/// The result of a cleaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Removed items, with the sizes of their objects in bytes.
    pub removed: Vec<(Item, u64)>,
    /// Artifacts that stay.
    pub kept: usize,
    /// Bytes of the tables that stay.
    pub kept_bytes: u64,
}

/// Lists the objects that have not been used for `age`, and removes them if `remove` is set. Artifacts in `needed` stay.
///
/// # Errors
/// When the cache does not answer; objects removed before that stay removed.
pub fn clean(
    address: &Address,
    age: Duration,
    needed: &BTreeSet<(String, Key)>,
    remove: bool,
) -> Result<Cleaned, String> {
    let cleaned = super::open(address).and_then(|objects| look(&*objects, age, needed, remove));
    cleaned.map_err(|failure| format!("shared cache {address}: {failure}"))
}

fn look(
    objects: &dyn Objects,
    age: Duration,
    needed: &BTreeSet<(String, Key)>,
    remove: bool,
) -> Result<Cleaned, Failure> {
    let is_older = |meta: &Meta, limit: Duration| {
        SystemTime::now().duration_since(meta.modified).is_ok_and(|since| since >= limit)
    };
    let mut cleaned = Cleaned::default();
    let mut going = Vec::new();
    let mut stays = BTreeSet::new();
    for meta in all(objects, MANIFESTS)? {
        let parts = meta.name.strip_suffix(".json").and_then(|name| name.split_once('/')?.1.split_once('/'));
        let identity = parts.and_then(|(stage, key)| Some((stage.to_owned(), Key::parse(key)?)));
        let is_needed = identity.as_ref().is_some_and(|identity| needed.contains(identity));
        if !is_needed && is_older(&meta, age) {
            let (stage, key) = parts.unwrap_or(("", &meta.name));
            going.push((Item::Artifact(stage.to_owned(), key.to_owned()), meta));
            continue;
        }
        cleaned.kept += 1;
        let Some((stage, key)) = identity else { continue };
        match objects::get(objects, &manifest_name(&stage, &key), LONGEST_MANIFEST) {
            // A manifest that cannot be parsed keeps no tables. The next process that makes the artifact replaces it.
            Ok((text, _)) => stays.extend(
                Manifest::parse(&text)
                    .into_iter()
                    .flat_map(|manifest| manifest.files)
                    .filter_map(|file| table_name(&file.sha256)),
            ),
            Err(Failure::Missing) => {}
            Err(failure) => return Err(failure),
        }
    }
    for meta in all(objects, TABLES)? {
        match stays.contains(&meta.name) || !is_older(&meta, GRACE) {
            true => cleaned.kept_bytes += meta.size,
            false => going.push((Item::Table(meta.name.clone()), meta)),
        }
    }
    let checkpoints = all(objects, CHECKPOINTS)?.into_iter().filter(|meta| is_older(meta, age));
    going.extend(checkpoints.map(|meta| (Item::Checkpoint(meta.name.clone()), meta)));
    // Manifests are removed before their tables.
    for (item, meta) in going {
        if remove {
            objects.remove(&meta.name)?;
        }
        cleaned.removed.push((item, meta.size));
    }
    Ok(cleaned)
}

fn all(objects: &dyn Objects, folder: &str) -> Result<Vec<Meta>, Failure> {
    let mut found = Vec::new();
    objects.list(folder, &mut |meta| found.push(meta))?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
