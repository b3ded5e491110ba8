//! What commands about many points look at: the points of specs, and the work that they are.

use std::{sync::Mutex, time::Duration};

use super::{Global, changes::Specs};
use crate::{
    artifact::Store,
    cluster::{State, Tasks},
    run::{self, Reporter, Setting},
    spec::Point,
    stage::Interrupt,
};

/// The points of specs, and the work that they are.
pub struct Work {
    /// Of the first spec.
    pub name: String,
    pub points: Vec<Point>,
    pub tasks: Tasks,
}

impl Work {
    /// Reads the specs and looks into the store. Points that have all their artifacts and no results get them: where each stage was
    /// made by a task of its own, nobody else may have seen the last one.
    ///
    /// # Errors
    /// When a spec is invalid, source files cannot be read, or results cannot be written.
    pub fn of(Specs { specs, changes }: &Specs, global: &Global) -> anyhow::Result<Work> {
        let mut points = Vec::new();
        for spec in specs {
            points.extend(changes.load(spec)?.points);
        }
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

    /// Number of tasks that `is` true of.
    pub fn count(&self, is: impl Fn(&State) -> bool) -> usize {
        self.tasks.tasks.iter().filter(|task| is(&task.state)).count()
    }
}
