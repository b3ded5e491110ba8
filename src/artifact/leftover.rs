//! Leftovers: temporary files and folders of processes that died. Decides when they may be removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use walkdir::WalkDir;

use super::{Process, atomic, filesystem, process::Life};

/// A file that another machine touched within this time may still be in use by a living process.
pub const PATIENCE: Duration = Duration::from_secs(86_400);

/// Finds leftovers. Ages are measured by the clock of the file system.
pub struct Leftovers {
    now: SystemTime,
}

impl Leftovers {
    /// Reads the clock of the file system of the folder `dir`.
    pub fn of(dir: &Path) -> Leftovers {
        Leftovers { now: filesystem::now(dir) }
    }

    /// Time since the last change of a file, or of anything in a folder; None when that is in the future or not known.
    pub fn age(&self, path: &Path) -> Option<Duration> {
        let changed =
            WalkDir::new(path).into_iter().flatten().filter_map(|entry| entry.metadata().ok()?.modified().ok());
        self.since(changed.max()?)
    }

    /// Time since `time`; None when it is in the future.
    pub fn since(&self, time: SystemTime) -> Option<Duration> {
        self.now.duration_since(time).ok()
    }

    /// Whether a file or folder with a name of [`atomic::unique`] is abandoned: its maker is dead, or it is unknown whether its
    /// maker is alive and nothing in it changed for [`PATIENCE`].
    pub fn is_abandoned(&self, maker: Option<&Process>, path: &Path) -> bool {
        match maker.map_or(Life::Unknown, Process::life) {
            Life::Alive => false,
            Life::Dead => true,
            Life::Unknown => self.age(path).is_some_and(|age| age >= PATIENCE),
        }
    }

    /// Everything abandoned in `dir` that has a name of [`atomic::unique`] with this suffix: the name that it stands for, and its
    /// path.
    pub fn in_dir(&self, dir: &Path, suffix: &str) -> Vec<(String, PathBuf)> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let left = entries.filter_map(|entry| {
            let file = entry.file_name();
            let (name, maker) = atomic::parse_unique(file.to_str()?, suffix)?;
            let path = entry.path();
            self.is_abandoned(maker.as_ref(), &path).then(|| (name.to_owned(), path))
        });
        left.collect()
    }

    /// Removes the temporary siblings of `path` that are abandoned.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove_siblings_of(&self, path: &Path) -> io::Result<()> {
        let like = atomic::sibling(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own = atomic::parse_unique(&like, "tmp").map(|(name, _)| name);
        let left = self.in_dir(path.parent().unwrap_or(Path::new(".")), "tmp").into_iter();
        left.filter(|(name, _)| Some(name.as_str()) == own).try_for_each(|(_, path)| remove(&path))
    }

    /// Removes the temporary siblings in `dir` that are abandoned.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove_siblings(&self, dir: &Path) -> io::Result<()> {
        self.in_dir(dir, "tmp").into_iter().try_for_each(|(_, path)| remove(&path))
    }
}

/// Removes a file or folder. A missing one is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    match if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certainly_or_long_abandoned_goes() {
        let old = SystemTime::now() - PATIENCE - Duration::from_secs(60);
        for (process, aged, goes) in [
            (Some(Process::here().clone()), true, false),
            (Some(Process::dead()), false, true),
            (Some(Process::elsewhere()), false, false),
            (Some(Process::elsewhere()), true, true),
            (None, false, false),
            (None, true, true),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let made = process.as_ref().map_or("x".to_owned(), |process| format!("x.{process}-0"));
            let path = dir.path().join(format!(".{made}.tmp"));
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "").unwrap();
            if aged {
                fs::File::options().write(true).open(path.join("file")).unwrap().set_modified(old).unwrap();
                fs::File::open(&path).unwrap().set_modified(old).unwrap();
            }
            fs::write(dir.path().join("file"), "").unwrap();
            let leftovers = Leftovers::of(dir.path());
            leftovers.remove_siblings_of(&dir.path().join("y")).unwrap();
            assert!(path.exists(), "it is another file's");
            leftovers.remove_siblings_of(&dir.path().join("x")).unwrap();
            assert_eq!(path.exists(), !goes, "{process:?} {aged}");
            leftovers.remove_siblings(dir.path()).unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2 - usize::from(goes));
        }
    }
}
