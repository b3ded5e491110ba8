//! Attempts: the folder `unfinished/<name>-<id>/` holds spec and record of a run that has no results yet, or ended without
//! results.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    Key, Lock, RunRecord, RunState, StageRecord, Store, Unfinished, atomic,
    lock::Attempt as LockAttempt,
    record::{FILE, SPEC, UNFINISHED, lock_name},
};

/// Keeps the record of a run in progress. The record is first written when a stage starts: a run whose stages all have artifacts
/// leaves no trace.
pub struct RunAttempt<'a> {
    store: &'a Store,
    /// Name of the folder. The same spec and source files always give the same name.
    run: String,
    name: String,
    spec: String,
    /// The run's lock and its record, from the first write until the run ends. None while another process keeps the record.
    kept: Mutex<Option<(Lock, RunRecord)>>,
}

impl<'a> RunAttempt<'a> {
    /// An attempt at the run `name`; `id` identifies everything that the run depends on, and `spec` is the text of its resolved
    /// spec.
    pub fn new(store: &'a Store, name: &str, id: &str, spec: String) -> Self {
        let run = format!("{name}-{id}");
        RunAttempt { store, run, name: name.to_owned(), spec, kept: Mutex::default() }
    }

    fn dir(&self) -> PathBuf {
        self.store.root().join(UNFINISHED).join(&self.run)
    }

    /// Records that `stage` runs now, after the completed stages `done`. Does nothing if another process holds the run's lock:
    /// that process keeps the record.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn at(&self, stage: &str, key: &Key, done: Vec<StageRecord>) -> anyhow::Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            let LockAttempt::Held(lock) = lock(self.store, &self.run)? else { return Ok(()) };
            *kept = Some((lock, self.first()));
        }
        let Some((_, record)) = kept.as_mut() else { return Ok(()) };
        record.stages = done;
        let (stage, key) = (stage.to_owned(), key.clone());
        record.unfinished = Some(Unfinished { state: RunState::Running, stage, key, why: None });
        self.write(record)
    }

    /// A new record. If an earlier attempt left a record, its time of creation is kept.
    fn first(&self) -> RunRecord {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let created = RunRecord::read(&self.dir()).map_or(now, |earlier| earlier.created);
        RunRecord {
            run: self.run.clone(),
            name: self.name.clone(),
            created,
            stages: Vec::new(),
            metrics: Default::default(),
            notes: Vec::new(),
            unfinished: None,
        }
    }

    /// Records how the run ended. Does nothing if this process keeps no record, e.g. because no stage has started.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn ended(&self, state: RunState, why: Option<String>) -> anyhow::Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((lock, mut record)) = kept.take() else { return Ok(()) };
        if let Some(unfinished) = &mut record.unfinished {
            unfinished.state = state;
            unfinished.why = why;
        }
        let written = self.write(&record);
        drop(lock);
        written
    }

    /// Removes the record of a run that has its results, whichever process computed them.
    ///
    /// # Errors
    /// When the folder cannot be removed.
    pub fn finished(&self) -> anyhow::Result<()> {
        if !self.dir().exists() {
            return Ok(());
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = match kept.take() {
            Some((lock, _)) => lock,
            None => match lock(self.store, &self.run)? {
                LockAttempt::Held(lock) => lock,
                // The other process computes the same results, and then removes the record itself.
                LockAttempt::Busy(_) => return Ok(()),
            },
        };
        atomic::discard_dir(&self.dir())?;
        drop(lock);
        Ok(())
    }

    fn write(&self, record: &RunRecord) -> anyhow::Result<()> {
        let text = record.text()?;
        let write = || {
            atomic::create_dir(&self.dir())?;
            atomic::write_if_changed(&self.dir().join(SPEC), self.spec.as_bytes())?;
            atomic::write(&self.dir().join(FILE), text.as_bytes())
        };
        // Where locks do not reach other machines, another machine that completes the run may remove the folder between these
        // operations. The write is then tried again.
        (1..5).find_map(|_| write().ok()).map_or_else(write, Ok)
    }
}

/// Tries to take the lock of a run without results.
fn lock(store: &Store, run: &str) -> anyhow::Result<LockAttempt> {
    Lock::attempt(&store.locks_dir(), &lock_name(run))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Components;

    fn listed(root: &std::path::Path) -> Vec<(String, u64, RunState, String, Option<String>)> {
        let of = |(_, record): (PathBuf, RunRecord)| {
            let unfinished = record.unfinished.unwrap();
            (record.run, record.created, unfinished.state, unfinished.stage, unfinished.why)
        };
        RunRecord::unfinished(root).unwrap().into_iter().map(of).collect()
    }

    #[test]
    fn a_run_is_running_until_it_ends_or_its_process_does_and_is_gone_once_it_has_results() {
        let root = tempfile::tempdir().unwrap();
        let (store, key) = (Store::open(root.path()), Components::default().key());
        let attempt = || RunAttempt::new(&store, "quick", "0123abcd", "name: quick\n".into());
        let first = attempt();
        first.ended(RunState::Failed, None).unwrap();
        first.finished().unwrap();
        assert!(!root.path().join(UNFINISHED).exists(), "nothing ran yet");

        first.at("data", &key, Vec::new()).unwrap();
        first.at("pretrain", &key, Vec::new()).unwrap();
        let [(run, created, state, stage, None)] = &listed(root.path())[..] else { panic!() };
        assert_eq!((run.as_str(), *state, stage.as_str()), ("quick-0123abcd", RunState::Running, "pretrain"));
        let spec = root.path().join("unfinished/quick-0123abcd/spec.yaml");
        assert_eq!(std::fs::read_to_string(&spec).unwrap(), "name: quick\n");

        // A second attempt at the same run leaves the record to the first one.
        let second = attempt();
        second.at("data", &key, Vec::new()).unwrap();
        second.finished().unwrap();
        assert_eq!(listed(root.path())[0].3, "pretrain");

        // As if the process were killed: its lock is released, and it writes nothing more.
        drop(first);
        assert_eq!(listed(root.path())[0].2, RunState::Interrupted);

        second.at("pretrain", &key, Vec::new()).unwrap();
        second.ended(RunState::Diverged, Some("the loss is NaN".into())).unwrap();
        let [(_, again, state, _, why)] = &listed(root.path())[..] else { panic!() };
        assert_eq!((again, *state, why.as_deref()), (created, RunState::Diverged, Some("the loss is NaN")));

        let third = attempt();
        third.finished().unwrap();
        assert_eq!(listed(root.path()), []);
        assert_eq!(std::fs::read_dir(root.path().join(UNFINISHED)).unwrap().count(), 0);
    }
}
