//! Keys of the stages of one experiment.

use std::{collections::BTreeMap, path::Path};

use super::{key::Leaves, source};
use crate::{
    artifact::{Key, Store, hash},
    ops::product::bf16_unit,
    spec::Experiment,
    stage::{Input, Interrupt, Progress, Stage},
    train::HealthConfig,
};

/// Turns stages of one experiment into keys, and keys into artifacts, one stage at a time: the key of a stage depends on
/// the content of its inputs, which may not be there yet.
pub struct Planner<'a> {
    pub(super) store: &'a Store,
    pub(super) leaves: Leaves,
    pub(super) stages: Vec<Stage>,
    pub(super) health: HealthConfig,
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
        let mut leaves = Leaves::of(experiment)?;
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
}
