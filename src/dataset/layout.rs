//! Finds the files of a split below a folder by the names of files and folders, in the layouts that data hubs use.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use super::{DataError, SplitName, names, paths::unreadable};

/// A split that a name indicates. A hub's validation split serves as the test split if there is no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Named {
    Train,
    Test,
    Validation,
}

/// The files of a split.
#[derive(Debug, Default, PartialEq)]
pub struct Files {
    pub paths: Vec<PathBuf>,
    /// A message about files that were left out, if there are any.
    pub note: Option<String>,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Named::Train => "train",
            Named::Test => "test",
            Named::Validation => "validation",
        })
    }
}

impl Named {
    /// The split that a whole name indicates: `train`, `Val`.
    pub fn of(name: &str) -> Option<Named> {
        match name.to_lowercase().as_str() {
            "train" | "training" => Some(Named::Train),
            "test" | "testing" => Some(Named::Test),
            "val" | "valid" | "validation" | "dev" | "eval" => Some(Named::Validation),
            _ => None,
        }
    }

    /// The split that the words in a name indicate: `train-00000-of-00002`, `split=test`. None if the words name two splits.
    fn within(name: &str) -> Option<Named> {
        let found: BTreeSet<_> = name.split(|c: char| !c.is_alphanumeric()).filter_map(Named::of).collect();
        if found.len() == 1 { found.into_iter().next() } else { None }
    }
}

/// The files that `paths` stand for in a split: a file stands for itself, a folder for the files below it with one of the
/// `endings`.
///
/// If names in a folder indicate several splits, only those of the wanted split are taken. Files directly in a folder take
/// precedence over files in its subfolders. The subfolders with files must be a single one, one per split, or the parts of a
/// partitioned table (`key=value`).
///
/// Errors: a folder without such files, or with several sets of them.
pub fn find(paths: Vec<PathBuf>, split: SplitName, endings: &[&'static str]) -> Result<Files, DataError> {
    let mut found = Files::default();
    for path in paths {
        if !path.is_dir() {
            found.paths.push(path);
            continue;
        }
        let seeker = Seeker { root: &path, split, endings };
        let files = seeker.below(&path, &mut found.note)?;
        if files.is_empty() {
            let what = format!("*.{}", endings[0]);
            return Err(DataError::NothingFound { split, path, what });
        }
        found.paths.extend(files);
    }
    Ok(found)
}

/// The splits that names of files and folders below `path` indicate, if they indicate more than one; otherwise an empty set.
///
/// Errors: a folder that cannot be read.
pub fn splits(path: &Path, endings: &[&'static str]) -> Result<BTreeSet<Named>, DataError> {
    let seeker = Seeker { root: path, split: SplitName::Train, endings };
    let mut dir = path.to_owned();
    loop {
        let (files, folders) = seeker.list(&dir)?;
        let mut all = files;
        if all.is_empty() {
            for folder in folders {
                if seeker.any(&folder)? {
                    all.push(folder);
                }
            }
        }
        let said: BTreeSet<_> = all.iter().filter_map(|path| Named::within(&last(path))).collect();
        match &all[..] {
            _ if said.len() > 1 => return Ok(said),
            [only] if only.is_dir() => dir.clone_from(only),
            _ => return Ok(BTreeSet::new()),
        }
    }
}

struct Seeker<'a> {
    root: &'a Path,
    split: SplitName,
    endings: &'a [&'static str],
}

