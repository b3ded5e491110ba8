//! Finds the runs that a command-line argument names, and reads their folders.

use std::{
    cell::OnceCell,
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use rayon::prelude::*;
use serde_json::Value;

use crate::{
    artifact::{Catalogued, RECORD, RunRecord, SPEC, UNFINISHED, catalogue},
    spec::{self, Changes, Experiment, Point},
};

/// A run. It is finished, unless the caller also asked for runs without results.
#[derive(Clone, Debug)]
pub struct Run {
    pub record: RunRecord,
    /// The resolved spec.
    pub spec: Value,
}

/// Why an argument names no run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    #[error("no finished runs in {}; `snclr run SPEC` makes one", .0.display())]
    NoRuns(PathBuf),
    #[error(
        "{argument:?} is not the name of a run or its beginning, the name of a spec, or a path (runs in {}){}",
        results.display(), nearest.as_ref().map(|nearest| format!("; did you mean {nearest:?}?")).unwrap_or_default()
    )]
    Unknown { argument: String, results: PathBuf, nearest: Option<String> },
    #[error("{argument:?} is ambiguous, it matches {}; write more of the name", runs.join(", "))]
    Ambiguous { argument: String, runs: Vec<String> },
    #[error("spec {name:?} ({}) has no finished run in {}; `snclr run {}` makes one", spec.display(), results.display(), spec.display())]
    NotRun { spec: PathBuf, name: String, results: PathBuf },
    #[error("run {run} has no results: {state}; `snclr report {run}` shows its curves")]
    Unfinished { run: String, state: String },
    #[error("{} is neither the folder of a run (it has no run.json) nor a spec (it has no `name:`)", .0.display())]
    NeitherRunNorSpec(PathBuf),
}

/// The runs in a runs folder. Their folders are listed and read on demand, and only once.
pub struct Runs<'a> {
    root: &'a Path,
    /// Whether to include runs without results.
    with_unfinished: bool,
    list: OnceCell<Vec<Listed>>,
    /// Index in the list, by the name of the run.
    places: OnceCell<HashMap<String, usize>>,
    /// The newest run by name and semantic part of its spec, as text.
    known: OnceCell<HashMap<(String, String), Run>>,
}

/// A run whose spec has not been read yet.
enum Listed {
    Finished(Catalogued),
    /// The folder and the record of a run without results.
    Unfinished(PathBuf, RunRecord),
}

impl Listed {
    fn record(&self) -> &RunRecord {
        match self {
            Listed::Finished(run) => &run.record,
            Listed::Unfinished(_, record) => record,
        }
    }

    fn read(&self) -> anyhow::Result<Run> {
        match self {
            Listed::Finished(run) => Run::of_catalogue(run),
            Listed::Unfinished(dir, _) => read(dir),
        }
    }
}

/// The runs that an argument names, and notes about those that are missing.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub runs: Vec<Run>,
    pub notes: Vec<String>,
}

/// [`Runs::find`] for a command that looks for one run.
///
/// # Errors
/// As [`Runs::find`].
pub fn find(root: &Path, argument: &str) -> anyhow::Result<Run> {
    Runs::new(root).find(argument)
}

impl<'a> Runs<'a> {
    /// The finished runs under `root`. Reads nothing yet.
    pub fn new(root: &'a Path) -> Self {
        Runs { root, with_unfinished: false, list: OnceCell::new(), places: OnceCell::new(), known: OnceCell::new() }
    }

    /// Like [`Runs::new`], including runs without results.
    pub fn with_unfinished(root: &'a Path) -> Self {
        Runs { with_unfinished: true, ..Runs::new(root) }
    }

