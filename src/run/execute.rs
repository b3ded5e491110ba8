//! Runs one experiment, from its plan to its results, or a single stage of it.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;

use super::{Driver, How, Outcome, Reporter, StageOutcome, driver::Work, record, stage_work};
use crate::{
    artifact::{Artifact, FileSystem, RunAttempt, RunRecord, RunState, Store},
    plan::{Against, Planned, Planner, Stage},
    remote::Cache,
    spec::Experiment,
    stage::{Interrupt, Progress, Stopped, initial},
};

/// Where and how experiments run.
pub struct Setting<'a> {
    pub store: &'a Store,
    pub interrupt: &'a Interrupt,
    /// Longest time between two checkpoints.
    pub checkpoint_interval: Duration,
    /// Worker threads; one per processor if None.
    pub threads: Option<usize>,
    /// Held while a plan is made, so that two points with the same source files hash them once.
    pub planning: Mutex<()>,
    /// The shared cache, if there is one.
    pub cache: Option<&'a Cache>,
}

/// A finished experiment: its stages and its results.
#[derive(Clone, Debug)]
pub struct Finished {
    pub stages: Vec<StageOutcome>,
    pub outcome: Outcome,
}

/// The outcome of a stage that ran alone.
#[derive(Clone, Debug)]
pub struct Alone {
    pub outcome: StageOutcome,
    /// The results, if this stage was the last one missing.
    pub results: Option<Outcome>,
}

/// Why a stage cannot run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    #[error("stage {stage} cannot run yet: its input {input} is missing; run that first (--only {input})")]
    Input { stage: Stage, input: Stage },
    #[error("stage {stage} will never run: its input {input} diverged")]
    Diverged { stage: Stage, input: Stage },
    #[error("the experiment has no stage {stage}: it does not start from a file of weights (encoder.init)")]
    NoStage { stage: Stage },
    #[error("--only runs a stage of one point, and the spec has {points}; choose one with --set")]
    ManyPoints { points: usize },
}

/// All stages that `stage` reads, directly or through others.
fn inputs(stage: Stage) -> BTreeSet<Stage> {
    let own = stage.inputs();
    own.iter().copied().flat_map(inputs).chain(own.iter().copied()).collect()
}

