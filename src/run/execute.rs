//! One experiment from its plan to its results.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{Driver, Outcome, Reporter, StageOutcome, record, stage_work};
use crate::{
    artifact::Store,
    plan::{Planner, Stage},
    spec::Experiment,
    stage::Interrupt,
};

/// Where and how experiments run.
pub struct Setting<'a> {
    pub store: &'a Store,
    pub interrupt: &'a Interrupt,
    /// Longest time between two checkpoints.
    pub checkpoint_interval: Duration,
    /// Worker threads; as many as there are processors when None.
    pub threads: Option<usize>,
    /// Held while a plan is made: of two points that read the same source files, one hashes them.
    pub planning: Mutex<()>,
}

/// An experiment that has its results.
#[derive(Clone, Debug)]
pub struct Finished {
    pub stages: Vec<StageOutcome>,
    pub outcome: Outcome,
}

impl Setting<'_> {
    /// Brings every stage of `experiment` to its artifact and writes its results.
    ///
    /// # Errors
    /// When a stage fails or diverges, or the user interrupts.
    pub fn run(&self, experiment: &Experiment, reporter: &Arc<Reporter>) -> anyhow::Result<Finished> {
        let planning = self.planning.lock().unwrap_or_else(PoisonError::into_inner);
        let planner = Planner::new(self.store, experiment, Path::new(""), &**reporter, self.interrupt)?;
        drop(planning);
        reporter.stage_ends();
        let work = stage_work(experiment);
        let driver = Driver {
            store: self.store,
            planner: &planner,
            work: &*work,
            reporter: reporter.clone(),
            interrupt: self.interrupt,
            checkpoint_interval: self.checkpoint_interval,
            threads: self.threads,
        };
        reporter.stages(&Stage::ALL.map(Stage::name));
        let stages = driver.run();
        reporter.done();
        let stages = stages?;
        let outcome = record(self.store, experiment, &stages)?;
        Ok(Finished { stages, outcome })
    }
}
