//! Writes output files: under a temporary name first, then renamed, so that a reader never sees half a file.

use std::{fs, path::Path};

use anyhow::Context;

use crate::artifact::atomic;

/// Writes `bytes` to `path`, and creates folders as needed. If two commands write one path, the later rename wins.
///
/// # Errors
/// When writing fails; the error names the path.
pub fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let named = || format!("writing {}", path.display());
    path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(named)?;
    }
    let sibling = atomic::sibling(path);
    fs::write(&sibling, bytes).and_then(|()| fs::rename(&sibling, path)).with_context(named).inspect_err(|_| {
        let _ = fs::remove_file(&sibling);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.csv");
        replace(&path, b"old").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let error = replace(&path.join("c"), b"").unwrap_err().to_string();
        assert_eq!(error, format!("writing {}", path.join("c").display()));
    }
}
