//! The store: finds, checks and commits artifacts by stage and key.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use arrow::array::RecordBatch;

use super::{
    Artifact, ArtifactWriter, CheckpointFile, Checkpoints, Components, Incoming, Key, Lock, Manifest, Process, Stamp,
    StatCache, UNFINISHED, atomic, checkpoint, hash,
    lease::Lease,
    leftover::{self, Leftovers},
    lock::Attempt,
    manifest,
    writer::{Complete, Staging},
};

/// Artifacts up to this size are hashed whenever they are found; larger ones when their files' stamps changed.
const ALWAYS_HASHED: u64 = 32 << 20;

/// Limit on the bytes that one store hashes because of [`ALWAYS_HASHED`], so that a run with nothing to do ends at once.
const HASHED_IN_ALL: u64 = 64 << 20;

/// Suffix of the names of artifacts that are being written or removed.
pub(super) const STAGING: &str = "staging";

/// Artifacts, checkpoints and locks under one root folder.
pub struct Store {
    root: PathBuf,
    hashed: AtomicU64,
    /// Artifacts that this process hashed or wrote.
    verified: Mutex<HashSet<PathBuf>>,
    /// Protects the artifacts that the user of this store needs from removal.
    lease: Mutex<Option<Lease>>,
}

/// The result of looking for the artifact of a stage and key.
#[derive(Debug)]
pub enum Found {
    Missing,
    /// Something other than the committed artifact; `what` names the file and the problem.
    Damaged {
        what: String,
    },
    Hit(Artifact),
}

impl Store {
    /// The store under `root`. Nothing is created until something is written.
    pub fn open(root: &Path) -> Store {
        Store { root: root.to_owned(), hashed: AtomicU64::new(0), verified: Mutex::default(), lease: Mutex::default() }
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Protects an artifact, whether it exists yet or not, from garbage collection until the store is dropped. An artifact that
    /// was found before this call may already be removed: look for it again.
    ///
    /// # Errors
    /// When the folder of locks cannot be written.
    pub fn count_on(&self, stage: &str, key: &Key) -> anyhow::Result<()> {
        let mut lease = self.lease.lock().expect("no panics while held");
        if lease.is_none() {
            *lease = Some(Lease::new(&self.locks_dir())?);
        }
        lease.as_mut().expect("just made").add(&self.locks_dir(), stage, key)
    }

    pub(super) fn locks_dir(&self) -> PathBuf {
        self.root.join("locks")
    }

    pub(super) fn artifact_dir(&self, stage: &str, key: &Key) -> PathBuf {
        self.root.join("store").join(stage).join(key.as_str())
    }

    /// A folder for an artifact that is being written or removed. No two calls, on any machine, return the same path.
    pub(super) fn staging_dir(&self, stage: &str, key: &Key) -> PathBuf {
        self.root.join("store").join(stage).join(atomic::unique(key.as_str(), STAGING))
    }

    /// Folder of the checkpoints of a stage.
    pub fn work_dir(&self, stage: &str, key: &Key) -> PathBuf {
        self.root.join("work").join(format!("{stage}-{key}"))
    }

    pub(super) fn damaged_dir(&self) -> PathBuf {
        self.root.join("damaged")
    }

    /// Looks for an artifact and checks it. Small artifacts are hashed, up to a total per store; other artifacts only where their
    /// files' stamps changed.
    pub fn find(&self, stage: &str, key: &Key) -> Found {
        let dir = self.artifact_dir(stage, key);
        if fs::symlink_metadata(&dir).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Found::Missing;
        }
        let artifact = match self.read_manifest(stage, key) {
            Ok(manifest) => Artifact::new(dir, manifest),
            Err(what) => return Found::Damaged { what },
        };
        let size = artifact.size();
        let small = size <= ALWAYS_HASHED && self.hashed.fetch_add(size, Ordering::Relaxed) + size <= HASHED_IN_ALL;
        match self.check(&artifact, small, &mut |_| ()) {
            Ok(()) => Found::Hit(artifact),
            Err(what) => Found::Damaged { what },
        }
    }

    /// Hashes every file of an artifact that is about to be read, unless this process did so before. `seen` is called with the
    /// number of bytes of each piece read. The error says what is wrong.
    pub fn verify(&self, artifact: &Artifact, seen: &mut dyn FnMut(u64)) -> Result<(), String> {
        match self.is_verified(artifact) {
            true => Ok(()),
            false => self.check(artifact, true, seen),
        }
    }

