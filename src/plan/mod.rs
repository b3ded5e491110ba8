//! An experiment becomes a stage graph with keys and explanations.

mod difference;
pub mod estimate;
mod job;
mod key;
mod nearest;
mod planned;
mod source;

use std::{collections::BTreeMap, path::Path};

pub use difference::Difference;
pub use job::Job;
pub use key::UNIT;
pub use planned::{Against, Planned, Verdict};

pub use crate::stage::Stage;

use crate::{
    artifact::{Artifact, Key, Store, hash},
    ops::product::bf16_unit,
    spec::Experiment,
    stage::{Input, Interrupt, Progress},
    train::HealthConfig,
};

/// Turns stages of one experiment into keys, and keys into artifacts, one stage at a time: the key of a stage depends on
/// the content of its inputs, which may not be there yet.
pub struct Planner<'a> {
    store: &'a Store,
    leaves: key::Leaves,
    stages: Vec<Stage>,
    health: HealthConfig,
}

impl<'a> Planner<'a> {
    /// Reads what keys depend on. Relative paths of the experiment are relative to `base`. Source files, and a file that the
    /// encoder starts from, are read where their hash is not known yet.
    pub fn new(
        store: &'a Store,
        experiment: &Experiment,
        base: &Path,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let mut leaves = key::Leaves::of(experiment)?;
        leaves.add_sources(source::hashes(&experiment.data, base, store.root(), progress, interrupt)?);
        leaves.add_init(source::init_hash(&experiment.encoder, base, store.root(), progress, interrupt)?);
        leaves.add_unit(experiment.precision, bf16_unit());
        let stages = Stage::of_experiment(experiment.encoder.init().is_some());
        Ok(Planner { store, leaves, stages, health: experiment.health.clone() })
    }

    /// The experiment's stages, inputs first.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Stands for everything that the experiment depends on, source files included, whatever has been made of it so far.
    pub fn identity(&self) -> String {
        let mut keys: BTreeMap<Stage, Key> = BTreeMap::new();
        for &stage in &self.stages {
            let content = |input: &Input| Some(format!("whatever comes of {}", keys.get(&input.stage)?));
            let key = self.leaves.components(stage, content).key();
            keys.insert(stage, key);
        }
        hash::bytes(keys.values().map(Key::as_str).collect::<String>().as_bytes())
    }

    /// For each of the stages of [`Planner::plan`] a key that other plans have in common with it if the stage is the same
    /// work: its own where that is known, else one in which pending inputs stand for what will come of them.
    pub fn prospects(&self, stages: &[Planned]) -> Vec<Key> {
        let mut prospects: BTreeMap<Stage, (Key, Option<&Artifact>)> = BTreeMap::new();
        for planned in stages {
            let content = |input: &Input| {
                Some(match prospects.get(&input.stage)? {
                    (_, Some(artifact)) => input.content(artifact),
                    (key, None) => format!("whatever comes of {key}"),
                })
            };
            let key = self.leaves.components(planned.stage, content).key();
            prospects.insert(planned.stage, (key, planned.artifact()));
        }
        prospects.into_values().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests;
