//! Fetches artifacts from the shared cache, and uploads new ones.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    CHECKPOINTS, Failure, checkpoints, manifest_name,
    shared::{Mode, Options, Shared, damaged},
    table_name,
    uploads::{Job, Uploads},
};
use crate::{
    artifact::{Artifact, Key, Lock, Store, atomic},
    stage::{Interrupt, Progress},
};

/// Age at which the manifest of a fetched artifact is written again, so that a cleaning sees it as recently used.
const REFRESHED_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// A cache that several machines share, used beside the store of this machine.
pub struct Cache {
    shared: Arc<Shared>,
    uploads: Uploads,
}

impl Cache {
    /// The cache beside the store under `root`. No request is sent yet.
    pub fn new(options: Options, root: &Path) -> Cache {
        let shared = Arc::new(Shared::new(options, root));
        Cache { uploads: Uploads::new(shared.clone()), shared }
    }

    /// Starts to upload, in the background, the artifacts whose upload earlier runs did not complete.
    pub fn catch_up(&self) {
        if self.shared.options.mode == Mode::Write {
            self.uploads.catch_up();
        }
    }

    /// The address of the cache and how it is used.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// The first problem, if there was any.
    pub fn problem(&self) -> Option<String> {
        self.shared.health.problem()
    }

    /// Whether reading from the cache still works, so that fetching is worth a try.
    pub fn reads(&self) -> bool {
        self.shared.health.reads()
    }

    /// Tests the cache: lists objects and, if the cache may be written to, writes an object and removes it again.
    ///
    /// # Errors
    /// A text that says what does not work.
    pub fn probe(&self) -> Result<(), String> {
        let probe = || {
            let objects = self.shared.objects()?;
            objects.list(CHECKPOINTS, &mut |_| ())?;
            if self.shared.options.mode == Mode::Write {
                let name = atomic::unique("probe", "tmp");
                objects.put(&name, b"probe", false)?;
                objects.remove(&name)?;
            }
            Ok::<_, Failure>(())
        };
        probe().map_err(|failure| failure.to_string())
    }

    /// Fetches the artifact of a stage and key into the store; None if the cache does not have all of it. The caller holds the
    /// lock of the stage.
    pub fn fetch(
        &self,
        store: &Store,
        lock: &Lock,
        stage: &str,
        key: &Key,
        progress: &dyn Progress,
    ) -> Option<Artifact> {
        if !self.reads() {
            return None;
        }
        self.or_without(self.try_fetch(store, lock, stage, key, progress), progress)
    }

    fn try_fetch(
        &self,
        store: &Store,
        lock: &Lock,
        stage: &str,
        key: &Key,
        progress: &dyn Progress,
    ) -> Result<Option<Artifact>, Failure> {
        let (shared, name) = (&*self.shared, manifest_name(stage, key));
        let Some((manifest, written)) = shared.manifest(&name, stage, key)? else { return Ok(None) };
        let text = manifest.text();
        let total: u64 = manifest.files.iter().map(|file| file.size).sum();
        progress.start(Some(total >> 20), "MiB");
        let local = |error: anyhow::Error| Failure::Local(format!("{error:#}"));
        let mut incoming = store.receive(lock, manifest).map_err(local)?;
        let mut done = 0u64;
        for file in incoming.manifest().files.clone() {
            let object = table_name(&file.sha256).ok_or_else(|| damaged(&name, "a hash that is none"))?;
            let taken = incoming.take(&file, |write| {
                let mut piece = |bytes: &[u8]| {
                    let n = bytes.len() as u64;
                    progress.advance(((done + n) >> 20) - (done >> 20));
                    done += n;
                    write(bytes)
                };
                shared.objects()?.read(&object, &mut piece).map(drop)
            });
            match taken {
                Ok(()) => {}
                // The table was cleaned away, or has not yet reached this server of the storage.
                Err(Failure::Missing) => return Ok(None),
                Err(Failure::Wrong(what)) => return Err(damaged(&object, &what)),
                Err(failure) => return Err(failure),
            }
        }
        let artifact = store.accept(lock, incoming).map_err(local)?;
        let age = SystemTime::now().duration_since(written).unwrap_or_default();
        if self.writes() && age > REFRESHED_AFTER {
            self.uploads.send(Job::Refresh { name, text });
        }
        Ok(Some(artifact))
    }

    /// Notes at the start of a stage that its artifact is to be uploaded. If this process is killed after making the artifact, a
    /// later run uploads it.
    pub fn announce(&self, stage: &str, key: &Key) {
        if self.shared.options.mode == Mode::Write {
            self.uploads.mark(stage, key);
        }
    }

    /// Starts to upload an artifact that was just made, in the background.
    pub fn offer(&self, artifact: &Artifact) {
        if self.shared.options.mode == Mode::Write {
            let (stage, key) = (artifact.stage().to_owned(), artifact.stage_key().clone());
            // Marks it once more: another run at the same time may have taken the first mark for a leftover and removed it.
            self.uploads.mark(&stage, &key);
            self.uploads.send(Job::Artifact { stage, key });
        }
    }

    /// Fetches the newest checkpoint of a stage if it has more steps than the store's newest one, and returns its step. The
    /// caller holds the lock of the stage.
    pub fn fetch_checkpoint(
        &self,
        store: &Store,
        lock: &Lock,
        stage: &str,
        key: &Key,
        progress: &dyn Progress,
    ) -> Option<u64> {
        if !self.shared.options.checkpoints || !self.reads() {
            return None;
        }
        let fetched = self.shared.objects().and_then(|objects| checkpoints::fetch(objects, store, lock, stage, key));
        self.or_without(fetched, progress)
    }

    /// A function to call after every checkpoint of a stage, which uploads it; None if checkpoints are not uploaded.
    pub fn checkpoint_hook(&self, stage: &str, key: &Key) -> Option<Box<dyn Fn() + Send + Sync>> {
        if !self.shared.options.checkpoints || self.shared.options.mode != Mode::Write {
            return None;
        }
        let (sender, stage, key) = (self.uploads.sender(), stage.to_owned(), key.clone());
        Some(Box::new(move || sender.checkpoint(&stage, &key)))
    }

    /// Waits until all pending uploads are done or the user asks to stop. Call this once, at the end.
    pub fn finish(&self, progress: &dyn Progress, interrupt: &Interrupt) {
        self.uploads.finish(progress, interrupt);
        self.tell(progress);
    }

    fn writes(&self) -> bool {
        self.shared.options.mode == Mode::Write && self.shared.health.writes()
    }

    /// The result of a read. A failure is recorded and reported, and counts as nothing found.
    fn or_without<T>(&self, read: Result<Option<T>, Failure>, progress: &dyn Progress) -> Option<T> {
        read.unwrap_or_else(|failure| {
            self.shared.health.reading_failed(&failure);
            self.tell(progress);
            None
        })
    }

    fn tell(&self, progress: &dyn Progress) {
        if let Some(problem) = self.shared.health.news() {
            progress.warn(&format!("shared cache {}: {problem}", self.shared.options.address));
        }
    }
}
