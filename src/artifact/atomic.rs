//! Files and folders that appear whole or not at all, and survive a power cut once they have appeared.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;

/// Makes the entries of a folder durable.
pub fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    File::open(dir).and_then(|file| file.sync_all()).with_context(|| format!("syncing {}", dir.display()))
}

/// Creates a folder and those above it.
pub fn create_dir(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))
}

/// Temporary sibling of a path. Its name is fixed, so that what a killed process leaves is overwritten by the next; callers
/// hold a lock.
pub fn sibling(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Whether `name` is that of a temporary sibling.
pub fn is_sibling(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Writes a file: temporary sibling, fsync, rename, fsync of the folder. Two writers of one path must hold a lock.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let temporary = sibling(path);
    let result = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .with_context(|| format!("writing {}", temporary.display()));
    if let Err(error) = result {
        // What was written is of no use, and on a full disk in the way.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    rename(&temporary, path)
}

/// Writes a file unless it already holds these bytes.
pub fn write_if_changed(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    match fs::read(path) {
        Ok(old) if old == bytes => Ok(()),
        _ => write(path, bytes),
    }
}

/// Renames a file or folder and makes that durable.
pub fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))?;
    sync_dir(to.parent().unwrap_or(Path::new(".")))
}

/// Removes a folder and what is in it; one that is not there is as good.
pub fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Moves a file or folder into the folder `damaged`, under a name that begins with `label` and is free.
pub fn set_aside(damaged: &Path, path: &Path, label: &str) -> anyhow::Result<PathBuf> {
    create_dir(damaged)?;
    let free = |n: &u32| !damaged.join(format!("{label}-{n}")).exists();
    let number = (1..).find(free).context("no free name")?;
    let target = damaged.join(format!("{label}-{number}"));
    rename(path, &target)?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write(&path, b"one").unwrap();
        // A folder in the way of the temporary file: creating it fails, as on a full disk.
        fs::create_dir(sibling(&path)).unwrap();
        let error = write(&path, b"two").unwrap_err();
        assert!(format!("{error:#}").contains(".x.json.tmp"), "{error:#}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        fs::remove_dir(sibling(&path)).unwrap();
        // What a killed writer left is overwritten.
        fs::write(sibling(&path), b"half").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
