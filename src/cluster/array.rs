//! Groups missing tasks into job arrays, and builds the shell command of a task. It serves every scheduler that numbers the tasks
//! of an array.

use std::path::{Path, PathBuf};

use super::{Task, Tasks, Wanted};
use crate::stage::Stage;

/// A job array: tasks of one stage.
#[derive(Clone, Debug)]
pub struct Array<'a> {
    /// The stage's name and the number of the part, from 0.
    pub name: String,
    pub stage: Stage,
    /// In the order of their numbers in the array, from 0.
    pub tasks: Vec<&'a Task>,
}

/// What the tasks of a submission have in common.
#[derive(Clone, Debug)]
pub struct Site {
    /// Name of the spec.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Folder that paths of specs are relative to.
    pub base: PathBuf,
    /// The runs folder.
    pub runs: PathBuf,
    /// The folder of the submission.
    pub folder: PathBuf,
}

/// The job arrays of all missing tasks, inputs first. No array has more than `most` tasks.
pub fn arrays(tasks: &Tasks, most: usize) -> Vec<Array<'_>> {
    let mut arrays = Vec::new();
    for stage in Stage::ALL {
        let missing: Vec<&Task> = tasks.missing(stage).collect();
        for (part, tasks) in missing.chunks(most.max(1)).enumerate() {
            arrays.push(Array { name: format!("{stage}-{part}"), stage, tasks: tasks.to_vec() });
        }
    }
    arrays
}

impl Site {
    /// A shell line that sets `point` to the point of a task. The shell variable named `index` holds the task's number in the
    /// array.
    pub fn point(&self, array: &Array, index: &str) -> String {
        let list = quoted_path(&self.folder.join(format!("{}.tasks", array.name)));
        format!("point=$(sed -n \"$(({index} + 1))s/ .*//p\" {list})\n")
    }

    /// The shell command that runs the task of the point in `$point`.
    pub fn command(&self, array: &Array, wanted: &Wanted) -> String {
        let threads = wanted.cpus.map_or(String::new(), |cpus| format!(" --threads {cpus}"));
        let device = wanted.device.as_ref().map_or(String::new(), |device| format!(" --device {}", quoted(device)));
        let [program, points, runs] =
            [&self.program, &self.folder.join("points"), &self.runs].map(|path| quoted_path(path));
        format!("{program} run {points}/\"$point\".yaml --only {} --runs {runs}{threads}{device}", array.stage)
    }
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// `text` as one word of the shell, in quotes if needed.
fn quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:=+,@%".contains(&b);
    match !text.is_empty() && text.bytes().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{artifact::Components, cluster::State};

    pub fn task(stage: Stage, point: usize, state: State) -> Task {
        let mut components = Components::default();
        components.insert(stage.name(), &point.into());
        Task { stage, identity: components.key(), point, points: 1, inputs: vec![], state }
    }

    /// A site whose paths have spaces and quotes, which need quoting in a shell.
    pub fn site() -> Site {
        Site {
            name: "sweep".into(),
            program: "/opt/snclr".into(),
            base: "/home/a b".into(),
            runs: "/team's/runs".into(),
            folder: "/team's/runs/cluster/sweep-1".into(),
        }
    }

    #[test]
    fn what_is_missing_becomes_arrays_no_longer_than_the_site_allows() {
        let mut tasks = vec![task(Stage::Data, 0, State::Done), task(Stage::Pretrain, 9, State::Running(None))];
        tasks.extend((0..5).map(|point| task(Stage::Pretrain, point, State::Waiting)));
        tasks.push(task(Stage::Knn, 0, State::Waiting));
        let tasks = Tasks::made_up(tasks);
        let arrays = arrays(&tasks, 2);
        let shown: Vec<_> = arrays.iter().map(|array| (array.name.as_str(), array.tasks.len())).collect();
        assert_eq!(shown, [("pretrain-0", 2), ("pretrain-1", 2), ("pretrain-2", 1), ("knn-0", 1)]);
    }
}