    /// Whether this process hashed or wrote the artifact.
    pub fn is_verified(&self, artifact: &Artifact) -> bool {
        self.verified.lock().expect("no panics while held").contains(artifact.dir())
    }

    pub(super) fn read_manifest(&self, stage: &str, key: &Key) -> Result<Manifest, String> {
        self.read_manifest_in(&self.artifact_dir(stage, key), stage, key)
    }

    fn read_manifest_in(&self, dir: &Path, stage: &str, key: &Key) -> Result<Manifest, String> {
        let manifest = Manifest::read(dir)?;
        manifest.check_identity(stage, key)?;
        Ok(manifest)
    }

    fn check(&self, artifact: &Artifact, hash_all: bool, seen: &mut dyn FnMut(u64)) -> Result<(), String> {
        let mut stamps = self.stamps(artifact.stage(), artifact.stage_key());
        for entry in &artifact.manifest().files {
            let (file, path) = (entry.file(), artifact.dir().join(entry.file()));
            let stamp = fs::metadata(&path).map(|metadata| Stamp::of(&metadata));
            let stamp = stamp.map_err(|error| format!("{file}: {error}"))?;
            if stamp.size() != entry.size {
                return Err(format!("{file}: {} bytes instead of {}", stamp.size(), entry.size));
            }
            if !hash_all && stamps.lookup(&file, &stamp) == Some(&entry.sha256) {
                continue;
            }
            let sha256 = hash::file(&path, &mut *seen).map_err(|error| format!("{file}: {error}"))?;
            if sha256 != entry.sha256 {
                return Err(format!("{file}: does not match its hash"));
            }
            // A small artifact gets stamps only once the limit is reached: until then, it is hashed anyway.
            let stamped = artifact.size() > ALWAYS_HASHED / 4 || !hash_all;
            if stamped && stamps.lookup(&file, &stamp) != Some(&entry.sha256) {
                stamps.record(&file, stamp, &sha256);
            }
        }
        stamps.save();
        if hash_all {
            self.verified.lock().expect("no panics while held").insert(artifact.dir().to_owned());
        }
        Ok(())
    }

    fn stamps(&self, stage: &str, key: &Key) -> StatCache {
        StatCache::open(self.stamps_path(stage, key))
    }

    pub(super) fn stamps_path(&self, stage: &str, key: &Key) -> PathBuf {
        self.root.join("cache").join(format!("{stage}-{key}.txt"))
    }

    /// Tries to take the lock of a stage and key, without waiting.
    pub fn lock(&self, stage: &str, key: &Key) -> anyhow::Result<Attempt> {
        Lock::attempt(&self.locks_dir(), &format!("{stage}-{key}"))
    }

    /// The process that works on a stage and key; the result is that of [`Lock::holder`].
    pub fn worker(&self, stage: &str, key: &Key) -> Option<Option<Process>> {
        Lock::holder(&self.locks_dir(), &format!("{stage}-{key}"))
    }

    /// Like [`Store::lock`], for a caller that removes the artifact or its checkpoints: see [`Lock::attempt_removal`].
    pub(super) fn lock_removal(&self, stage: &str, key: &Key) -> anyhow::Result<Attempt> {
        Lock::attempt_removal(&self.locks_dir(), &format!("{stage}-{key}"))
    }

    /// Starts an artifact. `lock` is the lock of the stage and of the key of `components`. If another machine holds this lock
    /// too, both make the artifact, and the one committed first is kept.
    pub fn begin(&self, lock: &Lock, stage: &str, components: Components) -> anyhow::Result<ArtifactWriter> {
        let key = components.key();
        assert_eq!(lock.name(), format!("{stage}-{key}"), "the lock of another stage");
        ArtifactWriter::new(stage, components, self.staging_dir(stage, &key))
    }

    /// Commits an artifact, then removes the stage's checkpoints. `lock` is the one that the artifact was started with. If
    /// another process has committed an intact artifact in the meantime, that one is returned and ours is removed.
    pub fn commit(&self, lock: &Lock, writer: ArtifactWriter) -> anyhow::Result<Artifact> {
        let (stage, key) = writer.identity();
        assert_eq!(lock.name(), format!("{stage}-{key}"), "the lock of another stage");
        self.settle(lock, writer.complete()?)
    }

    /// Starts to receive an artifact that was made elsewhere; the caller then passes the tables that its manifest names. `lock`
    /// is the lock of its stage and key.
    pub fn receive(&self, lock: &Lock, manifest: Manifest) -> anyhow::Result<Incoming> {
        let (stage, key) = (&manifest.stage, &manifest.key);
        assert_eq!(lock.name(), format!("{stage}-{key}"), "the lock of another stage");
        let staging = Staging::new(self.staging_dir(stage, key))?;
        Ok(Incoming::new(staging, manifest))
    }