    /// The run that `argument` names: the folder of a run, a spec (its newest run), the name of a run, the name of a spec (its
    /// newest run), or the beginning of exactly one name.
    ///
    /// # Errors
    /// [`FindError`], or when the folder of a run cannot be read.
    pub fn find(&self, argument: &str) -> anyhow::Result<Run> {
        let found = self.find_listed(argument);
        if self.with_unfinished {
            return found;
        }
        let unfinished = match found {
            Ok(run) if run.record.unfinished.is_none() => return Ok(run),
            Ok(run) => run,
            // The argument may name a run without results, which is not in the list of finished runs.
            Err(error) => match Runs::with_unfinished(self.root).find_listed(argument) {
                Ok(run) => run,
                Err(_) => return Err(error),
            },
        };
        let state = unfinished.record.unfinished.map_or(String::new(), |unfinished| unfinished.to_string());
        Err(FindError::Unfinished { run: unfinished.record.run, state }.into())
    }

    fn find_listed(&self, argument: &str) -> anyhow::Result<Run> {
        let path = Path::new(argument);
        if path.join(RECORD).is_file() {
            return read(path);
        }
        let results = self.root.join("results");
        if let Some(run) = self.list.get().and_then(|list| list.get(*self.places(list).get(argument)?)) {
            return run.read();
        }
        // A folder has the name of its run, so no other folder has to be read.
        let own = results.join(argument);
        if path.components().count() == 1 && own.join(RECORD).is_file() {
            return read(&own);
        }
        let runs = self.list()?;
        let newest = |name: &str| runs.iter().rfind(|run| run.record().name == name);
        if path.is_file() {
            let name = spec_name(path).ok_or_else(|| FindError::NeitherRunNorSpec(path.to_owned()))?;
            let found = newest(&name).ok_or_else(|| FindError::NotRun { spec: path.to_owned(), name, results })?;
            return found.read();
        }
        let exact = runs.iter().find(|run| run.record().run == argument);
        if let Some(run) = exact.or_else(|| newest(argument)) {
            return run.read();
        }
        let matching: Vec<_> = runs.iter().filter(|run| run.record().run.starts_with(argument)).collect();
        let error = match matching[..] {
            [run] => return run.read(),
            [] if path.exists() => FindError::NeitherRunNorSpec(path.to_owned()),
            [] if runs.is_empty() => FindError::NoRuns(results),
            [] => {
                let names =
                    runs.iter().map(Listed::record).flat_map(|record| [record.run.as_str(), record.name.as_str()]);
                let nearest = nearest(argument, names).map(str::to_owned);
                FindError::Unknown { argument: argument.to_owned(), results, nearest }
            }
            _ => {
                let runs = matching.iter().map(|run| run.record().run.clone()).collect();
                FindError::Ambiguous { argument: argument.to_owned(), runs }
            }
        };
        Err(error.into())
    }

    /// Like [`Runs::find`], but a sweep, or a spec with `changes`, stands for the newest run of each of its points.
    ///
    /// # Errors
    /// As [`Runs::find`]; when such a spec is invalid, or no point has a run.
    pub fn find_all(&self, argument: &str, changes: &Changes) -> anyhow::Result<Found> {
        let path = Path::new(argument);
        let is_spec = path.is_file() && (!changes.is_empty() || spec::outline(path).is_some_and(|(_, sweeps)| sweeps));
        if !is_spec {
            return Ok(Found { runs: vec![self.find(argument)?], notes: vec![] });
        }
        let mut found = Found::default();
        let points = spec::load_points(path, changes)?.points;
        let unfinished = RunRecord::unfinished(self.root)?;
        let unfinished = unfinished.iter().map(|(dir, _)| read(dir)).collect::<anyhow::Result<Vec<_>>>()?;
        let wanted = |point: &Point| {
            let wanted = spec::semantic(point.loaded.value());
            let text = text(&wanted);
            (wanted, text)
        };
        let wanted: Vec<(Value, String)> = points.par_iter().map(wanted).collect();
        for (point, (wanted, text)) in points.iter().zip(wanted) {
            let name = &point.loaded.experiment.name;
            match self.known()?.get(&(name.clone(), text)) {
                Some(run) => found.runs.push(run.clone()),
                None => {
                    let what = if point.values.is_empty() { "it as changed".to_owned() } else { point.label() };
                    let is = |run: &&Run| run.record.name == *name && spec::semantic(run.spec.clone()) == wanted;
                    let ended = unfinished.iter().rfind(is).and_then(|run| run.record.unfinished.as_ref());
                    let ended = ended.map_or(String::new(), |unfinished| format!("; {unfinished}"));
                    found.notes.push(format!("{argument}: no finished run of {what}{ended}"));
                }
            }
        }
        match (found.runs.is_empty(), points.first()) {
            (true, Some(point)) => {
                let name = point.loaded.experiment.name.clone();
                let results = self.root.join("results");
                Err(FindError::NotRun { spec: path.to_owned(), name, results }.into())
            }
            _ => Ok(found),
        }
    }

