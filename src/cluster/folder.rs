//! The folder of a submission, `cluster/<name>-<id>/` in the runs folder. The tasks of the submission read its files. The folder
//! may be deleted once all of them have ended.
//!
//! | file | what it holds |
//! |---|---|
//! | `points/<number>.yaml` | the resolved spec of each point that a task runs with |
//! | `<stage>-<part>.tasks` | a line per task: the number of its point, and its identity |
//! | `<stage>-<part>.sh` | Slurm: the script of a job array |
//! | `logs/` | Slurm: what tasks print |
//! | `<stage>-<part>.yaml` | Kubernetes: the manifest of a job |

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::Task;
use crate::artifact::{atomic, hash};

/// The folder of a submission.
#[derive(Clone, Debug)]
pub struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// The folder for these tasks of the spec called `name`. The same tasks always get the same folder.
    pub fn new<'a>(root: &Path, name: &str, tasks: impl Iterator<Item = &'a Task>) -> Folder {
        let text: String = tasks.map(|task| format!("{} {}\n", task.stage, task.identity)).collect();
        let id = &hash::bytes(text.as_bytes())[..8];
        Folder { dir: root.join("cluster").join(format!("{name}-{id}")) }
    }

    /// The path of the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the spec of a point, unless the same spec is already there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_point(&self, point: usize, spec: &str) -> anyhow::Result<()> {
        let path = self.dir.join("points").join(format!("{point}.yaml"));
        put(&path, spec.as_bytes())
    }

    /// Writes the task list of an array, one line per task.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write_tasks(&self, array: &str, tasks: &[&Task]) -> anyhow::Result<()> {
        let text: String = tasks.iter().map(|task| format!("{} {}\n", task.point, task.identity)).collect();
        put(&self.dir.join(format!("{array}.tasks")), text.as_bytes())
    }

    /// Writes the script of an array, creates the folder for logs, and returns the script's path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_script(&self, array: &str, script: &str) -> anyhow::Result<PathBuf> {
        atomic::create_dir(&self.dir.join("logs"))?;
        let path = self.dir.join(format!("{array}.sh"));
        put(&path, script.as_bytes())?;
        Ok(path)
    }

    /// Writes the manifest of an array.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_manifest(&self, array: &str, manifest: &str) -> anyhow::Result<()> {
        put(&self.dir.join(format!("{array}.yaml")), manifest.as_bytes())
    }
}

/// Writes a file by renaming, unless it already holds these bytes. It is not synced: the next submission writes files again that
/// a power cut has lost.
fn put(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    atomic::create_dir(path.parent().unwrap_or(Path::new(".")))?;
    let temporary = atomic::sibling(path);
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("writing {}", path.display()))
}