    /// Commits an artifact whose tables have all arrived, as [`Store::commit`] does.
    pub fn accept(&self, lock: &Lock, incoming: Incoming) -> anyhow::Result<Artifact> {
        self.settle(lock, incoming.complete()?)
    }

    fn settle(&self, lock: &Lock, mut complete: Complete) -> anyhow::Result<Artifact> {
        let (stage, key) = (complete.manifest().stage.clone(), complete.manifest().key.clone());
        let dir = self.artifact_dir(&stage, &key);
        while !complete.rename(&dir)? {
            if let Ok(theirs) = self.whole(&stage, &key) {
                self.remove_work(&stage, &key)?;
                return Ok(theirs);
            }
            self.set_aside(lock, &stage, &key)?;
        }
        let artifact = Artifact::new(dir, complete.manifest().clone());
        // This comes before taking the stamps: a table that was kept beside the checkpoints loses a hard link here, which changes
        // its stamp.
        self.remove_work(&stage, &key)?;
        if artifact.size() > ALWAYS_HASHED / 4 {
            let mut stamps = self.stamps(&stage, &key);
            let files = &artifact.manifest().files;
            stamps.record_written(artifact.dir(), files.iter().map(|entry| (entry.file(), &*entry.sha256)));
            stamps.save();
        }
        self.verified.lock().expect("no panics while held").insert(artifact.dir().to_owned());
        Ok(artifact)
    }

    /// Makes an artifact in one call: takes the lock, lets `fill` write the tables, and commits. Errors when another process is
    /// making it.
    pub fn build(
        &self,
        stage: &str,
        components: Components,
        fill: impl FnOnce(&mut ArtifactWriter) -> anyhow::Result<()>,
    ) -> anyhow::Result<Artifact> {
        let Attempt::Held(lock) = self.lock(stage, &components.key())? else {
            anyhow::bail!("another process is making this {stage} artifact");
        };
        let mut writer = self.begin(&lock, stage, components)?;
        fill(&mut writer)?;
        self.commit(&lock, writer)
    }

    /// The artifact under a stage and key, after hashing every table; the error says what is wrong.
    fn whole(&self, stage: &str, key: &Key) -> Result<Artifact, String> {
        let artifact = Artifact::new(self.artifact_dir(stage, key), self.read_manifest(stage, key)?);
        self.check(&artifact, true, &mut |_| ())?;
        Ok(artifact)
    }

    /// Moves the damaged artifact of a stage and key out of the way, and returns its new path. The caller holds the lock. None
    /// when there is nothing left to move: the artifact is gone, or another machine has put an intact one there in the meantime.
    pub fn set_aside(&self, lock: &Lock, stage: &str, key: &Key) -> anyhow::Result<Option<PathBuf>> {
        assert_eq!(lock.name(), format!("{stage}-{key}"), "the lock of another stage");
        let dir = self.artifact_dir(stage, key);
        self.verified.lock().expect("no panics while held").remove(&dir);
        if self.whole(stage, key).is_ok() {
            return Ok(None);
        }
        let moved = atomic::set_aside(&self.damaged_dir(), &dir, &format!("{stage}-{}", key.short()))?;
        let Some(moved) = moved else { return Ok(None) };
        // Another machine may have replaced the artifact between the check and the rename: an intact one is moved back.
        let is_whole = self.read_manifest_in(&moved, stage, key).is_ok_and(|manifest| {
            let hashed = |file: &super::FileEntry| hash::file(&moved.join(file.file()), |_| ());
            manifest.files.iter().all(|file| hashed(file).is_ok_and(|sha256| sha256 == file.sha256))
        });
        if is_whole && fs::rename(&moved, &dir).is_ok() {
            atomic::sync_dir(dir.parent().expect("a stage's folder"))?;
            return Ok(None);
        }
        Ok(Some(moved))
    }

    /// Checkpoints of a stage; damage is reported to `warn`. The caller holds the lock.
    pub fn checkpoints(
        &self,
        stage: &str,
        key: &Key,
        warn: impl Fn(&str) + Send + Sync + 'static,
    ) -> anyhow::Result<Checkpoints> {
        let (dir, label) = (self.work_dir(stage, key), format!("{stage}-{}", key.short()));
        Checkpoints::open(dir, self.damaged_dir(), label, key.clone(), Box::new(warn))
    }