    /// The newest run called `name` whose resolved spec `is_wanted`.
    ///
    /// # Errors
    /// When the folder of a run cannot be read.
    pub fn newest(&self, name: &str, is_wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Option<Run>> {
        for run in self.list()?.iter().rev().filter(|run| run.record().name == name) {
            let run = run.read()?;
            if is_wanted(&run.spec) {
                return Ok(Some(run));
            }
        }
        Ok(None)
    }

    /// Reads all runs now, which is faster if many are needed.
    ///
    /// # Errors
    /// As [`Runs::records`].
    pub fn look_at_all(&self) -> anyhow::Result<()> {
        self.list().map(drop)
    }

    fn places(&self, list: &[Listed]) -> &HashMap<String, usize> {
        let places = || list.iter().enumerate().map(|(at, run)| (run.record().run.clone(), at)).collect();
        self.places.get_or_init(places)
    }

    fn list(&self) -> anyhow::Result<&[Listed]> {
        let list = || {
            let mut runs: Vec<_> = catalogue(self.root)?.into_iter().map(Listed::Finished).collect();
            if self.with_unfinished {
                let unfinished = RunRecord::unfinished(self.root)?.into_iter();
                runs.extend(unfinished.map(|(dir, record)| Listed::Unfinished(dir, record)));
                let order = |run: &Listed| (run.record().created, run.record().run.clone());
                runs.sort_by_cached_key(order);
            }
            Ok(runs)
        };
        filled(&self.list, list).map(Vec::as_slice)
    }

    /// Records of all runs, oldest first.
    ///
    /// # Errors
    /// When a folder cannot be listed or a record cannot be read.
    pub fn records(&self) -> anyhow::Result<Vec<RunRecord>> {
        Ok(self.list()?.iter().map(|run| run.record().clone()).collect())
    }

    fn known(&self) -> anyhow::Result<&HashMap<(String, String), Run>> {
        let read = |run: &Listed| {
            let run = run.read()?;
            Ok(((run.record.name.clone(), text(&spec::semantic(run.spec.clone()))), run))
        };
        // The oldest comes first, so that the newest one stays in the map.
        filled(&self.known, || {
            let known: Vec<_> = self.list()?.par_iter().map(read).collect::<anyhow::Result<_>>()?;
            Ok(known.into_iter().collect())
        })
    }
}

/// A value as text that does not depend on the order of keys.
fn text(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    value.to_string()
}

/// The value of `cell`, which `make` computes on the first call.
fn filled<T>(cell: &OnceCell<T>, make: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let value = make()?;
            Ok(cell.get_or_init(|| value))
        }
    }
}

impl Run {
    /// A run from the catalogue.
    ///
    /// # Errors
    /// When its spec is not valid YAML.
    pub(super) fn of_catalogue(run: &Catalogued) -> anyhow::Result<Run> {
        Ok(Run { record: run.record.clone(), spec: run.spec()? })
    }

    /// The folder of the run under a runs folder.
    pub fn dir(&self, root: &Path) -> PathBuf {
        let folder = if self.record.unfinished.is_some() { UNFINISHED } else { "results" };
        root.join(folder).join(&self.record.run)
    }

    /// The experiment of its spec.
    ///
    /// # Errors
    /// When the spec is from another version of this program.
    pub fn experiment(&self) -> anyhow::Result<Experiment> {
        let experiment = serde_json::from_value(self.spec.clone());
        experiment
            .with_context(|| format!("the spec of run {} is from another version of this program", self.record.run))
    }
}

