//! Computes the keys of the stages of an experiment.

use std::{collections::BTreeMap, path::Path};

use super::{key::KeyFields, source::Sources};
use crate::{
    artifact::{Key, Store, hash},
    spec::Experiment,
    stage::{Input, Interrupt, Progress, Stage},
    train::{Device, HealthConfig},
};

/// Turns stages of one experiment into keys, and keys into artifacts, one stage at a time: the key of a stage depends on the
/// content of its inputs, which may not exist yet.
pub struct Planner<'a> {
    pub(super) store: &'a Store,
    pub(super) leaves: KeyFields,
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
        Planner::with(store, experiment, &Sources::of(experiment, base, store.root(), progress, interrupt)?)
    }

    /// Like [`Planner::new`], but with source files whose hashes are already known.
    ///
    /// # Errors
    /// When a field of the experiment cannot be represented in JSON.
    pub fn with(store: &'a Store, experiment: &Experiment, sources: &Sources) -> anyhow::Result<Self> {
        let mut leaves = KeyFields::of(experiment)?;
        leaves.add_sources(sources.data.clone());
        leaves.add_init(sources.init.clone());
        leaves.add_unit(experiment.precision, Device::chosen().bf16_unit());
        let stages = Stage::of_experiment(experiment.encoder.init().is_some());
        Ok(Planner { store, leaves, stages, health: experiment.health.clone() })
    }

    /// The experiment's stages, inputs first.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// An identity of each stage's work: a hash over the stage's own configuration and the identities of its inputs. It is known
    /// before any stage has run, and does not depend on which artifacts exist. Stages with the same identity do the same work,
    /// even in different experiments.
    pub fn identities(&self) -> BTreeMap<Stage, Key> {
        let mut keys: BTreeMap<Stage, Key> = BTreeMap::new();
        for &stage in &self.stages {
            let content = |input: &Input| Some(format!("whatever comes of {}", keys.get(&input.stage)?));
            let key = self.leaves.components(stage, content).key();
            keys.insert(stage, key);
        }
        keys
    }

    /// A hash of everything that the experiment depends on, source files included. It does not depend on which artifacts exist.
    pub fn identity(&self) -> String {
        hash::bytes(self.identities().values().map(Key::as_str).collect::<String>().as_bytes())
    }
}
