//! What no kept run needs, and its removal: artifacts, checkpoints, leftovers of killed processes, damaged folders, run records.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use walkdir::WalkDir;

use super::{
    Attempt, Key, Lock, RunRecord, RunState, Store, atomic, attempt,
    lease::{Removal, leased},
    record,
};

/// What stays.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// Names of the runs that stay; all that are finished when None.
    pub runs: Option<BTreeSet<String>>,
    /// Whatever is younger stays.
    pub younger_than: Option<Duration>,
}

/// Something that can be removed by itself.
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
    /// An artifact that was in the making when its process ended.
    Unfinished(String, Key),
    /// Something that was set aside because it no longer matched its hash.
    Damaged(String),
}

/// An item with its place and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub item: Item,
    pub path: PathBuf,
    pub bytes: u64,
}

/// What a cleaning comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaning {
    /// Goes, in this order.
    pub removed: Vec<Listed>,
    /// Nobody needs it, but somebody works on it.
    pub busy: Vec<Listed>,
    /// Runs that stay.
    pub kept_runs: Vec<String>,
    /// Bytes of the artifacts that stay.
    pub kept_bytes: u64,
}

impl Store {
    /// What would be removed; nothing is.
    ///
    /// # Errors
    /// When a run's record or a lease cannot be read: what it needs is not known then.
    pub fn cleaning(&self, keep: &Keep) -> anyhow::Result<Cleaning> {
        self.look(keep, &mut |_, _| Ok(()))
    }

    /// Removes what [`Store::cleaning`] lists at this moment.
    ///
    /// # Errors
    /// As there, or when something cannot be removed; what was removed before stays removed.
    pub fn clean(&self, keep: &Keep) -> anyhow::Result<Cleaning> {
        let _removal = Removal::begin(&self.locks_dir())?;
        self.look(keep, &mut |store, listed| store.remove(listed))
    }

    /// Hands everything that nobody needs to `each`, while its lock is held.
    fn look(
        &self,
        keep: &Keep,
        each: &mut dyn FnMut(&Store, &Listed) -> anyhow::Result<()>,
    ) -> anyhow::Result<Cleaning> {
        let mut cleaning = Cleaning::default();
        let at_work = leased(&self.locks_dir())?;
        let mut needed = at_work.clone();
        let old = |age: Option<Duration>| match (keep.younger_than, age) {
            (Some(limit), Some(age)) => age >= limit,
            (Some(_), None) => false,
            (None, _) => true,
        };
        let runs = RunRecord::list(self.root()).context(
            "what a run needs is not known while its record cannot be read; mend the record, or remove the run's folder",
        )?;
        let mut found = Vec::new();
        for (dir, record) in runs {
            let kept = keep.runs.as_ref().is_none_or(|names| names.contains(&record.run));
            if kept || !old(since(SystemTime::UNIX_EPOCH + Duration::from_secs(record.created))) {
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
        for (stage, name, path) in self.in_stages() {
            let key = name.strip_prefix('.').and_then(|name| name.strip_suffix(".staging")).and_then(Key::parse);
            let left = key.map(|key| (stage, key)).filter(|of| !at_work.contains(of));
            found.extend(left.map(|(stage, key)| (Item::Unfinished(stage, key), path)));
        }
        for (name, path) in names(&self.root().join("work")) {
            let of = name.rsplit_once('-').and_then(|(stage, key)| Some((stage.to_owned(), Key::parse(key)?)));
            let of = of.filter(|(stage, key)| !needed.contains(&(stage.clone(), key.clone())));
            found.extend(of.filter(|_| old(age(&path))).map(|(stage, key)| (Item::Checkpoints(stage, key), path)));
        }
        let damaged = names(&self.damaged_dir()).into_iter().filter(|(_, path)| old(age(path)));
        found.extend(damaged.map(|(name, path)| (Item::Damaged(name), path)));

        found.sort();
        for (item, path) in found {
            let listed = Listed { bytes: size(&path), path, item };
            let lock = match &listed.item {
                Item::Run(run) => Some(Lock::attempt(&self.locks_dir(), &format!("results-{run}"))?),
                Item::Attempt(run) => Some(attempt::lock(self, run)?),
                Item::Artifact(stage, key) | Item::Checkpoints(stage, key) | Item::Unfinished(stage, key) => {
                    Some(self.lock(stage, key)?)
                }
                Item::Damaged(_) => None,
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

    /// Removes an item whose lock the caller holds. What is half removed is no longer taken for what it was.
    fn remove(&self, listed: &Listed) -> anyhow::Result<()> {
        match &listed.item {
            Item::Run(_) | Item::Attempt(_) => {
                let record = listed.path.join(record::FILE);
                fs::remove_file(&record).with_context(|| format!("removing {}", record.display()))?;
            }
            Item::Artifact(stage, key) => {
                // Under this name the next run removes the rest, should this process be killed.
                let doomed = self.staging_dir(stage, key);
                atomic::remove_dir(&doomed)?;
                atomic::rename(&listed.path, &doomed)?;
                let _ = fs::remove_file(self.stamps_path(stage, key));
                return remove(&doomed);
            }
            Item::Checkpoints(..) | Item::Unfinished(..) | Item::Damaged(_) => {}
        }
        remove(&listed.path)
    }

    /// Stage and key of everything that stands where artifacts stand, whole or not, in order.
    pub fn keys(&self) -> Vec<(String, Key)> {
        self.in_stages().into_iter().filter_map(|(stage, name, _)| Some((stage, Key::parse(&name)?))).collect()
    }

    /// Stage, name and path of everything in the stages' folders.
    fn in_stages(&self) -> Vec<(String, String, PathBuf)> {
        let stages = names(&self.root().join("store")).into_iter();
        stages
            .flat_map(|(stage, dir)| names(&dir).into_iter().map(move |(name, path)| (stage.clone(), name, path)))
            .collect()
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        true => atomic::remove_dir(path),
        false => fs::remove_file(path).with_context(|| format!("removing {}", path.display())),
    }
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

/// Time since something in a folder, or a file, last changed; None when that is in the future or not known.
fn age(path: &Path) -> Option<Duration> {
    let changed = WalkDir::new(path).into_iter().flatten().filter_map(|entry| entry.metadata().ok()?.modified().ok());
    since(changed.max()?)
}

fn since(time: SystemTime) -> Option<Duration> {
    SystemTime::now().duration_since(time).ok()
}
