//! Writes files and folders atomically: each appears whole or not at all, and survives a power cut after that.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context;

use super::Process;

/// Makes the entries of a folder durable.
pub fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    File::open(dir).and_then(|file| file.sync_all()).with_context(|| format!("syncing {}", dir.display()))
}

/// Creates a folder and its missing parents.
pub fn create_dir(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))
}

/// A temporary path beside `path` with a unique name: two writers of one path, on any machines, never write the same temporary
/// file.
pub fn sibling(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(unique(&name, "tmp"))
}

/// Whether `name` is the name of a temporary sibling.
pub fn is_sibling(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

/// A hidden name that no other process and no other call returns: `.NAME.PROCESS-N.SUFFIX`.
pub fn unique(name: &str, suffix: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    // File names are at most 255 bytes long. The rest of the name already makes it unique, so `name` may be cut.
    let name = &name[..name.floor_char_boundary(100)];
    format!(".{name}.{}-{}.{suffix}", Process::here(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Parses a name made by [`unique`]: the name that it stands for, and the process that made it. Names made by older versions
/// contain no process.
pub fn parse_unique<'a>(file: &'a str, suffix: &str) -> Option<(&'a str, Option<Process>)> {
    let inner = file.strip_prefix('.')?.strip_suffix(suffix)?.strip_suffix('.')?;
    let made = || {
        let (rest, number) = inner.rsplit_once('-')?;
        let _: u64 = number.parse().ok()?;
        // The text of a process contains one dot, and the machine's name in it has none.
        let dot = rest[..rest.rfind('.')?].rfind('.')?;
        Some((&inner[..dot], Process::parse(&rest[dot + 1..])?))
    };
    Some(made().map_or((inner, None), |(name, process)| (name, Some(process))))
}

/// Writes a file: temporary sibling, fsync, rename, fsync of the folder. Of two writers, the later one's file stays.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let temporary = sibling(path);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .with_context(|| format!("writing {}", temporary.display()));
    // A temporary file that cannot be renamed is of no use, and takes space on a full disk.
    written.and_then(|()| rename(&temporary, path)).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Writes a file unless it already holds these bytes.
pub fn write_if_changed(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    match fs::read(path) {
        Ok(old) if old == bytes => Ok(()),
        _ => write(path, bytes),
    }
}

/// Renames a file or folder and makes the rename durable.
pub fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))?;
    sync_dir(to.parent().unwrap_or(Path::new(".")))
}

/// Removes a folder and its contents. A missing folder is no error.
pub fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a folder in one step as other processes see it: the folder first gets a temporary name. Contents that cannot be
/// removed, e.g. because another process has a file open, are left for a later sweep.
pub fn discard_dir(dir: &Path) -> anyhow::Result<()> {
    let doomed = sibling(dir);
    match fs::rename(dir, &doomed) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed.with_context(|| format!("renaming {} to {}", dir.display(), doomed.display()))?,
    }
    let _ = fs::remove_dir_all(&doomed);
    Ok(())
}

/// Moves a file or folder into the folder `damaged`, under a free name that begins with `label`. Returns the new path, or None
/// when `path` no longer exists.
pub fn set_aside(damaged: &Path, path: &Path, label: &str) -> anyhow::Result<Option<PathBuf>> {
    create_dir(damaged)?;
    for number in 1u32.. {
        let target = damaged.join(format!("{label}-{number}"));
        // Reserves the name with an empty folder or file of the same kind, which the rename may replace.
        let taken = match path.is_dir() {
            true => fs::create_dir(&target),
            false => File::create_new(&target).map(drop),
        };
        match taken {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            taken => taken.with_context(|| format!("creating {}", target.display()))?,
        }
        if let Err(error) = fs::rename(path, &target) {
            let _ = fs::remove_file(&target).or_else(|_| fs::remove_dir(&target));
            if error.kind() == ErrorKind::NotFound {
                return Ok(None);
            }
            return Err(error).with_context(|| format!("renaming {} to {}", path.display(), target.display()));
        }
        sync_dir(damaged)?;
        return Ok(Some(target));
    }
    anyhow::bail!("no free name in {}", damaged.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write(&path, b"one").unwrap();
        let error = write(&dir.path().join("x.json/below"), b"two").unwrap_err();
        assert!(format!("{error:#}").contains(".below."), "{error:#}");
        // A folder is in the way of the rename.
        fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(write(&dir.path().join("folder"), b"two").is_err());
        fs::remove_dir(dir.path().join("folder")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_two_temporary_names_are_alike_and_each_names_its_maker() {
        let path = Path::new("folder/run.json");
        let (one, two) = (sibling(path), sibling(path));
        assert_ne!(one, two);
        let name = one.file_name().unwrap().to_str().unwrap();
        assert!(is_sibling(name));
        assert_eq!(parse_unique(name, "tmp"), Some(("run.json", Some(Process::here().clone()))));
        assert_eq!(parse_unique(name, "staging"), None);
        assert_eq!(parse_unique(".run.json.tmp", "tmp"), Some(("run.json", None)), "of an older version");
        assert_eq!(parse_unique("run.json", "tmp"), None);
        let long = format!("{}.parquet", "é".repeat(120));
        assert!(unique(&long, "tmp").len() < 255);
    }

    #[test]
    fn what_is_set_aside_never_replaces_what_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let damaged = dir.path().join("damaged");
        let mut names = Vec::new();
        for text in ["one", "two"] {
            for is_folder in [false, true] {
                let path = dir.path().join("x");
                match is_folder {
                    true => fs::create_dir(&path).and_then(|()| fs::write(path.join("file"), text)).unwrap(),
                    false => fs::write(&path, text).unwrap(),
                }
                let target = set_aside(&damaged, &path, "knn").unwrap().unwrap();
                let file = if is_folder { target.join("file") } else { target.clone() };
                assert_eq!(fs::read_to_string(file).unwrap(), text);
                names.push(target.file_name().unwrap().to_str().unwrap().to_owned());
            }
        }
        assert_eq!(names, ["knn-1", "knn-2", "knn-3", "knn-4"]);
        assert_eq!(set_aside(&damaged, &dir.path().join("x"), "knn").unwrap(), None, "somebody else moved it");
        assert_eq!(fs::read_dir(&damaged).unwrap().count(), 4);
    }
}
