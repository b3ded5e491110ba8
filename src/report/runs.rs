//! Runs: which one a command-line argument means, and what is in its folder.

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

/// A run; finished, unless whoever looks asks for others too.
#[derive(Clone, Debug)]
pub struct Run {
    pub record: RunRecord,
    /// The resolved spec.
    pub spec: Value,
}

/// An argument that names no run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    #[error("no finished runs in {}; `snclr run SPEC` makes one", .0.display())]
    NoRuns(PathBuf),
    #[error(
        "no run, beginning of a run, spec name or path is called {argument:?} (runs in {}){}",
        results.display(), nearest.as_ref().map(|nearest| format!("; did you mean {nearest:?}?")).unwrap_or_default()
    )]
    Unknown { argument: String, results: PathBuf, nearest: Option<String> },
    #[error("{argument:?} is the beginning of several runs: {}; write more of it", runs.join(", "))]
    Ambiguous { argument: String, runs: Vec<String> },
    #[error("spec {name:?} ({}) has no finished run in {}; `snclr run {}` makes one", spec.display(), results.display(), spec.display())]
    NotRun { spec: PathBuf, name: String, results: PathBuf },
    #[error("run {run} has no results: {state}; `snclr report {run}` shows its curves")]
    Unfinished { run: String, state: String },
    #[error("{} is neither a run's folder (no run.json in it) nor a spec (no `name:` in it)", .0.display())]
    NeitherRunNorSpec(PathBuf),
}

/// The runs under a runs root. Their folders are listed and read when something needs them, and once.
pub struct Runs<'a> {
    root: &'a Path,
    /// Whether runs without results are among them.
    with_unfinished: bool,
    list: OnceCell<Vec<Listed>>,
    /// Places in the list by the names of the runs.
    places: OnceCell<HashMap<String, usize>>,
    /// The newest run of each name and semantic part of a spec, as text.
    known: OnceCell<HashMap<(String, String), Run>>,
}

/// A run, before its spec is read.
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

/// Runs that an argument means, and what has to be said about those that are not there.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub runs: Vec<Run>,
    pub notes: Vec<String>,
}

/// [`Runs::find`] for a command that looks for one run.
///
/// # Errors
/// As there.
pub fn find(root: &Path, argument: &str) -> anyhow::Result<Run> {
    Runs::new(root).find(argument)
}

impl<'a> Runs<'a> {
    /// The finished runs under `root`; nothing is read yet.
    pub fn new(root: &'a Path) -> Self {
        Runs { root, with_unfinished: false, list: OnceCell::new(), places: OnceCell::new(), known: OnceCell::new() }
    }

    /// Like [`Runs::new`], with the runs that have no results.
    pub fn with_unfinished(root: &'a Path) -> Self {
        Runs { with_unfinished: true, ..Runs::new(root) }
    }

    /// The run that `argument` means: a run's folder, a spec (its newest run), a run's name, a spec's name (its newest run),
    /// or the beginning of exactly one run's name.
    ///
    /// # Errors
    /// [`FindError`], or when a run's folder cannot be read.
    pub fn find(&self, argument: &str) -> anyhow::Result<Run> {
        let found = self.find_listed(argument);
        if self.with_unfinished {
            return found;
        }
        let unfinished = match found {
            Ok(run) if run.record.unfinished.is_none() => return Ok(run),
            Ok(run) => run,
            // Among those without results it may be another one.
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
        // A run's folder bears its name: no need to look at the others.
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

    /// Like [`Runs::find`]; a spec that sweeps, or that `changes` concern, means the newest run of each of its points.
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
    /// When a run's folder cannot be read.
    pub fn newest(&self, name: &str, is_wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Option<Run>> {
        for run in self.list()?.iter().rev().filter(|run| run.record().name == name) {
            let run = run.read()?;
            if is_wanted(&run.spec) {
                return Ok(Some(run));
            }
        }
        Ok(None)
    }

    /// Looks at all runs now, for whoever asks for many of them.
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
        // The oldest first: the newest stays.
        filled(&self.known, || {
            let known: Vec<_> = self.list()?.par_iter().map(read).collect::<anyhow::Result<_>>()?;
            Ok(known.into_iter().collect())
        })
    }
}

/// A value as a text that does not depend on the order of its keys.
fn text(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    value.to_string()
}

/// The value of `cell`, made by `make` if it has none.
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
    /// A run as the catalogue has it.
    ///
    /// # Errors
    /// When its spec is none.
    pub(super) fn of_catalogue(run: &Catalogued) -> anyhow::Result<Run> {
        Ok(Run { record: run.record.clone(), spec: run.spec()? })
    }

    /// The run's folder under a runs root.
    pub fn dir(&self, root: &Path) -> PathBuf {
        let folder = if self.record.unfinished.is_some() { UNFINISHED } else { "results" };
        root.join(folder).join(&self.record.run)
    }

    /// What its spec describes.
    ///
    /// # Errors
    /// When the spec is one of another version of this program.
    pub fn experiment(&self) -> anyhow::Result<Experiment> {
        let experiment = serde_json::from_value(self.spec.clone());
        experiment.with_context(|| format!("the spec of run {} is not one of this version", self.record.run))
    }
}

fn read(dir: &Path) -> anyhow::Result<Run> {
    let path = dir.join(SPEC);
    let named = || format!("reading {}", path.display());
    let spec = serde_yaml::from_slice(&fs::read(&path).with_context(named)?).with_context(named)?;
    Ok(Run { record: RunRecord::read(dir)?, spec })
}

/// The `name` in a spec or its base; nothing else of it is looked at, since a run's own spec is in its folder.
fn spec_name(path: &Path) -> Option<String> {
    if let Some((name, _)) = spec::outline(path) {
        return Some(name);
    }
    let spec: Value = serde_yaml::from_slice(&fs::read(path).ok()?).ok()?;
    Some(spec.get("name")?.as_str()?.to_owned())
}

/// The name that is nearest to `argument`, if any is near.
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
                "no run, beginning of a run, spec name or path is called \"quikc\" (runs in {results}); did you mean \"quick\"?"
            )
        );
        assert_eq!(
            error(root, "zzz"),
            format!("no run, beginning of a run, spec name or path is called \"zzz\" (runs in {results})")
        );
        assert_eq!(
            error(root, "cifar-11"),
            "\"cifar-11\" is the beginning of several runs: cifar-11aa22bb, cifar-11cc44dd; write more of it"
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
            "ROOT/results is neither a run's folder (no run.json in it) nor a spec (no `name:` in it)"
        );
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(error(empty.path(), "x"), "no finished runs in ROOT/results; `snclr run SPEC` makes one");
    }
}
