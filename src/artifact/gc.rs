//! Garbage collection: finds and removes what no kept run needs, such as artifacts, checkpoints, leftovers of killed processes,
//! damaged folders and run records.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use walkdir::WalkDir;

use super::{
    Attempt, FileSystem, Key, Lock, RunRecord, RunState, Store, UNFINISHED, atomic,
    lease::{Removal, leased},
    leftover::{self, Leftovers, PATIENCE},
    record, store,
};

/// What a garbage collection keeps.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// Names of the runs to keep; all finished runs when None.
    pub runs: Option<BTreeSet<String>>,
    /// Anything younger than this is kept.
    pub younger_than: Option<Duration>,
}

/// Something that a garbage collection can remove on its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// The folder of a run.
    Run(String),
    /// The record of a run that ended without results.
    Attempt(String),
    /// An artifact: stage and key.
    Artifact(String, Key),
    /// Checkpoints of an unfinished stage.
    Checkpoints(String, Key),
    /// An artifact that was being written or removed when its process ended.
    Unfinished(String, Key),
    /// A file or folder that was being written or removed when its process ended: its final name.
    Leftover(String),
    /// Something that was set aside because it no longer matched its hash.
    Damaged(String),
}

/// An item with its path and its size in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub item: Item,
    pub path: PathBuf,
    pub bytes: u64,
}

/// The result of a garbage collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaning {
    /// Items that are removed, in this order.
    pub removed: Vec<Listed>,
    /// Items that no run needs, but that a process works on. They stay.
    pub busy: Vec<Listed>,
    /// Runs that stay.
    pub kept_runs: Vec<String>,
    /// Bytes of the artifacts that stay.
    pub kept_bytes: u64,
    /// The file system, if other machines may see it. They may need anything that changed in the last day, so that stays.
    pub shared: Option<FileSystem>,
}

impl Store {
    /// Lists what [`Store::clean`] would remove. Nothing is removed.
    ///
    /// # Errors
    /// When a run's record or a lease cannot be read, because it is then unknown what must stay.
    pub fn cleaning(&self, keep: &Keep) -> anyhow::Result<Cleaning> {
        self.look(keep, &mut |_, _| Ok(()))
    }

    /// Removes what [`Store::cleaning`] lists at this moment.
    ///
    /// # Errors
    /// As for [`Store::cleaning`], or when an item cannot be removed; items removed before it stay removed.
    pub fn clean(&self, keep: &Keep) -> anyhow::Result<Cleaning> {
        let _removal = Removal::begin(&self.locks_dir())?;
        self.look(keep, &mut |store, listed| store.remove(listed))
    }

