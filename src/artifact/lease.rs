//! Leases: a run in progress protects the artifacts that it uses from removal, from before it looks for them until its results
//! are recorded.
//!
//! The lock of a stage is held only while the stage works. Without a lease, the artifacts that a run has already made but not yet
//! recorded would look like artifacts that no run needs. A lease is a locked file that its process touches regularly, so that it
//! is also respected by machines that see neither the lock nor the process.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context;

use super::{Attempt, Key, Lock, Process, atomic, filesystem, leftover::PATIENCE, lock};

const PREFIX: &str = "lease-";
/// File that is locked shared while a lease grows, and exclusively while artifacts are removed: an artifact is protected as soon
/// as it is in a lease.
const GATE: &str = "removal";

/// The artifacts that one process needs. A lease is released when it is dropped, or when the process ends in any way.
#[derive(Debug)]
pub struct Lease {
    /// Set until the drop.
    lock: Option<Lock>,
    noted: BTreeSet<(String, Key)>,
}

impl Lease {
    /// An empty lease, in the folder of locks `dir`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn new(dir: &Path) -> anyhow::Result<Lease> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{PREFIX}{}-{number}", Process::here());
            if let Attempt::Held(lock) = Lock::attempt(dir, &name)? {
                return Ok(Lease { lock: Some(lock), noted: BTreeSet::new() });
            }
        }
    }

    /// Adds the artifact of a stage and key. Waits while artifacts are being removed.
    ///
    /// # Errors
    /// When the file cannot be written or locked.
    pub fn add(&mut self, dir: &Path, stage: &str, key: &Key) -> anyhow::Result<()> {
        if !self.noted.insert((stage.to_owned(), key.clone())) {
            return Ok(());
        }
        let gate = gate(dir)?;
        waited(gate.lock_shared()).context("waiting for the removal of artifacts")?;
        let lock = self.lock.as_mut().expect("held until the drop");
        lock.append(&format!("{stage} {key}\n"))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // No other process ever takes a lock of this name.
        if let Some(lock) = self.lock.take() {
            lock.remove();
        }
    }
}

/// While this is held, no process adds to a lease.
#[derive(Debug)]
pub struct Removal {
    _gate: File,
}

impl Removal {
    /// Waits until no lease grows.
    ///
    /// # Errors
    /// When the folder cannot be written or locked.
    pub fn begin(dir: &Path) -> anyhow::Result<Removal> {
        let gate = gate(dir)?;
        waited(gate.lock()).context("waiting for runs that look for artifacts")?;
        Ok(Removal { _gate: gate })
    }
}

fn gate(dir: &Path) -> anyhow::Result<File> {
    atomic::create_dir(dir)?;
    let path = dir.join(GATE);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    open.with_context(|| format!("opening {}", path.display()))
}

/// Ignores the error of a file system without locks: there, no process waits.
fn waited(locked: io::Result<()>) -> io::Result<()> {
    match locked {
        Err(error) if lock::has_no_locks(&error) => Ok(()),
        locked => locked,
    }
}

/// Stage and key of every artifact in a lease whose process is alive, or may be alive on another machine. Leases of dead
/// processes are removed.
///
/// # Errors
/// When a lease cannot be read, because the artifacts that it protects are then unknown.
pub fn leased(dir: &Path) -> anyhow::Result<BTreeSet<(String, Key)>> {
    let mut keys = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = file.strip_suffix(".lock").filter(|name| name.starts_with(PREFIX)) else { continue };
        let path = entry.path();
        let text = match counts(dir, name, &path) {
            Ok(true) => fs::read_to_string(&path),
            Ok(false) => {
                let _ = fs::remove_file(&path);
                continue;
            }
            Err(error) => Err(error),
        };
        let text = match text {
            // The process has just ended: its run is recorded by now, or never will be.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            text => text.with_context(|| format!("reading {}", path.display()))?,
        };
        keys.extend(text.lines().filter_map(|line| {
            let (stage, key) = line.split_once(' ')?;
            Some((stage.to_owned(), Key::parse(key)?))
        }));
    }
    Ok(keys)
}

/// Whether the process of a lease may be alive.
fn counts(dir: &Path, name: &str, path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        return Ok(true);
    }
    // The file's name identifies the process even before the file has any text. Names from older versions contain only a number,
    // which identifies no process of another machine.
    let maker = name.strip_prefix(PREFIX).and_then(|rest| Process::parse(rest.rsplit_once('-')?.0));
    Ok(maker.is_some_and(|maker| lock::may_hold(&maker, &file, filesystem::now(dir), PATIENCE)))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::artifact::Components;

    #[test]
    fn a_lease_counts_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let key = Components::default().key();
        let mut lease = Lease::new(dir.path()).unwrap();
        let mut other = Lease::new(dir.path()).unwrap();
        lease.add(dir.path(), "data", &key).unwrap();
        lease.add(dir.path(), "data", &key).unwrap();
        other.add(dir.path(), "linear_probe", &key).unwrap();
        let expected = |stages: &[&str]| stages.iter().map(|stage| (stage.to_string(), key.clone())).collect();
        assert_eq!(leased(dir.path()).unwrap(), expected(&["data", "linear_probe"]));
        drop(lease);
        assert_eq!(leased(dir.path()).unwrap(), expected(&["linear_probe"]));
        drop(other);
        assert_eq!(leased(dir.path()).unwrap(), expected(&[]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the gate alone is left");
    }

    #[test]
    fn a_lease_of_a_dead_process_counts_no_longer_and_one_of_another_machine_for_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let key = Components::default().key();
        for (process, hours, expected) in
            [(Process::dead(), 0, false), (Process::elsewhere(), 23, true), (Process::elsewhere(), 25, false)]
        {
            let left = dir.path().join(format!("lease-{process}-0.lock"));
            fs::write(&left, format!("{process}\ndata {key}\n")).unwrap();
            let file = File::options().write(true).open(&left).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
            assert_eq!(!leased(dir.path()).unwrap().is_empty(), expected, "{process} {hours}");
            assert_eq!(left.exists(), expected);
        }
    }
}
