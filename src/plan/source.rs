//! Hashes of source files: what keys hold of files that lie outside the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::{
    artifact::{Stamp, StatCache, hash},
    dataset::{self, DataConfig, SourceFile},
    encoder::EncoderConfig,
    spec::Experiment,
    stage::{Interrupt, Progress, Stopped},
};

/// Stands for the hash of a file that cannot be read: the stage that reads it says so, or skips it.
const UNREADABLE: &str = "unreadable";

/// Files are hashed in groups of this many, between which progress is shown and an interruption noticed.
const GROUP: usize = 64;

/// Longest time between two savings of what is known.
const SAVED_EVERY: Duration = Duration::from_secs(20);

/// Hashes of the files that lie outside the store and that an experiment reads.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Role -> hash of every file of the data.
    pub data: BTreeMap<String, String>,
    /// The file that the encoder starts from.
    pub init: Option<String>,
}

impl Sources {
    /// Stands for the files: experiments of one name read the same ones.
    ///
    /// # Errors
    /// When a field has no place in JSON.
    pub fn name(experiment: &Experiment) -> anyhow::Result<String> {
        Ok(serde_json::to_string(&(&experiment.data, experiment.encoder.init()))?)
    }

    /// Those of an experiment, whose relative paths are relative to `base`. Files are read where their hash is not known yet.
    ///
    /// # Errors
    /// When they cannot be listed, or the user interrupts.
    pub fn of(
        experiment: &Experiment,
        base: &Path,
        root: &Path,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Sources> {
        Ok(Sources {
            data: hashes(&experiment.data, base, root, progress, interrupt)?,
            init: init_hash(&experiment.encoder, base, root, progress, interrupt)?,
        })
    }
}

/// Role -> hash of the bytes of every source file of the data. Empty for generated data.
fn hashes(
    config: &DataConfig,
    base: &Path,
    root: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<BTreeMap<String, String>> {
    let files = dataset::source_files(config, base)?;
    if files.is_empty() {
        return Ok(BTreeMap::new());
    }
    hash_files(files, cache_path(&serde_json::to_string(config)?, base, root)?, progress, interrupt)
}

/// Hash of the bytes of the file of weights that the encoder starts from.
fn init_hash(
    config: &EncoderConfig,
    base: &Path,
    root: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<String>> {
    let Some(path) = config.init() else { return Ok(None) };
    let file = SourceFile { role: "init".to_owned(), path: base.join(path) };
    let cache = cache_path(&format!("encoder.init {}", path.display()), base, root)?;
    fs::metadata(&file.path).with_context(|| format!("encoder.init: cannot read {}", file.path.display()))?;
    let hashes = hash_files(vec![file], cache, progress, interrupt)?;
    Ok(hashes.into_values().next())
}

/// Role -> hash of each file. Files whose size, times and inode are those of an earlier look are not read again.
fn hash_files(
    files: Vec<SourceFile>,
    cache: PathBuf,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut cache = StatCache::open(cache);
    let mut roles = BTreeSet::new();
    let mut hashes = BTreeMap::new();
    let mut unknown = Vec::new();
    for SourceFile { role, path } in files {
        // Two files may be called alike, e.g. in two folders that are both given.
        let role = (1..).map(|n| if n == 1 { role.clone() } else { format!("{role}#{n}") });
        let role = role.into_iter().find(|role| roles.insert(role.clone())).expect("numbers do not run out");
        let Ok(metadata) = fs::metadata(&path) else {
            hashes.insert(role, UNREADABLE.to_owned());
            continue;
        };
        let stamp = Stamp::of(&metadata);
        match cache.lookup(&role, &stamp) {
            Some(hash) => drop(hashes.insert(role, hash.to_owned())),
            None => unknown.push((role, path, stamp)),
        }
    }
    if !unknown.is_empty() {
        let bytes: u64 = unknown.iter().map(|(_, _, stamp)| stamp.size()).sum();
        progress.start(Some(bytes >> 20), "MiB of source files hashed");
        let (mut done, mut saved) = (0, Instant::now());
        for group in unknown.chunks(GROUP) {
            if interrupt.requested() {
                // What is hashed so far need not be hashed again.
                cache.save();
                return Err(Stopped::InterruptedAt { stage: "data" }.into());
            }
            for ((role, _, stamp), hash) in group.iter().zip(hash_group(group)) {
                if hash != UNREADABLE {
                    cache.record(role, *stamp, &hash);
                }
                hashes.insert(role.clone(), hash);
                progress.advance(((done + stamp.size()) >> 20) - (done >> 20));
                done += stamp.size();
            }
            // A kill then costs no more than this.
            if saved.elapsed() >= SAVED_EVERY {
                cache.save();
                saved = Instant::now();
            }
        }
        cache.save();
    }
    Ok(hashes)
}

/// One file on the calling thread, several on threads of their own: the pool starts with the work of the first stage, with as
/// many threads as were asked for.
fn hash_group(group: &[(String, PathBuf, Stamp)]) -> Vec<String> {
    let hash = |(_, path, _): &(String, PathBuf, Stamp)| hash::file(path, |_| ()).unwrap_or(UNREADABLE.to_owned());
    let hash_all = |part: &[(String, PathBuf, Stamp)]| part.iter().map(hash).collect::<Vec<_>>();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if threads.min(group.len()) < 2 {
        return hash_all(group);
    }
    std::thread::scope(|scope| {
        let parts = group.chunks(group.len().div_ceil(threads));
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || hash_all(part))).collect();
        let results = threads.into_iter();
        results.flat_map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// One cache per data section or file and folder it is relative to: a look at a small data set does not read the hashes of a
/// large one.
fn cache_path(what: &str, base: &Path, root: &Path) -> anyhow::Result<PathBuf> {
    let base = std::env::current_dir()?.join(base);
    let name = hash::bytes(format!("{} {what}", base.display()).as_bytes());
    Ok(root.join("cache").join(format!("sources-{}.txt", &name[..16])))
}
