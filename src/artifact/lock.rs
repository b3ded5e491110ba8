//! Locks between processes: the process that holds the lock of a stage key runs that stage.
//!
//! A lock only saves work. Two holders at once are possible on file systems whose locks do not reach other machines; they do the
//! same work twice, without harm. The file of a lock stays when the lock is released, because network file systems show the name
//! of a removed file for some seconds: another machine could then lock a file that no longer exists.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use rustix::io::Errno;

use super::{
    Process, beat,
    filesystem::{self, FileSystem},
    leftover::PATIENCE,
    process::Life,
};

/// A process that wants a lock takes a holder on another machine for dead if the holder has not touched the lock's file for this
/// long.
const SILENCE: Duration = Duration::from_secs(120);

/// A held lock. It is released when it is dropped, or when its process ends in any way.
#[derive(Debug)]
pub struct Lock {
    name: String,
    path: PathBuf,
    file: Arc<File>,
}

/// The result of an attempt to take a lock.
pub enum Attempt {
    Held(Lock),
    /// The lock is already held: the holder's process, if the file names it yet.
    Busy(Option<Process>),
}

impl Lock {
    /// Tries to take the lock called `name` in the folder `dir`, without waiting.
    ///
    /// # Errors
    /// When the file cannot be written. A file system without locks is no error, because correctness does not depend on locks.
    pub fn attempt(dir: &Path, name: &str) -> anyhow::Result<Attempt> {
        super::atomic::create_dir(dir)?;
        let (path, mut file) = open(dir, name)?;
        let named = || format!("locking {}", path.display());
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Attempt::Busy(holder(&file))),
            Err(TryLockError::Error(error)) if has_no_locks(&error) => {}
            Err(TryLockError::Error(error)) => return Err(error).with_context(named),
        }
        // Where locks may not reach other machines, the text in the file names a holder on another machine.
        if let Some(other) = holder(&file).filter(|other| other != Process::here())
            && FileSystem::of(dir).is_shared()
            && may_hold(&other, &file, filesystem::now(dir), SILENCE)
        {
            return Ok(Attempt::Busy(Some(other)));
        }
        let text = format!("{}\n", Process::here());
        file.rewind()
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.write_all(text.as_bytes()))
            .with_context(named)?;
        let file = Arc::new(file);
        beat::keep(&file);
        Ok(Attempt::Held(Lock { name: name.to_owned(), path, file }))
    }

    /// Like [`Lock::attempt`], for a caller that removes what the lock protects: a holder on another machine counts as alive for
    /// a day after it last touched the file.
    ///
    /// # Errors
    /// As for [`Lock::attempt`].
    pub fn attempt_removal(dir: &Path, name: &str) -> anyhow::Result<Attempt> {
        if let Ok(file) = File::open(dir.join(file_name(name)))
            && let Some(other) = holder(&file).filter(|other| other != Process::here())
            && may_hold(&other, &file, filesystem::now(dir), PATIENCE)
        {
            return Ok(Attempt::Busy(Some(other)));
        }
        Lock::attempt(dir, name)
    }

    /// The holder of the lock called `name` in `dir`: None when no process seems to hold it, `Some(None)` when the holder is not
    /// known. Holders on other machines are recognised by the time of their last touch. Nothing is written, so a read-only folder
    /// is enough.
    pub fn holder(dir: &Path, name: &str) -> Option<Option<Process>> {
        let file = File::open(dir.join(file_name(name))).ok()?;
        let process = holder(&file);
        if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return Some(process);
        }
        let now = SystemTime::now();
        process.filter(|other| other != Process::here() && may_hold(other, &file, now, SILENCE)).map(Some)
    }

    /// Appends to the file, after the line with the process.
    pub(super) fn append(&mut self, text: &str) -> anyhow::Result<()> {
        let mut file = &*self.file;
        let written = file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(text.as_bytes()));
        written.with_context(|| format!("writing {}", self.path.display()))
    }

    /// The name under which the lock was taken.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Releases the lock and removes its file. Only for a name that no process ever takes again.
    pub(super) fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // An empty file means that the lock is free. A process that took this one for dead has written its own text, which must
        // stay.
        if holder(&self.file).as_ref() == Some(Process::here()) {
            let _ = self.file.set_len(0);
        }
        let _ = self.file.unlock();
    }
}

