//! Leases: which artifacts a run at work counts on, from before it looks at them until its results are recorded.
//!
//! The lock of a stage is held only while the stage works. Without a lease, the artifacts that a run has already made but not
//! yet recorded would look like artifacts that nobody needs.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context;

use super::{Attempt, Key, Lock, atomic};

const PREFIX: &str = "lease-";
/// Held shared while a lease grows, and alone while artifacts are removed: a lease counts from its first moment.
const GATE: &str = "removal";

/// What one process counts on; released when the process ends, however it ends.
#[derive(Debug)]
pub struct Lease {
    lock: Lock,
    noted: BTreeSet<(String, Key)>,
}

impl Lease {
    /// A lease on nothing, in the folder of locks `dir`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn new(dir: &Path) -> anyhow::Result<Lease> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{PREFIX}{}-{number}", std::process::id());
            if let Attempt::Held(lock) = Lock::attempt(dir, &name)? {
                return Ok(Lease { lock, noted: BTreeSet::new() });
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
        gate.lock_shared().context("waiting for the removal of artifacts")?;
        self.lock.append(&format!("{stage} {key}\n"))
    }
}

/// Nobody adds to a lease as long as it is held.
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
        gate.lock().context("waiting for runs that look for artifacts")?;
        Ok(Removal { _gate: gate })
    }
}

fn gate(dir: &Path) -> anyhow::Result<File> {
    atomic::create_dir(dir)?;
    let path = dir.join(GATE);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    open.with_context(|| format!("opening {}", path.display()))
}

/// Stage and key of every artifact that a living process counts on. Leases of dead ones are removed.
///
/// # Errors
/// When a lease cannot be read: what it holds is not known then.
pub fn leased(dir: &Path) -> anyhow::Result<BTreeSet<(String, Key)>> {
    let mut keys = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = file.strip_suffix(".lock").filter(|name| name.starts_with(PREFIX)) else { continue };
        if let Attempt::Held(_dead) = Lock::attempt(dir, name)? {
            continue;
        }
        let text = match fs::read_to_string(entry.path()) {
            // Its process ended in between: its run is recorded, or will not be.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            text => text.with_context(|| format!("reading {}", entry.path().display()))?,
        };
        keys.extend(text.lines().filter_map(|line| {
            let (stage, key) = line.split_once(' ')?;
            Some((stage.to_owned(), Key::parse(key)?))
        }));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
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
    }

    #[test]
    fn a_lease_of_a_dead_process_counts_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let key = Components::default().key();
        let left = dir.path().join("lease-4000000-0.lock");
        fs::write(&left, format!("4000000\ndata {key}\n")).unwrap();
        assert!(leased(dir.path()).unwrap().is_empty());
        assert!(!left.exists());
    }
}