impl Setting<'_> {
    /// Finds or makes all artifacts of `experiment`, and writes its results.
    ///
    /// # Errors
    /// When a stage fails or diverges, or the user interrupts.
    pub fn run(&self, experiment: &Experiment, reporter: &Arc<Reporter>) -> anyhow::Result<Finished> {
        let planner = self.planner(experiment, reporter)?;
        check_init(experiment, &planner)?;
        let attempt =
            RunAttempt::new(self.store, &experiment.name, &planner.identity()[..8], serde_yaml::to_string(experiment)?);
        let work = stage_work(experiment);
        let driver = self.driver(&planner, &*work, reporter, Some(&attempt));
        reporter.stages(&planner.stages().iter().map(|stage| stage.name()).collect::<Vec<_>>());
        let stages = driver.run();
        reporter.done();
        let finished = stages.and_then(|stages| {
            let outcome = record(self.store, experiment, &stages)?;
            attempt.finished()?;
            Ok(Finished { stages, outcome })
        });
        self.tell(&attempt, &finished, reporter);
        finished
    }

    /// Finds or makes only the data artifact of `experiment`. A later run then finds it.
    ///
    /// # Errors
    /// When it fails, or the user interrupts.
    pub fn data(&self, experiment: &Experiment, reporter: &Arc<Reporter>) -> anyhow::Result<Artifact> {
        let planner = self.planner(experiment, reporter)?;
        let work = stage_work(experiment);
        let driver = self.driver(&planner, &*work, reporter, None);
        reporter.stages(&[Stage::Data.name()]);
        let outcomes = driver.run_of(&[Stage::Data]);
        reporter.done();
        let outcome = outcomes?.pop().context("no data stage")?;
        Ok(outcome.artifact)
    }

    /// Finds or makes the artifact of one stage of `experiment`, whose inputs must be in the store. If it was the last one
    /// missing, the results are written too.
    ///
    /// # Errors
    /// [`NotYet`]; when the stage fails or diverges, or the user interrupts.
    pub fn only(&self, stage: Stage, experiment: &Experiment, reporter: &Arc<Reporter>) -> anyhow::Result<Alone> {
        let planner = self.planner(experiment, reporter)?;
        let identities = planner.identities();
        let identity = identities.get(&stage).ok_or(NotYet::NoStage { stage })?;
        check_init(experiment, &planner)?;
        let before = inputs(stage);
        let work = stage_work(experiment);
        if self.cache.is_some() {
            let of_inputs: Vec<Stage> = planner.stages().iter().copied().filter(|s| before.contains(s)).collect();
            self.driver(&planner, &*work, reporter, None).fetch_of(&of_inputs)?;
        }
        let missing = |planned: &&Planned| before.contains(&planned.stage) && !planned.is_cached();
        if let Some(missing) = planner.plan(Against::Nothing).iter().find(missing) {
            let input = missing.stage;
            let has_diverged = |record: RunRecord| {
                record.unfinished.is_some_and(|at| {
                    at.state == RunState::Diverged && at.stage == input.name() && Some(&at.key) == missing.key.as_ref()
                })
            };
            return Err(
                match RunRecord::unfinished(self.store.root())?.into_iter().any(|(_, record)| has_diverged(record)) {
                    true => NotYet::Diverged { stage, input }.into(),
                    false => NotYet::Input { stage, input }.into(),
                },
            );
        }
        // The stage gets its own record, since other stages of the experiment may be running elsewhere.
        let name = format!("{}-{stage}", experiment.name);
        let attempt = RunAttempt::new(self.store, &name, identity.short(), serde_yaml::to_string(experiment)?);
        let driver = self.driver(&planner, &*work, reporter, Some(&attempt));
        reporter.stages(&[stage.name()]);
        let of_it: Vec<Stage> =
            planner.stages().iter().copied().filter(|s| *s == stage || before.contains(s)).collect();
        let made = driver.run_of(&of_it);
        reporter.done();
        let ended = made.and_then(|mut outcomes| {
            let outcome = outcomes.pop().context("a stage without an outcome")?;
            attempt.finished()?;
            let plan = planner.plan(Against::Nothing);
            let artifacts: Option<Vec<Artifact>> = plan.iter().map(|planned| planned.artifact().cloned()).collect();
            let results = artifacts.map(|artifacts| self.collect(experiment, &artifacts)).transpose()?;
            Ok(Alone { outcome, results })
        });
        self.tell(&attempt, &ended, reporter);
        ended
    }

    /// Writes the results of an experiment from its artifacts, given in the order of its stages.
    ///
    /// # Errors
    /// When an artifact cannot be read, or the results cannot be written.
    pub fn collect(&self, experiment: &Experiment, artifacts: &[Artifact]) -> anyhow::Result<Outcome> {
        let stages = Stage::of_experiment(experiment.encoder.init().is_some());
        let outcome = |(stage, artifact): (Stage, &Artifact)| StageOutcome {
            stage,
            how: How::Cached,
            seconds: 0.0,
            artifact: artifact.clone(),
        };
        let outcomes: Vec<_> = stages.into_iter().zip(artifacts).map(outcome).collect();
        record(self.store, experiment, &outcomes)
    }

    /// Records how an attempt without results ended.
    fn tell<T>(&self, attempt: &RunAttempt, ended: &anyhow::Result<T>, reporter: &Reporter) {
        let Err(error) = ended else { return };
        let (state, why) = ending(error);
        // The first error is the one to report.
        if let Err(second) = attempt.ended(state, why) {
            reporter.warn(&format!("cannot record how the run ended: {second:#}"));
        }
    }

    fn planner(&self, experiment: &Experiment, reporter: &Reporter) -> anyhow::Result<Planner<'_>> {
        let root = self.store.root();
        let found = FileSystem::check(root)?;
        if found.is_shared() && !root.exists() {
            // Print this only before the first run, which creates the folder.
            reporter.log(&format!("runs folder {}: {found}", root.display()));
        }
        let planning = self.planning.lock().unwrap_or_else(PoisonError::into_inner);
        let planner = Planner::new(self.store, experiment, Path::new(""), reporter, self.interrupt)?;
        drop(planning);
        reporter.stage_ends();
        Ok(planner)
    }

    fn driver<'a>(
        &'a self,
        planner: &'a Planner,
        work: &'a Work,
        reporter: &Arc<Reporter>,
        attempt: Option<&'a RunAttempt>,
    ) -> Driver<'a> {
        Driver {
            store: self.store,
            planner,
            work,
            reporter: reporter.clone(),
            interrupt: self.interrupt,
            checkpoint_interval: self.checkpoint_interval,
            attempt,
            cache: self.cache,
        }
    }
}

/// Checks the file of `encoder.init` before anything runs, rather than after the data stage.
fn check_init(experiment: &Experiment, planner: &Planner) -> anyhow::Result<()> {
    let Some(path) = experiment.encoder.init() else { return Ok(()) };
    let starts = |stage: &Planned| matches!(stage.stage, Stage::Pretrain | Stage::EmbedInitial) && !stage.is_cached();
    if planner.plan(Against::Nearest).iter().any(starts) {
        initial::frozen(&experiment.encoder, experiment.augmentations.size as usize, path)?;
    }
    Ok(())
}

/// The state of a run that ends in `error`, and the reason if the state does not say it.
fn ending(error: &anyhow::Error) -> (RunState, Option<String>) {
    match error.downcast_ref() {
        Some(Stopped::Interrupted { .. } | Stopped::InterruptedAt { .. }) => (RunState::Interrupted, None),
        Some(Stopped::Diverged(why)) => (RunState::Diverged, Some(why.clone())),
        None => (RunState::Failed, Some(format!("{error:#}"))),
    }
}