/// Name of the file of a lock.
fn file_name(name: &str) -> String {
    format!("{name}.lock")
}

fn open(dir: &Path, name: &str) -> anyhow::Result<(PathBuf, File)> {
    let path = dir.join(file_name(name));
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = open.with_context(|| format!("locking {}", path.display()))?;
    Ok((path, file))
}

/// Whether the error means that the file system has no locks, e.g. Lustre without the option `flock`.
pub(super) fn has_no_locks(error: &io::Error) -> bool {
    let known = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK];
    known.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether `process`, which the text or name of `file` gives, may hold the file: the process is not known to be dead, and the
/// file was touched within `silence`.
pub(super) fn may_hold(process: &Process, file: &File, now: SystemTime, silence: Duration) -> bool {
    if process.life() == Life::Dead {
        return false;
    }
    let touched = file.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    // A time in the future counts as now.
    now.duration_since(touched).map_or(true, |age| age < silence)
}

/// The process that the text of the file names.
fn holder(mut file: &File) -> Option<Process> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).ok()?;
    Process::parse(text.lines().next()?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_held_lock_names_its_holder_and_is_free_after_the_drop() {
        let dir = tempfile::tempdir().unwrap();
        let Attempt::Held(lock) = Lock::attempt(dir.path(), "knn-1").unwrap() else { panic!() };
        let Attempt::Busy(process) = Lock::attempt(dir.path(), "knn-1").unwrap() else { panic!() };
        assert_eq!(process.as_ref(), Some(Process::here()));
        assert_eq!(Lock::holder(dir.path(), "knn-1"), Some(process));
        assert_eq!(Lock::holder(dir.path(), "knn-2"), None);
        assert!(matches!(Lock::attempt(dir.path(), "knn-2").unwrap(), Attempt::Held(_)));
        drop(lock);
        assert_eq!(fs::read_to_string(dir.path().join("knn-1.lock")).unwrap(), "", "the file stays");
        fs::write(dir.path().join("knn-1.lock"), format!("{}\n", Process::dead())).unwrap();
        assert_eq!(Lock::holder(dir.path(), "knn-1"), None);
        assert!(matches!(Lock::attempt(dir.path(), "knn-1").unwrap(), Attempt::Held(_)));
        assert!(matches!(Lock::attempt_removal(dir.path(), "knn-1").unwrap(), Attempt::Held(_)));
    }

    #[test]
    fn a_holder_of_another_machine_counts_as_long_as_it_shows_that_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        for (silence, shown, removable) in [(0, true, false), (3_600, false, false), (90_000, false, true)] {
            fs::write(&path, format!("{}\n", Process::elsewhere())).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(silence)).unwrap();
            assert_eq!(Lock::holder(dir.path(), "x").is_some(), shown, "{silence}");
            let attempt = Lock::attempt_removal(dir.path(), "x").unwrap();
            assert_eq!(matches!(attempt, Attempt::Held(_)), removable, "{silence}");
        }
        // The text of a process that took this one for dead stays.
        let Attempt::Held(lock) = Lock::attempt(dir.path(), "y").unwrap() else { panic!() };
        let text = format!("{}\n", Process::elsewhere());
        fs::write(dir.path().join("y.lock"), &text).unwrap();
        drop(lock);
        assert_eq!(fs::read_to_string(dir.path().join("y.lock")).unwrap(), text);
    }

    #[test]
    fn of_many_contenders_one_holds_it_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, total) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut taken = 0;
                    while taken < 40 {
                        if let Attempt::Held(_lock) = Lock::attempt(dir.path(), "x").unwrap() {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            total.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            taken += 1;
                        }
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 320);
    }
}
