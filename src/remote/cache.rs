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

/// Age at which a manifest that was of use is written again, so that it counts as used.
const REFRESHED_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// A cache that machines share, beside the store of one of them.
pub struct Cache {
    shared: Arc<Shared>,
    uploads: Uploads,
}

impl Cache {
    /// The cache beside the store under `root`. Nothing is asked of it yet.
    pub fn new(options: Options, root: &Path) -> Cache {
        let shared = Arc::new(Shared::new(options, root));
        Cache { uploads: Uploads::new(shared.clone()), shared }
    }

    /// Uploads what earlier runs did not come to upload, beside whatever else goes on.
    pub fn catch_up(&self) {
        if self.shared.options.mode == Mode::Write {
            self.uploads.catch_up();
        }
    }

    /// Which cache it is.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// What went wrong first, if anything did.
    pub fn problem(&self) -> Option<String> {
        self.shared.health.problem()
    }

    /// Whether there is a point in asking for artifacts.
    pub fn reads(&self) -> bool {
        self.shared.health.reads()
    }

    /// Asks for a list and, where it may be written to, writes an object and removes it again.
    ///
    /// # Errors
    /// What does not work.
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

    /// The artifact of a stage and key, taken into the store, if the cache has it whole. The caller holds the lock of the stage.
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
                // Cleaned away, or not yet there on another server of theirs.
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

    /// A stage begins whose artifact is to be uploaded, even by a later run, should this one be killed after it is there.
    pub fn announce(&self, stage: &str, key: &Key) {
        if self.shared.options.mode == Mode::Write {
            self.uploads.mark(stage, key);
        }
    }

    /// Uploads an artifact that was just made, beside whatever else goes on.
    pub fn offer(&self, artifact: &Artifact) {
        if self.shared.options.mode == Mode::Write {
            let (stage, key) = (artifact.stage().to_owned(), artifact.stage_key().clone());
            // Once more: a run beside this one may have taken the mark for one that was left behind.
            self.uploads.mark(&stage, &key);
            self.uploads.send(Job::Artifact { stage, key });
        }
    }

    /// Takes the newest checkpoint of a stage out of the cache where it is farther than what is here. The caller holds the lock of
    /// the stage. Gives its step.
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

    /// Hears of every checkpoint of a stage, if they are to be uploaded.
    pub fn checkpoint_hook(&self, stage: &str, key: &Key) -> Option<Box<dyn Fn() + Send + Sync>> {
        if !self.shared.options.checkpoints || self.shared.options.mode != Mode::Write {
            return None;
        }
        let (sender, stage, key) = (self.uploads.sender(), stage.to_owned(), key.clone());
        Some(Box::new(move || sender.checkpoint(&stage, &key)))
    }

    /// Waits until everything is uploaded that was begun, unless the user asks to stop meanwhile. To be called once, at the end.
    pub fn finish(&self, progress: &dyn Progress, interrupt: &Interrupt) {
        self.uploads.finish(progress, interrupt);
        self.tell(progress);
    }

    fn writes(&self) -> bool {
        self.shared.options.mode == Mode::Write && self.shared.health.writes()
    }

    /// What was read. Where reading failed, nothing was found, and the failure is told.
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
