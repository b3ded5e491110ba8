//! The points of specs and their tasks, for `snclr submit` and `snclr status`.

use std::{sync::Mutex, time::Duration};

use super::{Global, changes::Specs};
use crate::{
    artifact::Store,
    cluster::{State, Tasks},
    run::{self, Reporter, Setting},
    spec::Point,
    stage::Interrupt,
};

/// The points of specs and their tasks.
pub struct Work {
    /// Name of the first spec.
    pub name: String,
    pub points: Vec<Point>,
    pub tasks: Tasks,
}

impl Work {
    /// Reads the specs and looks into the store. Writes the results of points that have all their artifacts and no results yet:
    /// if each stage ran as a task of its own, no task may have seen that it was the last.
    ///
    /// # Errors
    /// When a spec is invalid, source files cannot be read, or results cannot be written.
    pub fn of(specs: &Specs, global: &Global) -> anyhow::Result<Work> {
        let points = specs.load()?.points;
        let interrupt = Interrupt::default();
        run::watch(&interrupt)?;
        let reporter = Reporter::new(global.verbosity());
        let store = Store::open(&global.runs);
        let experiments: Vec<_> = points.iter().map(|point| &point.loaded.experiment).collect();
        let tasks = Tasks::of(&store, &experiments, &reporter, &interrupt)?;
        reporter.stage_ends();
        let setting = Setting {
            store: &store,
            interrupt: &interrupt,
            checkpoint_interval: Duration::ZERO,
            threads: global.threads,
            planning: Mutex::default(),
            cache: None,
        };
        for (point, experiment) in experiments.iter().enumerate().filter(|(point, _)| tasks.is_done(*point)) {
            let artifacts = tasks.artifacts_of(point);
            if !run::is_recorded(&store, experiment, &artifacts) {
                setting.collect(experiment, &artifacts)?;
            }
        }
        let name = points.first().map_or(String::new(), |point| point.loaded.experiment.name.clone());
        Ok(Work { name, points, tasks })
    }

    /// Number of tasks for which `is` holds.
    pub fn count(&self, is: impl Fn(&State) -> bool) -> usize {
        self.tasks.tasks.iter().filter(|task| is(&task.state)).count()
    }
}
