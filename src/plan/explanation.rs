//! Which stages would run and every leaf that makes the difference, also of stages whose inputs are not there yet.

use std::collections::BTreeMap;

use super::{Difference, Planner, Stage, Status, explain::nearest};
use crate::artifact::{Artifact, Components, Key, Manifest, RunRecord};

/// What a stage is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Against<'a> {
    /// The artifact with the fewest differing leaves.
    Nearest,
    /// The artifacts of a run.
    Run(&'a RunRecord),
}

/// What becomes of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has its artifact.
    Cached,
    /// It runs; `damaged` says what is wrong with the artifact that is there.
    Runs { damaged: Option<String> },
    /// It runs unless its inputs, which run before it, come to the content that they had.
    Depends,
}

/// A stage, its verdict, and why.
#[derive(Clone, Debug)]
pub struct Explanation {
    pub stage: Stage,
    pub verdict: Verdict,
    /// None as long as an input is pending.
    pub key: Option<Key>,
    /// The leaves that are known; of pending inputs, the content is not.
    pub components: Components,
    /// Inputs that are pending.
    pub waits_for: Vec<Stage>,
    /// The artifact that it is compared with.
    pub compared: Option<Manifest>,
    /// Every leaf that differs from it, but for pending inputs.
    pub differences: Vec<Difference>,
    pub artifact: Option<Artifact>,
}

impl Planner<'_> {
    /// Looks at all stages.
    pub fn explain(&self, against: Against) -> Vec<Explanation> {
        let mut artifacts = BTreeMap::new();
        let mut explanations = Vec::new();
        for stage in Stage::ALL {
            let explanation = self.explain_stage(stage, &artifacts, against);
            if let Some(artifact) = &explanation.artifact {
                artifacts.insert(stage, artifact.clone());
            }
            explanations.push(explanation);
        }
        explanations
    }

    fn explain_stage(&self, stage: Stage, inputs: &BTreeMap<Stage, Artifact>, against: Against) -> Explanation {
        let waits_for: Vec<Stage> =
            stage.inputs().iter().copied().filter(|input| !inputs.contains_key(input)).collect();
        // What pending inputs come to is left out on both sides of the comparison.
        let known = |mut components: Components| {
            waits_for.iter().for_each(|input| drop(components.0.remove(&format!("inputs.{input}"))));
            components
        };
        let content = |input: Stage| inputs.get(&input).map_or(String::new(), |artifact| artifact.content().to_owned());
        let components = known(self.leaves.components(stage, content));
        let compared = match against {
            Against::Nearest => {
                let mut earlier = self.store.manifests(stage.name());
                earlier.iter_mut().for_each(|manifest| {
                    manifest.components = known(std::mem::take(&mut manifest.components));
                });
                nearest(&components, &earlier).cloned()
            }
            Against::Run(run) => {
                let record = run.stages.iter().find(|record| record.stage == stage.name());
                record.and_then(|record| self.store.manifest(stage.name(), &record.key))
            }
        };
        let differences = compared
            .as_ref()
            .map_or(Vec::new(), |manifest| Difference::all(&known(manifest.components.clone()), &components));
        let resolved = self.resolve(stage, inputs);
        let key = resolved.identity.map(|(key, _)| key);
        let (verdict, artifact) = match resolved.status {
            Status::Cached(artifact) => (Verdict::Cached, Some(artifact)),
            Status::Pending if !waits_for.is_empty() => match compared.is_some() && differences.is_empty() {
                true => (Verdict::Depends, None),
                false => (Verdict::Runs { damaged: None }, None),
            },
            Status::Pending => {
                let damaged = resolved.reason.strip_prefix("damaged: ").map(str::to_owned);
                (Verdict::Runs { damaged }, None)
            }
        };
        Explanation { stage, verdict, key, components, waits_for, compared, differences, artifact }
    }
}
