//! The tasks of many points: one per stage, which all points that share the stage also share.

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
    /// Stands for the stage's own configuration and the identities of its inputs: known before anything has run, and the same
    /// whatever has run since. Two stages of one identity are one task.
    pub identity: Key,
    /// The first point that has it; it is run with that point's spec.
    pub point: usize,
    /// Points that have it.
    pub points: usize,
    /// Places of the tasks that it reads, in [`Tasks::tasks`].
    pub inputs: Vec<usize>,
    pub state: State,
}

/// What has become of a task, as far as the store knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has its artifact.
    Done,
    /// Somebody works on it: the process, where it is known.
    Running(Option<Process>),
    /// The last attempt ended so, and why where that is news.
    Ended(RunState, Option<String>),
    /// Nothing has begun it, or an input is not there yet.
    Waiting,
}

/// The work of many points, inputs before those that read them.
#[derive(Clone, Debug)]
pub struct Tasks {
    pub tasks: Vec<Task>,
    /// Of each point the places of its tasks, in the order of its stages.
    pub of_point: Vec<Vec<usize>>,
    /// Of each task its artifact, if it has one.
    artifacts: Vec<Option<Artifact>>,
}

impl Tasks {
    /// The work of `experiments`, and what has become of it. Paths in them are relative to the folder we are in.
    ///
    /// # Errors
    /// When source files cannot be read, or the user interrupts.
    pub fn of(
        store: &Store,
        experiments: &[&Experiment],
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Tasks> {
        // Files that several points read are looked at once.
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

    /// The artifacts of a point that is done, in the order of its stages.
    pub fn artifacts_of(&self, point: usize) -> Vec<Artifact> {
        self.of_point[point].iter().filter_map(|&task| self.artifacts[task].clone()).collect()
    }

    /// Tasks as a test makes them up.
    #[cfg(test)]
    pub(super) fn made_up(tasks: Vec<Task>) -> Tasks {
        Tasks { artifacts: vec![None; tasks.len()], tasks, of_point: vec![] }
    }

    /// Tasks of a stage that have no artifact, that nobody works on, and that may come to one.
    pub fn missing(&self, stage: Stage) -> impl Iterator<Item = &Task> {
        let is_open = |task: &Task| !matches!(task.state, State::Done | State::Running(_)) && !self.is_hopeless(task);
        self.tasks.iter().filter(move |task| task.stage == stage && is_open(task))
    }

    /// Whether it, or a training that it reads, diverged: that would come to the same again.
    pub fn is_hopeless(&self, task: &Task) -> bool {
        matches!(task.state, State::Ended(RunState::Diverged, _))
            || task.inputs.iter().any(|&input| self.is_hopeless(&self.tasks[input]))
    }
}

/// By stage and key how the last attempt ended, and why.
type Endings = HashMap<(String, Key), (RunState, Option<String>)>;

/// How the last attempt at each stage and key ended, of runs that have no results.
fn attempts(store: &Store) -> anyhow::Result<Endings> {
    let records = RunRecord::unfinished(store.root())?.into_iter().filter_map(|(_, record)| record.unfinished);
    Ok(records.map(|at| ((at.stage, at.key), (at.state, at.why))).collect())
}

fn ended_or_waiting(ended: &Endings, stage: Stage, key: &Key) -> State {
    match ended.get(&(stage.name().to_owned(), key.clone())) {
        // It was running at a moment when nobody held its lock: it is just beginning or ending.
        Some((RunState::Running, _)) => State::Running(None),
        Some((state, why)) => State::Ended(*state, why.clone()),
        None => State::Waiting,
    }
}
