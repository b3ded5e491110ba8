//! `results/<name>-<id>/run.json`: what a run came to, for people, scripts and comparisons.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Key;

/// Name of the file.
pub const FILE: &str = "run.json";

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Name of the folder: the spec's name and eight digits of what it led to.
    pub run: String,
    /// Name in the spec.
    pub name: String,
    /// Seconds since 1970 when it was first complete.
    pub created: u64,
    /// Stages in their order.
    pub stages: Vec<StageRecord>,
    /// Scores and other figures; top-1 as a fraction.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// What the stages had to say, e.g. why a probe was skipped.
    pub notes: Vec<String>,
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
    /// Reads the record in a run's folder.
    pub fn read(dir: &Path) -> anyhow::Result<RunRecord> {
        let path = dir.join(FILE);
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// The text of the file.
    pub fn text(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Folders of all runs under a runs root, with their records, oldest first.
    pub fn list(root: &Path) -> anyhow::Result<Vec<(PathBuf, RunRecord)>> {
        let dir = root.join("results");
        let named = || format!("listing {}", dir.display());
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(named)?,
        };
        let mut runs = Vec::new();
        for entry in entries {
            let path = entry.with_context(named)?.path();
            if path.join(FILE).exists() {
                runs.push((path.clone(), RunRecord::read(&path)?));
            }
        }
        runs.sort_by(|a, b| (a.1.created, &a.1.run).cmp(&(b.1.created, &b.1.run)));
        Ok(runs)
    }
}
