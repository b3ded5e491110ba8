//! Makes the paths of a spec absolute, expands braces and patterns, and checks that the paths exist.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use glob::MatchOptions;

use super::{DataError, Paths, SplitName};

/// The most paths that braces may expand to.
const MOST: usize = 1_000_000;

/// The paths of a split, all of which exist; relative ones are taken from `base`. A path that does not exist as written may
/// contain braces (`{0000..0012}`, `{a,b}`), which expand to one path each, and wildcards (`*`, `?`, `[…]`, `**`), which expand
/// to all matching paths, sorted by name.
pub(super) fn resolve(paths: &Paths, split: SplitName, base: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    for path in paths.as_slice() {
        for path in without_braces(path, split, base)? {
            match matches(&path, split, base)? {
                Some(matches) => found.extend(matches),
                None => found.push(resolve_one(&path, split, base)?),
            }
        }
    }
    Ok(found)
}

/// Expands the braces of a path, in order. A path without braces, or one that exists as written, stays as it is.
fn without_braces(path: &Path, split: SplitName, base: &Path) -> Result<Vec<PathBuf>, DataError> {
    let has_braces = path.to_str().filter(|text| text.contains('{') && fs::symlink_metadata(base.join(path)).is_err());
    let Some(text) = has_braces else { return Ok(vec![path.to_owned()]) };
    let mut done = vec![String::new()];
    let mut rest = text;
    while let Some((before, all, after)) = next_braces(rest) {
        let too_many = || DataError::TooManyPaths { split, path: path.to_owned(), most: MOST };
        let choices = choices(all, MOST / done.len()).ok_or_else(too_many)?;
        let all = done.iter().flat_map(|begin| choices.iter().map(move |choice| format!("{begin}{before}{choice}")));
        done = all.collect();
        rest = after;
    }
    Ok(done.into_iter().map(|begin| PathBuf::from(begin + rest)).collect())
}

/// The text before the first braces that offer a choice, the text within them, and the text after them.
fn next_braces(text: &str) -> Option<(&str, &str, &str)> {
    text.match_indices('{').find_map(|(at, _)| {
        let (within, after) = text[at + 1..].split_once('}')?;
        let offers = within.contains(',') || range(within).is_some();
        (offers && !within.contains('{')).then_some((&text[..at], within, after))
    })
}

/// First and last number of a range such as `0000..0012`, and the number of digits to pad to (0 for none).
fn range(within: &str) -> Option<(u64, u64, usize)> {
    let (first, last) = within.split_once("..")?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    (is_number(first) && is_number(last)).then_some((first.parse().ok()?, last.parse().ok()?, width))
}

/// The alternatives that braces offer. None if there are more than `most`.
fn choices(within: &str, most: usize) -> Option<Vec<String>> {
    let Some((first, last, width)) = range(within) else {
        let all: Vec<String> = within.split(',').map(str::to_owned).collect();
        return (all.len() <= most).then_some(all);
    };
    let number = |number: u64| format!("{number:0width$}");
    match first.abs_diff(last) < most as u64 {
        false => None,
        true if first <= last => Some((first..=last).map(number).collect()),
        true => Some((last..=first).rev().map(number).collect()),
    }
}

/// All paths that match a pattern. None if the path is no pattern, or exists as written.
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

/// The path joined to `base`, if it exists.
pub(super) fn resolve_one(path: &Path, split: SplitName, base: &Path) -> Result<PathBuf, DataError> {
    let path = base.join(path);
    match fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DataError::Missing { split, path }),
        Err(error) => Err(unreadable(&path)(error)),
    }
}

/// An argument for `map_err` that adds the path to an error's text.
pub(super) fn unreadable<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> DataError {
    move |error| DataError::Unreadable { path: path.to_owned(), reason: error.to_string() }
}

/// The files in `paths`: a file stands for itself, a folder for its files whose names `accepts` allows, sorted by name.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The expansion of a path with braces, where no such file exists.
    fn expanded(path: &str) -> Vec<String> {
        let paths = without_braces(Path::new(path), SplitName::Train, Path::new("nowhere")).unwrap();
        paths.into_iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn braces_stand_for_numbers_and_words() {
        assert_eq!(expanded("a-{0008..0011}.tar"), ["a-0008.tar", "a-0009.tar", "a-0010.tar", "a-0011.tar"]);
        assert_eq!(expanded("{9..11}"), ["9", "10", "11"]);
        assert_eq!(expanded("{2..0}"), ["2", "1", "0"]);
        assert_eq!(expanded("{a,b}/{1..2}-*.tar"), ["a/1-*.tar", "a/2-*.tar", "b/1-*.tar", "b/2-*.tar"]);
        for plain in ["a.tar", "{}", "{a}", "a{", "}{", "{1..}", "{a..b}", "{1...2}"] {
            assert_eq!(expanded(plain), [plain]);
        }
    }

    #[test]
    fn paths_that_braces_stand_for_must_be_there_and_be_few() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["s-00.tar", "s-01.tar", "{0..1}.tar"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = |path: &str| {
            let found = resolve(&Paths::One(path.into()), SplitName::Train, dir.path());
            let short = |path: PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
            found.map(|all| all.into_iter().map(short).collect::<Vec<_>>())
        };
        assert_eq!(found("s-{00..01}.tar").unwrap(), ["s-00.tar", "s-01.tar"]);
        assert_eq!(found("{0..1}.tar").unwrap(), ["{0..1}.tar"], "a file that is called so");
        let error = |path: &str| found(path).unwrap_err().to_string().replace(&dir.path().display().to_string(), "DIR");
        assert_eq!(error("s-{00..02}.tar"), "data.train: no such file or folder: `DIR/s-02.tar`");
        assert_eq!(
            error("{0..999}-{0..9999}.tar"),
            "data.train: the braces in `{0..999}-{0..9999}.tar` stand for more than 1000000 paths; name the folder instead"
        );
        assert!(error("{0..99999999999999999}").contains("more than 1000000 paths"));
    }
}