fn read(dir: &Path) -> anyhow::Result<Run> {
    let path = dir.join(SPEC);
    let named = || format!("reading {}", path.display());
    let spec = serde_yaml::from_slice(&fs::read(&path).with_context(named)?).with_context(named)?;
    Ok(Run { record: RunRecord::read(dir)?, spec })
}

/// The `name` in a spec or its base. Nothing else is read, since the folder of a run has its own spec.
fn spec_name(path: &Path) -> Option<String> {
    if let Some((name, _)) = spec::outline(path) {
        return Some(name);
    }
    let spec: Value = serde_yaml::from_slice(&fs::read(path).ok()?).ok()?;
    Some(spec.get("name")?.as_str()?.to_owned())
}

/// The name most similar to `argument`, if any is similar.
fn nearest<'a>(argument: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::normalized_damerau_levenshtein(argument, name), name))
        .filter(|(similarity, _)| *similarity > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::write_run;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        write_run(root.path(), "cifar-11aa22bb", "cifar", 10, "name: cifar\nmethod: {tau: 0.1}\n", &[]);
        write_run(root.path(), "cifar-11cc44dd", "cifar", 20, "name: cifar\nmethod: {tau: 0.2}\n", &[]);
        write_run(root.path(), "quick-99ff00aa", "quick", 15, "name: quick\n", &[]);
        root
    }

    fn error(root: &Path, argument: &str) -> String {
        find(root, argument).unwrap_err().to_string().replace(&root.display().to_string(), "ROOT")
    }

    #[test]
    fn a_run_goes_by_its_name_its_beginning_its_folder_its_specs_name_or_its_specs_path() {
        let root = root();
        let name = |argument: &str| find(root.path(), argument).unwrap().record.run;
        assert_eq!(name("cifar-11aa22bb"), "cifar-11aa22bb");
        assert_eq!(name("cifar-11a"), "cifar-11aa22bb");
        assert_eq!(name("qu"), "quick-99ff00aa");
        assert_eq!(name("cifar"), "cifar-11cc44dd");
        let folder = root.path().join("results/cifar-11aa22bb");
        assert_eq!(name(&folder.display().to_string()), "cifar-11aa22bb");
        let spec = root.path().join("my.yaml");
        fs::write(&spec, "# a comment\nname: cifar\nepochs: 3\n").unwrap();
        assert_eq!(name(&spec.display().to_string()), "cifar-11cc44dd");
        assert_eq!(find(root.path(), "cifar").unwrap().spec["method"]["tau"], 0.2);
    }

    #[test]
    fn arguments_that_name_no_run_say_what_to_do() {
        let root = root();
        let (root, results) = (root.path(), "ROOT/results");
        assert_eq!(
            error(root, "quikc"),
            format!(
                "\"quikc\" is not the name of a run or its beginning, the name of a spec, or a path (runs in {results}); did you mean \"quick\"?"
            )
        );
        assert_eq!(
            error(root, "zzz"),
            format!(
                "\"zzz\" is not the name of a run or its beginning, the name of a spec, or a path (runs in {results})"
            )
        );
        assert_eq!(
            error(root, "cifar-11"),
            "\"cifar-11\" is ambiguous, it matches cifar-11aa22bb, cifar-11cc44dd; write more of the name"
        );
        fs::write(root.join("new.yaml"), "name: new\n").unwrap();
        assert_eq!(
            error(root, root.join("new.yaml").to_str().unwrap()),
            format!(
                "spec \"new\" (ROOT/new.yaml) has no finished run in {results}; `snclr run ROOT/new.yaml` makes one"
            )
        );
        assert_eq!(
            error(root, root.join("results").to_str().unwrap()),
            "ROOT/results is neither the folder of a run (it has no run.json) nor a spec (it has no `name:`)"
        );
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(error(empty.path(), "x"), "no finished runs in ROOT/results; `snclr run SPEC` makes one");
    }
}
