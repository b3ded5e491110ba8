//! An experiment becomes a stage graph with keys and explanations.

mod difference;
pub mod estimate;
mod explain;
mod explanation;
mod graph;
mod key;
mod source;

use std::{collections::BTreeMap, path::Path};

pub use difference::Difference;
pub use explanation::{Against, Explanation, Verdict};
pub use graph::Stage;

use crate::{
    artifact::{Artifact, Components, Found, Key, Store},
    ops::product::bf16_unit,
    spec::Experiment,
    stage::{Interrupt, Progress},
};

/// Turns stages of one experiment into keys, and keys into artifacts, one stage at a time: the key of a stage depends on
/// the content of its inputs, which may not be there yet.
pub struct Planner<'a> {
    store: &'a Store,
    leaves: key::Leaves,
}

/// A stage, as far as it can be known.
#[derive(Debug)]
pub struct Planned {
    pub stage: Stage,
    /// None as long as an input is pending.
    pub identity: Option<(Key, Components)>,
    pub status: Status,
    /// Why it is pending, or that nothing changed.
    pub reason: String,
}

/// Whether a stage has to run.
#[derive(Debug)]
pub enum Status {
    Cached(Artifact),
    Pending,
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
        Ok(Planner { store, leaves })
    }

    /// Looks at one stage; `inputs` are the artifacts there are.
    pub fn resolve(&self, stage: Stage, inputs: &BTreeMap<Stage, Artifact>) -> Planned {
        if let Some(missing) = stage.inputs().iter().find(|input| !inputs.contains_key(input)) {
            let reason = format!("waits for {missing}");
            return Planned { stage, identity: None, status: Status::Pending, reason };
        }
        let components = self.leaves.components(stage, |input| inputs[&input].content().to_owned());
        let key = components.key();
        let (status, reason) = match self.store.find(stage.name(), &key) {
            Found::Hit(artifact) => (Status::Cached(artifact), "unchanged".to_owned()),
            Found::Damaged { what } => (Status::Pending, format!("damaged: {what}")),
            Found::Missing => (Status::Pending, explain::explain(&components, &self.store.manifests(stage.name()))),
        };
        Planned { stage, identity: Some((key, components)), status, reason }
    }

    /// Looks at all stages.
    pub fn plan(&self) -> Vec<Planned> {
        let mut inputs = BTreeMap::new();
        let mut stages = Vec::new();
        for stage in Stage::ALL {
            let planned = self.resolve(stage, &inputs);
            if let Status::Cached(artifact) = &planned.status {
                inputs.insert(stage, artifact.clone());
            }
            stages.push(planned);
        }
        stages
    }

    /// For each of the stages of [`Planner::plan`] a key that other plans have in common with it if the stage is the same
    /// work: its own where that is known, else one in which pending inputs stand for what will come of them.
    pub fn prospects(&self, stages: &[Planned]) -> Vec<Key> {
        let mut contents: BTreeMap<Stage, String> = BTreeMap::new();
        let mut prospects = Vec::new();
        for planned in stages {
            let key = self.leaves.components(planned.stage, |input| contents[&input].clone()).key();
            let content = match &planned.status {
                Status::Cached(artifact) => artifact.content().to_owned(),
                Status::Pending => format!("whatever comes of {key}"),
            };
            contents.insert(planned.stage, content);
            prospects.push(key);
        }
        prospects
    }
}

impl Planned {
    /// Whether the stage has an artifact.
    pub fn is_cached(&self) -> bool {
        matches!(self.status, Status::Cached(_))
    }
}

#[cfg(test)]
pub(crate) mod tests;