    /// Passes each item that no run needs to `each`, while holding the item's lock.
    fn look(
        &self,
        keep: &Keep,
        each: &mut dyn FnMut(&Store, &Listed) -> anyhow::Result<()>,
    ) -> anyhow::Result<Cleaning> {
        let shared = Some(FileSystem::of(self.root())).filter(FileSystem::is_shared);
        // A new lease of another machine may not be visible here yet, because network file systems show new file names late.
        let spared = keep.younger_than.max(shared.as_ref().map(|_| PATIENCE));
        let mut cleaning = Cleaning { shared, ..Cleaning::default() };
        let mut needed = leased(&self.locks_dir())?;
        let leftovers = Leftovers::of(&self.locks_dir());
        let old = |age: Option<Duration>| match (spared, age) {
            (Some(limit), Some(age)) => age >= limit,
            (Some(_), None) => false,
            (None, _) => true,
        };
        let age = |path: &Path| leftovers.age(path);
        let runs = RunRecord::list(self.root()).context(
            "what a run needs is not known while its record cannot be read; mend the record, or remove the run's folder",
        )?;
        let mut found = Vec::new();
        for (dir, record) in runs {
            let kept = keep.runs.as_ref().is_none_or(|names| names.contains(&record.run));
            if kept || !old(leftovers.since(SystemTime::UNIX_EPOCH + Duration::from_secs(record.created))) {
                needed.extend(record.stages.into_iter().map(|stage| (stage.stage, stage.key)));
                cleaning.kept_runs.push(record.run);
            } else {
                found.push((Item::Run(record.run), dir));
            }
        }
        for (dir, record) in RunRecord::unfinished(self.root())? {
            let Some(unfinished) = record.unfinished else { continue };
            let named = keep.runs.as_ref().is_some_and(|names| names.contains(&record.run));
            if named || unfinished.state == RunState::Running || !old(age(&dir)) {
                needed.extend(record.stages.into_iter().map(|stage| (stage.stage, stage.key)));
                needed.insert((unfinished.stage, unfinished.key));
                if named {
                    cleaning.kept_runs.push(record.run);
                }
            } else {
                found.push((Item::Attempt(record.run), dir));
            }
        }
        for (stage, key) in self.keys() {
            let dir = self.artifact_dir(&stage, &key);
            if needed.contains(&(stage.clone(), key.clone())) || !old(age(&dir)) {
                cleaning.kept_bytes += size(&dir);
            } else {
                found.push((Item::Artifact(stage, key), dir));
            }
        }
        for (stage, dir) in names(&self.root().join("store")) {
            let left = leftovers.in_dir(&dir, store::STAGING).into_iter();
            let of = left.filter_map(|(name, path)| Some((Item::Unfinished(stage.clone(), Key::parse(&name)?), path)));
            found.extend(of);
        }
        for (name, path) in names(&self.root().join("work")) {
            let of = Key::parse_with_stage(&name).map(|(stage, key)| (stage.to_owned(), key));
            let of = of.filter(|(stage, key)| !needed.contains(&(stage.clone(), key.clone())));
            found.extend(of.filter(|_| old(age(&path))).map(|(stage, key)| (Item::Checkpoints(stage, key), path)));
        }
        let damaged = names(&self.damaged_dir()).into_iter().filter(|(_, path)| old(age(path)));
        found.extend(damaged.map(|(name, path)| (Item::Damaged(name), path)));
        // Leftovers in the folders of runs and of unfinished stages, and beside these folders. Folders that are removed anyway
        // are skipped.
        let going: BTreeSet<PathBuf> = found.iter().map(|(_, path)| path.clone()).collect();
        for above in ["results", UNFINISHED, "work", "cache"].map(|name| self.root().join(name)) {
            let within = names(&above).into_iter().map(|(_, path)| path);
            for dir in within.filter(|path| path.is_dir() && !going.contains(path)).chain([above.clone()]) {
                let left = leftovers.in_dir(&dir, "tmp").into_iter();
                found.extend(left.map(|(name, path)| (Item::Leftover(name), path)));
            }
        }

        found.sort();
        for (item, path) in found {
            let listed = Listed { bytes: size(&path), path, item };
            let lock = match &listed.item {
                Item::Run(run) => Some(Lock::attempt_removal(&self.locks_dir(), &format!("results-{run}"))?),
                Item::Attempt(run) => Some(Lock::attempt_removal(&self.locks_dir(), &record::lock_name(run))?),
                Item::Artifact(stage, key) | Item::Checkpoints(stage, key) => Some(self.lock_removal(stage, key)?),
                // These need no lock: no process works on leftovers of dead processes, or on what was set aside as damaged.
                Item::Unfinished(..) | Item::Leftover(_) | Item::Damaged(_) => None,
            };
            if matches!(lock, Some(Attempt::Busy(_))) {
                cleaning.busy.push(listed);
                continue;
            }
            each(self, &listed)?;
            cleaning.removed.push(listed);
        }
        Ok(cleaning)
    }

    /// Removes an item whose lock the caller holds. A half-removed item is not mistaken for a complete one.
    fn remove(&self, listed: &Listed) -> anyhow::Result<()> {
        match &listed.item {
            Item::Run(_) | Item::Attempt(_) => {
                let record = listed.path.join(record::FILE);
                fs::remove_file(&record).with_context(|| format!("removing {}", record.display()))?;
            }
            Item::Artifact(stage, key) => {
                // If this process is killed, the next run finds the rest under this name and removes it.
                let doomed = self.staging_dir(stage, key);
                atomic::rename(&listed.path, &doomed)?;
                let _ = fs::remove_file(self.stamps_path(stage, key));
                return removed(&doomed);
            }
            Item::Checkpoints(..) => return atomic::discard_dir(&listed.path),
            Item::Unfinished(..) | Item::Leftover(_) | Item::Damaged(_) => {}
        }
        removed(&listed.path)
    }

    /// Stage and key of everything in the place of an artifact, intact or not, sorted.
    pub fn keys(&self) -> Vec<(String, Key)> {
        let stages = names(&self.root().join("store")).into_iter();
        let keys = |(stage, dir): (String, PathBuf)| {
            names(&dir).into_iter().filter_map(move |(name, _)| Some((stage.clone(), Key::parse(&name)?)))
        };
        stages.flat_map(keys).collect()
    }
}

fn removed(path: &Path) -> anyhow::Result<()> {
    leftover::remove(path).with_context(|| format!("removing {}", path.display()))
}

/// Names and paths in a folder, sorted; none when there is no folder.
pub(super) fn names(dir: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    names.sort();
    names
}

/// Bytes of a file, or of the files in a folder.
fn size(path: &Path) -> u64 {
    let files = WalkDir::new(path).into_iter().flatten().filter(|entry| entry.file_type().is_file());
    files.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}
