//! Heartbeats: this process touches the files and folders that it holds every 20 seconds. This shows other machines, which may
//! see neither its locks nor its processes, that this process is alive.

use std::{
    fs::File,
    sync::{Arc, Mutex, Once, PoisonError, Weak},
    thread,
    time::Duration,
};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};

/// Time between two touches. It is well below the silence after which other machines take a process for dead, because network
/// file systems show times up to a minute late.
const EVERY: Duration = Duration::from_secs(20);

static HELD: Mutex<Vec<Weak<File>>> = Mutex::new(Vec::new());

/// Touches the file or folder regularly from now on, until its last `Arc` is dropped.
pub fn keep(file: &Arc<File>) {
    static STARTED: Once = Once::new();
    HELD.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(file));
    STARTED.call_once(|| {
        // Best effort: without the thread, other machines may take this process for dead and do the same work again.
        let _ = thread::Builder::new().name("heartbeat".to_owned()).spawn(|| {
            loop {
                thread::sleep(EVERY);
                touch_all();
            }
        });
    });
}

/// Touches everything that is held.
pub fn touch_all() {
    let held: Vec<Arc<File>> = {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|file| file.strong_count() > 0);
        held.iter().filter_map(Weak::upgrade).collect()
    };
    // `UTIME_NOW` is the time of the file system's clock, not of ours. Setting both times to it needs only permission to write
    // the file, not its ownership.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    for file in held {
        // Best effort: a file that no longer exists needs no touch.
        let _ = futimens(&*file, &times);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::SystemTime};

    use super::*;

    #[test]
    fn what_is_held_is_touched_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - Duration::from_secs(100_000);
        let make = |name: &str| {
            let file = Arc::new(File::create(dir.path().join(name)).unwrap());
            file.set_modified(old).unwrap();
            keep(&file);
            file
        };
        let (held, dropped) = (make("held"), make("dropped"));
        fs::create_dir(dir.path().join("folder")).unwrap();
        let folder = Arc::new(File::open(dir.path().join("folder")).unwrap());
        folder.set_modified(old).unwrap();
        keep(&folder);
        drop(dropped);
        touch_all();
        let age = |name: &str| fs::metadata(dir.path().join(name)).unwrap().modified().unwrap().elapsed().unwrap();
        assert!(age("held") < Duration::from_secs(60) && age("folder") < Duration::from_secs(60));
        assert!(age("dropped") > Duration::from_secs(90_000));
        drop((held, folder));
    }
}
