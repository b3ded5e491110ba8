//! The tasks of many points: one per stage. Points that share a stage share its task.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use rayon::prelude::*;

use crate::{
    artifact::{Artifact, Key, Process, RunRecord, RunState, Store},
    plan::{Against, Planner, Sources, Stage},
    spec::Experiment,
    stage::{Interrupt, Progress},
};

/// The work of one stage.
#[derive(Clone, Debug)]
pub struct Task {
    pub stage: Stage,
    /// A key of the stage's own configuration and the identities of its inputs. It is known before anything has run, and does not
    /// change when stages run. Two stages with the same identity are one task.
    pub identity: Key,
    /// The first point that has this task. The task is run with that point's spec.
    pub point: usize,
    /// The number of points that have this task.
    pub points: usize,
    /// The tasks whose artifacts this task reads, as indices into [`Tasks::tasks`].
    pub inputs: Vec<usize>,
    pub state: State,
}

/// The state of a task, as read from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its artifact exists.
    Done,
    /// A process works on it; None if it is not known which one.
    Running(Option<Process>),
    /// How the last attempt ended, and the reason if the state does not say it.
    Ended(RunState, Option<String>),
    /// No attempt has started, or an input is still missing.
    Waiting,
}

/// The work of many points, inputs before those that read them.
#[derive(Clone, Debug)]
pub struct Tasks {
    pub tasks: Vec<Task>,
    /// For each point, the indices of its tasks in [`Tasks::tasks`], in the order of its stages.
    pub of_point: Vec<Vec<usize>>,
    /// For each task, its artifact, if it exists.
    artifacts: Vec<Option<Artifact>>,
}

impl Tasks {
    /// The tasks of `experiments`, and their states. Paths in the experiments are relative to the current folder.
    ///
    /// # Errors
    /// When source files cannot be read, or the user interrupts.
    pub fn of(
        store: &Store,
        experiments: &[&Experiment],
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Tasks> {
        // Inspect source files once, even if several points read them.
        let mut sources: HashMap<String, Sources> = HashMap::new();
        let mut of_experiment = Vec::new();
        for experiment in experiments {
            let name = Sources::name(experiment)?;
            if !sources.contains_key(&name) {
                let read = Sources::of(experiment, Path::new(""), store.root(), progress, interrupt)?;
                sources.insert(name.clone(), read);
            }
            of_experiment.push((experiment, name));
        }
        let planned = of_experiment.par_iter().map(|(experiment, name)| {
            let planner = Planner::with(store, experiment, &sources[name])?;
            let identities = planner.identities();
            Ok((planner, identities))
        });
        let planned = planned.collect::<anyhow::Result<Vec<_>>>()?;
        let ended = attempts(store)?;

        let mut tasks: Vec<Task> = Vec::new();
        let mut artifacts: Vec<Option<Artifact>> = Vec::new();
        let mut known: HashMap<(Stage, Key), usize> = HashMap::new();
        let mut of_point = Vec::new();
        for (point, (planner, identities)) in planned.into_iter().enumerate() {
            let mut places: BTreeMap<Stage, usize> = BTreeMap::new();
            for (stage, identity) in identities {
                let inputs: Vec<usize> = stage.inputs().iter().filter_map(|input| places.get(input).copied()).collect();
                let place = *known.entry((stage, identity.clone())).or_insert_with(|| {
                    let there = stage.inputs().into_iter();
                    let there = there.filter_map(|input| Some((input, artifacts[*places.get(&input)?].clone()?)));
                    let planned = planner.resolve(stage, &there.collect(), Against::Nothing);
                    let state = match (planned.artifact(), &planned.key) {
                        (Some(_), _) => State::Done,
                        (None, Some(key)) => match store.worker(stage.name(), key) {
                            Some(process) => State::Running(process),
                            None => ended_or_waiting(&ended, stage, key),
                        },
                        (None, None) => State::Waiting,
                    };
                    artifacts.push(planned.artifact().cloned());
                    tasks.push(Task { stage, identity, point, points: 0, inputs, state });
                    tasks.len() - 1
                });
                tasks[place].points += 1;
                places.insert(stage, place);
            }
            of_point.push(places.into_values().collect());
        }
        Ok(Tasks { tasks, of_point, artifacts })
    }

    /// Whether every stage of a point has its artifact.
    pub fn is_done(&self, point: usize) -> bool {
        self.of_point[point].iter().all(|&task| self.tasks[task].state == State::Done)
    }

    /// The artifacts of a point in the order of its stages: all of them if the point is done.
    pub fn artifacts_of(&self, point: usize) -> Vec<Artifact> {
        self.of_point[point].iter().filter_map(|&task| self.artifacts[task].clone()).collect()
    }

    /// Tasks that a test has made up.
    #[cfg(test)]
    pub(super) fn made_up(tasks: Vec<Task>) -> Tasks {
        Tasks { artifacts: vec![None; tasks.len()], tasks, of_point: vec![] }
    }

    /// Tasks of a stage that still have to run: they have no artifact, no process works on them, and they are not hopeless.
    pub fn missing(&self, stage: Stage) -> impl Iterator<Item = &Task> {
        let is_open = |task: &Task| !matches!(task.state, State::Done | State::Running(_)) && !self.is_hopeless(task);
        self.tasks.iter().filter(move |task| task.stage == stage && is_open(task))
    }

    /// Whether this task, or one that it reads directly or through others, diverged. A new attempt would diverge again.
    pub fn is_hopeless(&self, task: &Task) -> bool {
        matches!(task.state, State::Ended(RunState::Diverged, _))
            || task.inputs.iter().any(|&input| self.is_hopeless(&self.tasks[input]))
    }
}

/// How the last attempt ended and why, by stage and key.
type Endings = HashMap<(String, Key), (RunState, Option<String>)>;

/// How the last attempt at each stage and key ended, from the records of runs without results.
fn attempts(store: &Store) -> anyhow::Result<Endings> {
    let records = RunRecord::unfinished(store.root())?.into_iter().filter_map(|(_, record)| record.unfinished);
    Ok(records.map(|at| ((at.stage, at.key), (at.state, at.why))).collect())
}

fn ended_or_waiting(ended: &Endings, stage: Stage, key: &Key) -> State {
    match ended.get(&(stage.name().to_owned(), key.clone())) {
        // The record says running, but no process held the lock: the task is just starting or ending.
        Some((RunState::Running, _)) => State::Running(None),
        Some((state, why)) => State::Ended(*state, why.clone()),
        None => State::Waiting,
    }
}