impl Seeker<'_> {
    fn below(&self, dir: &Path, note: &mut Option<String>) -> Result<Vec<PathBuf>, DataError> {
        let (files, folders) = self.list(dir)?;
        if !files.is_empty() {
            return self.of_split(files, note);
        }
        let mut with_files = Vec::new();
        for folder in folders {
            if self.any(&folder)? {
                with_files.push(folder);
            }
        }
        let folders = self.of_split(with_files, note)?;
        let is_part = |folder: &PathBuf| last(folder).contains('=');
        match &folders[..] {
            [a, b, ..] if !folders.iter().all(is_part) => Err(DataError::SeveralFolders {
                split: self.split,
                path: self.root.to_owned(),
                first: a.clone(),
                second: b.clone(),
            }),
            _ => {
                let mut found = Vec::new();
                for folder in &folders {
                    found.extend(self.below(folder, note)?);
                }
                Ok(found)
            }
        }
    }

    /// Keeps the paths whose names indicate the wanted split, if the names indicate several splits; otherwise keeps all.
    fn of_split(&self, all: Vec<PathBuf>, note: &mut Option<String>) -> Result<Vec<PathBuf>, DataError> {
        let named = |path: &PathBuf| Named::within(&last(path));
        let splits: BTreeSet<_> = all.iter().filter_map(named).collect();
        if splits.len() < 2 {
            return Ok(all);
        }
        let wanted = match self.split {
            SplitName::Train => Named::Train,
            SplitName::Test if splits.contains(&Named::Test) => Named::Test,
            SplitName::Test => Named::Validation,
        };
        let (own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|path| named(path) == Some(wanted));
        match (own.first(), others.first()) {
            (None, Some(other)) => Err(DataError::OtherSplits {
                split: self.split,
                path: self.root.to_owned(),
                first: other.clone(),
                second: others.last().unwrap_or(other).clone(),
            }),
            (Some(first), Some(other)) => {
                *note = Some(format!(
                    "data.{} takes {} of {} files or folders in `{}` by their names: such as `{}`, and not `{}`",
                    self.split,
                    own.len(),
                    own.len() + others.len(),
                    self.root.display(),
                    last(first),
                    last(other)
                ));
                Ok(own)
            }
            _ => Ok(own),
        }
    }

    /// Lists the files with one of the endings, and the folders, each sorted by name. Hidden entries are left out.
    fn list(&self, dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DataError> {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(dir).map_err(unreadable(dir))? {
            let path = entry.map_err(unreadable(dir))?.path();
            // Spark and others begin the names of their own files with an underscore.
            if last(&path).starts_with(['.', '_']) {
                continue;
            }
            let name = last(&path).to_lowercase();
            let has = |ending: &&str| name.strip_suffix(ending).is_some_and(|rest| rest.ends_with('.'));
            if path.is_dir() {
                folders.push(path);
            } else if self.endings.iter().any(has) {
                files.push(path);
            }
        }
        files.sort();
        folders.sort();
        Ok((files, folders))
    }

    /// Whether a folder contains a file with one of the endings, at any depth.
    fn any(&self, dir: &Path) -> Result<bool, DataError> {
        let (files, folders) = self.list(dir)?;
        if !files.is_empty() {
            return Ok(true);
        }
        for folder in folders {
            if self.any(&folder)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn last(path: &Path) -> String {
    names::of_file(path.file_name().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files that `split` finds among empty files with these paths.
    fn found(files: &[&str], split: SplitName) -> Result<(Vec<String>, Option<String>), String> {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        let shown = |text: String| text.replace(&dir.path().display().to_string(), "DIR");
        let short = |path: PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
        match find(vec![dir.path().to_owned()], split, &["parquet", "pq"]) {
            Ok(found) => Ok((found.paths.into_iter().map(short).collect(), found.note.map(shown))),
            Err(error) => Err(shown(error.to_string())),
        }
    }

    fn paths(files: &[&str], split: SplitName) -> Vec<String> {
        found(files, split).unwrap().0
    }

    #[test]
    fn a_folder_of_files_is_taken_whole_but_for_what_is_hidden() {
        let files = ["b.parquet", "a.PARQUET", "c.pq", "._a.parquet", "_SUCCESS", "README.md", "sub/d.parquet"];
        assert_eq!(paths(&files, SplitName::Train), ["a.PARQUET", "b.parquet", "c.pq"]);
        assert_eq!(paths(&["train-0.parquet", "train-1.parquet"], SplitName::Test).len(), 2);
    }

    #[test]
    fn names_of_files_and_folders_say_the_split() {
        let hub = ["README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"];
        let (paths_of_train, note) = found(&hub, SplitName::Train).unwrap();
        assert_eq!(paths_of_train, [hub[1]]);
        assert_eq!(
            note.unwrap(),
            "data.train takes 1 of 2 files or folders in `DIR` by their names: such as `train-00000-of-00001.parquet`, and not \
             `test-00000-of-00001.parquet`"
        );
        assert_eq!(paths(&hub, SplitName::Test), [hub[2]]);
        let folders = ["plain/train/0.parquet", "plain/validation/0.parquet"];
        assert_eq!(paths(&folders, SplitName::Train), [folders[0]]);
        assert_eq!(paths(&folders, SplitName::Test), [folders[1]]);
        let converted = ["set-train.parquet", "set-test.parquet"];
        assert_eq!(paths(&converted, SplitName::Test), ["set-test.parquet"]);
    }

    #[test]
    fn parts_of_a_partitioned_table_belong_together() {
        let parts = ["part=0/x.parquet", "part=1/x.parquet", "part=1/y.parquet"];
        assert_eq!(paths(&parts, SplitName::Train), parts);
        assert_eq!(
            paths(&["split=train/a.parquet", "split=test/a.parquet"], SplitName::Test),
            ["split=test/a.parquet"]
        );
    }

    #[test]
    fn several_sets_are_refused_by_name() {
        let error = found(&["large/a.parquet", "small/a.parquet"], SplitName::Train).unwrap_err();
        assert_eq!(
            error,
            "data.train: `DIR` holds several sets of files, in `DIR/large` and `DIR/small`: name one of them"
        );
        let error = found(&["test-0.parquet", "val-0.parquet"], SplitName::Train).unwrap_err();
        assert_eq!(
            error,
            "data.train: by their names the files in `DIR` are of other splits, such as `DIR/test-0.parquet` and \
             `DIR/val-0.parquet`: name the files that are meant"
        );
        assert_eq!(found(&["a.txt"], SplitName::Train).unwrap_err(), "data.train: no *.parquet in `DIR`");
    }
}
