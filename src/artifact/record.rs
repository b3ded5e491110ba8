//! The record of a run, `run.json` in its folder: its stages and scores, for people, scripts and comparisons.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{Key, Lock};

/// Name of the file.
pub const FILE: &str = "run.json";

/// Name of the resolved spec beside it.
pub const SPEC: &str = "spec.yaml";

/// Folder of runs without results under the runs root.
pub const UNFINISHED: &str = "unfinished";

/// The record of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Name of the folder: the spec's name and eight digits of a hash. For a run with results it is the hash of its artifacts'
    /// keys, otherwise of everything that the run depends on.
    pub run: String,
    /// Name in the spec.
    pub name: String,
    /// Seconds since 1970: when the run was first complete, or when an unfinished run first started a stage.
    pub created: u64,
    /// Stages in their order.
    pub stages: Vec<StageRecord>,
    /// Scores and other figures; top-1 as a fraction.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// Remarks of the stages, e.g. why a probe was skipped.
    pub notes: Vec<String>,
    /// Set as long as the run has no results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Unfinished>,
}

/// State of a run that has no results yet, or that ended without results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unfinished {
    pub state: RunState,
    /// Stage that runs, or at which the run ended, and its key.
    pub stage: String,
    pub key: Key,
    /// Why the run ended; None when there is nothing to explain, because it runs or its process was stopped.
    pub why: Option<String>,
}

/// For people, e.g. `interrupted at pretrain`.
impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} at {}", self.state, self.stage)
    }
}

/// The state of a run without results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// A process works on it.
    Running,
    /// The user stopped the run, or its process was killed.
    Interrupted,
    /// Its training went wrong: NaN or collapse.
    Diverged,
    /// The run ended with another error.
    Failed,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            RunState::Running => "running",
            RunState::Interrupted => "interrupted",
            RunState::Diverged => "diverged",
            RunState::Failed => "failed",
        })
    }
}

/// A stage of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    pub stage: String,
    pub key: Key,
    /// Content hash of the artifact.
    pub content: String,
    /// How long the stage took when it ran.
    pub seconds: f64,
}

impl RunRecord {
    /// Reads the record in a run's folder. A run whose process was killed counts as interrupted.
    ///
    /// # Errors
    /// When the file cannot be read or is no record.
    pub fn read(dir: &Path) -> anyhow::Result<RunRecord> {
        let path = dir.join(FILE);
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut record: RunRecord =
            serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
        if let Some(unfinished) = &mut record.unfinished
            && unfinished.state == RunState::Running
            && !is_at_work(dir, &record.run)
        {
            unfinished.state = RunState::Interrupted;
        }
        Ok(record)
    }

    /// The text of the file.
    pub fn text(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Folders of all finished runs under a runs root, with their records, oldest first.
    ///
    /// # Errors
    /// When the folder or a record cannot be read.
    pub fn list(root: &Path) -> anyhow::Result<Vec<(PathBuf, RunRecord)>> {
        Self::list_in(&root.join("results"))
    }

    /// Folders of all runs without results under a runs root, with their records, in the order in which the runs first started.
    ///
    /// # Errors
    /// When the folder or a record cannot be read.
    pub fn unfinished(root: &Path) -> anyhow::Result<Vec<(PathBuf, RunRecord)>> {
        Self::list_in(&root.join(UNFINISHED))
    }

    /// Folders and records of runs in `dir`, oldest first.
    fn list_in(dir: &Path) -> anyhow::Result<Vec<(PathBuf, RunRecord)>> {
        let read = |path: PathBuf| RunRecord::read(&path).map(|record| (path, record));
        let mut runs = folders(dir)?.into_iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
        runs.sort_by(|a, b| (a.1.created, &a.1.run).cmp(&(b.1.created, &b.1.run)));
        Ok(runs)
    }
}

/// Folders of runs in `dir`; none when `dir` does not exist.
pub(super) fn folders(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let named = || format!("listing {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(named)?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.with_context(named)?;
        let path = entry.path();
        // Folders that are being removed have hidden names.
        if !entry.file_name().as_encoded_bytes().starts_with(b".") && path.join(FILE).exists() {
            folders.push(path);
        }
    }
    Ok(folders)
}

/// Whether a process works on `run`, whose record is stored in `dir`.
fn is_at_work(dir: &Path, run: &str) -> bool {
    let root = dir.parent().and_then(Path::parent);
    root.is_some_and(|root| Lock::holder(&root.join("locks"), &lock_name(run)).is_some())
}

/// Name of the lock of a run without results.
pub(super) fn lock_name(run: &str) -> String {
    format!("{UNFINISHED}-{run}")
}
