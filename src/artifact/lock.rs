//! Locks between processes: whoever holds the lock of a stage key works on it and commits it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;

/// A held lock; the system releases it when the holder ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    name: String,
    path: PathBuf,
    file: File,
}

/// What an attempt at a lock came to.
pub enum Attempt {
    Held(Lock),
    /// Someone else has it: its process id, if it is known yet.
    Busy(Option<u32>),
}

impl Lock {
    /// Tries to take the lock called `name` in the folder `dir`, without waiting.
    pub fn attempt(dir: &Path, name: &str) -> anyhow::Result<Attempt> {
        super::atomic::create_dir(dir)?;
        let path = dir.join(format!("{name}.lock"));
        let named = || format!("locking {}", path.display());
        loop {
            let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = open.with_context(named)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Attempt::Busy(holder(&mut file))),
                Err(TryLockError::Error(error)) => return Err(error).with_context(named),
            }
            // The last holder removes the file: a lock on a file that is gone locks nobody out.
            let ours = file.metadata().with_context(named)?;
            if fs::metadata(&path).is_ok_and(|there| there.ino() == ours.ino() && there.dev() == ours.dev()) {
                let pid = format!("{}\n", std::process::id());
                file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())).with_context(named)?;
                return Ok(Attempt::Held(Lock { name: name.to_owned(), path, file }));
            }
        }
    }

    /// Whether some process holds the lock called `name` in `dir`. Nothing is written, so that a folder that can only be read will
    /// do.
    pub fn is_held(dir: &Path, name: &str) -> bool {
        let file = File::open(dir.join(format!("{name}.lock")));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Appends to the file, after the line with the process id.
    pub(super) fn append(&mut self, text: &str) -> anyhow::Result<()> {
        let named = || format!("writing {}", self.path.display());
        self.file.seek(SeekFrom::End(0)).and_then(|_| self.file.write_all(text.as_bytes())).with_context(named)
    }

    /// Name it was taken under.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // In this order: once released, the file may be someone else's.
        let _ = fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).ok()?;
    text.lines().next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_held_lock_names_its_holder_and_is_free_after_the_drop() {
        let dir = tempfile::tempdir().unwrap();
        let Attempt::Held(lock) = Lock::attempt(dir.path(), "knn-1").unwrap() else { panic!() };
        let Attempt::Busy(pid) = Lock::attempt(dir.path(), "knn-1").unwrap() else { panic!() };
        assert_eq!(pid, Some(std::process::id()));
        assert!(Lock::is_held(dir.path(), "knn-1") && !Lock::is_held(dir.path(), "knn-2"));
        assert!(matches!(Lock::attempt(dir.path(), "knn-2").unwrap(), Attempt::Held(_)));
        drop(lock);
        fs::write(dir.path().join("knn-1.lock"), "of a process that was killed").unwrap();
        assert!(!Lock::is_held(dir.path(), "knn-1"));
        assert!(matches!(Lock::attempt(dir.path(), "knn-1").unwrap(), Attempt::Held(_)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no lock files are left");
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
