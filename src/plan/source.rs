//! Hashes of source files: what keys hold of files that lie outside the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use rayon::prelude::*;

use crate::{
    artifact::{Stamp, StatCache, hash},
    dataset::DataConfig,
    stage::{Interrupt, Progress, Stopped},
};

/// Files are hashed in groups of this many, between which progress is shown and an interruption noticed.
const GROUP: usize = 64;

/// Role -> hash of the bytes of every source file. Files whose size, times and inode are those of an earlier look are not
/// read again. Empty for generated data.
pub fn hashes(
    config: &DataConfig,
    base: &Path,
    root: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<BTreeMap<String, String>> {
    let files = files(config, base)?;
    if files.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut cache = StatCache::open(cache_path(config, base, root)?);
    let mut roles = BTreeSet::new();
    let mut hashes = BTreeMap::new();
    let mut unknown = Vec::new();
    for (role, path) in files {
        // Two files may be called alike, e.g. in two folders that are both given.
        let role = (1..).map(|n| if n == 1 { role.clone() } else { format!("{role}#{n}") });
        let role = role.into_iter().find(|role| roles.insert(role.clone())).expect("numbers do not run out");
        let metadata = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?;
        let stamp = Stamp::of(&metadata);
        match cache.lookup(&role, &stamp) {
            Some(hash) => drop(hashes.insert(role, hash.to_owned())),
            None => unknown.push((role, path, stamp)),
        }
    }
    if !unknown.is_empty() {
        let bytes: u64 = unknown.iter().map(|(_, _, stamp)| stamp.size()).sum();
        progress.start(Some(bytes >> 20), "MiB of source files hashed");
        let mut done = 0;
        for group in unknown.chunks(GROUP) {
            if interrupt.requested() {
                // What is hashed so far need not be hashed again.
                cache.save();
                return Err(Stopped::InterruptedAt { stage: "data" }.into());
            }
            for ((role, _, stamp), hash) in group.iter().zip(hash_group(group)?) {
                cache.record(role, *stamp, &hash);
                hashes.insert(role.clone(), hash);
                progress.advance(((done + stamp.size()) >> 20) - (done >> 20));
                done += stamp.size();
            }
        }
        cache.save();
    }
    Ok(hashes)
}

/// One file on the calling thread, so that a small data set does not start a thread pool; several on all threads.
fn hash_group(group: &[(String, PathBuf, Stamp)]) -> anyhow::Result<Vec<String>> {
    let hash = |(_, path, _): &(String, PathBuf, Stamp)| {
        hash::file(path, |_| ()).with_context(|| format!("reading {}", path.display()))
    };
    match group {
        [one] => Ok(vec![hash(one)?]),
        many => many.par_iter().map(hash).collect(),
    }
}

/// One cache per data section and folder it is relative to: a look at a small data set does not read the hashes of a large one.
fn cache_path(config: &DataConfig, base: &Path, root: &Path) -> anyhow::Result<PathBuf> {
    let base = std::path::absolute(base)?;
    let name = hash::bytes(format!("{} {}", base.display(), serde_json::to_string(config)?).as_bytes());
    Ok(root.join("cache").join(format!("sources-{}.txt", &name[..16])))
}

/// Role and path of every source file, in order.
fn files(config: &DataConfig, base: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let named: Vec<(&str, &[PathBuf])> = match config {
        DataConfig::Synthetic(_) => return Ok(Vec::new()),
        DataConfig::ImageFolder(c) | DataConfig::Cifar10(c) => {
            let test = c.test.as_ref().map_or(&[][..], |paths| paths.as_slice());
            vec![("train", c.train.as_slice()), ("test", test)]
        }
        DataConfig::Parquet(c) => {
            let test = c.test.as_ref().map_or(&[][..], |paths| paths.as_slice());
            vec![("train", c.train.as_slice()), ("test", test)]
        }
        DataConfig::Idx(c) => {
            let optional = [("train_labels", &c.train_labels), ("test", &c.test), ("test_labels", &c.test_labels)];
            let mut named = vec![("train", std::slice::from_ref(&c.train))];
            named.extend(optional.into_iter().map(|(role, path)| (role, path.as_slice())));
            named
        }
    };
    let mut files = Vec::new();
    for (split, paths) in named {
        for path in paths {
            let path = base.join(path);
            for entry in walkdir::WalkDir::new(&path).follow_links(true).sort_by_file_name() {
                let entry = entry.with_context(|| format!("reading {}", path.display()))?;
                if entry.file_type().is_file() {
                    let inner = entry.path().strip_prefix(&path).unwrap_or(Path::new(""));
                    let name = if inner.as_os_str().is_empty() { Path::new(entry.file_name()) } else { inner };
                    files.push((format!("{split}/{}", name.display()), entry.into_path()));
                }
            }
        }
    }
    Ok(files)
}
