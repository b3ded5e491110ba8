//! Paths of a spec, made absolute against a base and checked to be there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use glob::MatchOptions;

use super::{DataError, Paths, SplitName};

/// The paths of a split, relative ones taken from `base`, all of them there. A path that is not there may be a pattern (`*`, `?`,
/// `[…]`, `**`), which stands for all that fit it, by name.
pub(super) fn resolve(paths: &Paths, split: SplitName, base: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    for path in paths.as_slice() {
        match matches(path, split, base)? {
            Some(matches) => found.extend(matches),
            None => found.push(resolve_one(path, split, base)?),
        }
    }
    Ok(found)
}

/// What fits a pattern; None where the path is none, or is there as it is written.
fn matches(path: &Path, split: SplitName, base: &Path) -> Result<Option<Vec<PathBuf>>, DataError> {
    let path = base.join(path);
    let Some(pattern) = path.to_str().filter(|text| text.contains(['*', '?', '['])) else { return Ok(None) };
    if fs::symlink_metadata(&path).is_ok() {
        return Ok(None);
    }
    let hidden = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    let matches = glob::glob_with(pattern, hidden).map_err(unreadable(&path))?;
    let found = matches.collect::<Result<Vec<_>, _>>().map_err(unreadable(&path))?;
    if found.is_empty() {
        return Err(DataError::NoMatch { split, pattern: path });
    }
    Ok(Some(found))
}

/// One path, relative to `base` and there.
pub(super) fn resolve_one(path: &Path, split: SplitName, base: &Path) -> Result<PathBuf, DataError> {
    let path = base.join(path);
    match fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DataError::Missing { split, path }),
        Err(error) => Err(unreadable(&path)(error)),
    }
}

/// `map_err` argument: the path beside the reason.
pub(super) fn unreadable<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> DataError {
    move |error| DataError::Unreadable { path: path.to_owned(), reason: error.to_string() }
}

/// Files in `paths`: a file stands for itself, a folder for those of its files that `accepts` likes, by name.
pub(super) fn expand(
    paths: Vec<PathBuf>,
    split: SplitName,
    what: &'static str,
    accepts: impl Fn(&str) -> bool,
) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path);
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(unreadable(&path))? {
            let entry = entry.map_err(unreadable(&path))?.path();
            if entry.is_file() && accepts(&name_of(&entry)) {
                found.push(entry);
            }
        }
        if found.is_empty() {
            return Err(DataError::NothingFound { split, path, what: what.to_owned() });
        }
        found.sort();
        files.append(&mut found);
    }
    Ok(files)
}

/// Last part of a path; bytes that are not UTF-8 are replaced.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