    /// The step after which an unfinished stage would resume: that of its newest checkpoint. None when it would start from the
    /// beginning.
    pub fn newest_step(&self, stage: &str, key: &Key) -> Option<u64> {
        checkpoint::newest_step(&self.work_dir(stage, key), key)
    }

    /// The newest checkpoint of an unfinished stage: its step, and the files that it needs, in [`Store::work_dir`].
    ///
    /// # Errors
    /// When a file cannot be read, e.g. because the stage has just removed it.
    pub fn newest_checkpoint(&self, stage: &str, key: &Key) -> anyhow::Result<Option<(u64, Vec<CheckpointFile>)>> {
        checkpoint::newest_files(&self.work_dir(stage, key), key)
    }

    /// The rows of `table` that an unfinished stage has written so far, if any. The stage may be running.
    ///
    /// # Errors
    /// When a file with such rows is damaged.
    pub fn rows_so_far(&self, stage: &str, key: &Key, table: &str) -> anyhow::Result<Option<RecordBatch>> {
        checkpoint::rows(&self.work_dir(stage, key), key, table)
    }

    /// Replaces the checkpoints of a stage by the folder `dir`. The caller holds the lock.
    pub fn replace_work(&self, lock: &Lock, stage: &str, key: &Key, dir: &Path) -> anyhow::Result<()> {
        assert_eq!(lock.name(), format!("{stage}-{key}"), "the lock of another stage");
        self.remove_work(stage, key)?;
        atomic::rename(dir, &self.work_dir(stage, key))
    }

    /// Removes the checkpoints of a stage whose artifact is committed.
    pub fn remove_work(&self, stage: &str, key: &Key) -> anyhow::Result<()> {
        atomic::discard_dir(&self.work_dir(stage, key))
    }

    /// Removes the checkpoints of a committed artifact whose writer was killed before it did so itself.
    pub fn tidy(&self, artifact: &Artifact) -> anyhow::Result<()> {
        let (stage, key) = (artifact.stage(), artifact.stage_key());
        if self.work_dir(stage, key).exists()
            && let Attempt::Held(_lock) = self.lock_removal(stage, key)?
        {
            self.remove_work(stage, key)?;
        }
        Ok(())
    }

    /// The manifest under a stage and key, if there is one that can be read; the tables are not checked.
    pub fn manifest(&self, stage: &str, key: &Key) -> Option<Manifest> {
        self.read_manifest(stage, key).ok()
    }

    /// The artifact under a stage and key, if its manifest can be read and all its files exist with their full lengths.
    pub fn artifact(&self, stage: &str, key: &Key) -> Option<Artifact> {
        let artifact = Artifact::new(self.artifact_dir(stage, key), self.manifest(stage, key)?);
        let whole = |file: &super::FileEntry| {
            fs::metadata(artifact.dir().join(file.file())).is_ok_and(|metadata| metadata.len() == file.size)
        };
        artifact.manifest().files.iter().all(whole).then_some(artifact)
    }

    /// Manifests of all artifacts of a stage that have one.
    pub fn manifests(&self, stage: &str) -> Vec<Manifest> {
        let entries = fs::read_dir(self.root.join("store").join(stage)).into_iter().flatten().flatten();
        let keys = entries.filter_map(|entry| Key::parse(&entry.file_name().to_string_lossy()));
        keys.filter_map(|key| self.read_manifest(stage, &key).ok()).collect()
    }

    /// Removes the leftovers of killed processes: half-written artifacts and files, and checkpoints of committed artifacts.
    /// Anything that a process works on, or may work on from another machine, stays.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn sweep(&self) -> anyhow::Result<()> {
        let leftovers = Leftovers::of(&self.locks_dir());
        let removing = |path: &Path| leftover::remove(path).with_context(|| format!("removing {}", path.display()));
        for stage in fs::read_dir(self.root.join("store")).into_iter().flatten().flatten() {
            for (_, path) in leftovers.in_dir(&stage.path(), STAGING) {
                removing(&path)?;
            }
        }
        let work = self.root.join("work");
        for dir in [&work, &self.root.join("cache"), &self.root.join(UNFINISHED)] {
            leftovers.remove_siblings(dir).with_context(|| format!("removing what was left in {}", dir.display()))?;
        }
        for entry in fs::read_dir(work).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some((stage, key)) = Key::parse_with_stage(&file) else { continue };
            if self.artifact_dir(stage, &key).join(manifest::FILE).exists()
                && let Attempt::Held(_lock) = self.lock_removal(stage, &key)?
            {
                self.remove_work(stage, &key)?;
            }
        }
        Ok(())
    }
}
