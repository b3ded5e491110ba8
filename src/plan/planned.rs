//! Determines which stages would run and which leaves make the difference, even if inputs are still missing. `plan` and `explain`
//! print the result, and the driver follows it.

use std::collections::BTreeMap;

use super::{Difference, Planner, Stage, nearest::nearest};
use crate::{
    artifact::{Artifact, Components, Found, Key, Manifest, RunRecord},
    stage::{Input, diagnostics::Diagnostics},
};

/// Maximum number of differences that a reason lists.
const SHOWN: usize = 8;

/// What a stage is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Against<'a> {
    /// The artifact with the fewest differing leaves.
    Nearest,
    /// The artifacts of a run.
    Run(&'a RunRecord),
    /// Nothing: the reason is not needed.
    Nothing,
}

/// Whether a stage runs.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It has its artifact.
    Cached(Artifact),
    /// It runs; `damaged` says what is wrong with the existing artifact.
    Runs { damaged: Option<String> },
    /// It runs unless its inputs, which run before it, produce the same content as before.
    Depends,
}

/// The plan of a stage: its verdict and the reasons, as far as they can be known.
#[derive(Clone, Debug)]
pub struct Planned {
    pub stage: Stage,
    pub verdict: Verdict,
    /// None as long as an input is pending.
    pub key: Option<Key>,
    /// The known leaves. The content of pending inputs is not among them.
    pub components: Components,
    /// Inputs that are pending.
    pub waits_for: Vec<Stage>,
    /// The artifact that it is compared with.
    pub compared: Option<Manifest>,
    /// Every leaf that differs from that artifact, except those of pending inputs.
    pub differences: Vec<Difference>,
    /// The step after which a pending stage resumes, if an earlier attempt left a checkpoint.
    pub resumes_after: Option<u64>,
    /// A remark on the diagnostics of a cached training, if the experiment asks for different ones.
    pub kept: Option<String>,
}

impl Planned {
    /// The artifact of a cached stage.
    pub fn artifact(&self) -> Option<&Artifact> {
        match &self.verdict {
            Verdict::Cached(artifact) => Some(artifact),
            Verdict::Runs { .. } | Verdict::Depends => None,
        }
    }

    /// Whether the stage has an artifact.
    pub fn is_cached(&self) -> bool {
        self.artifact().is_some()
    }

    /// One line that says why the stage is pending, or that nothing changed.
    pub fn reason(&self) -> String {
        match &self.verdict {
            Verdict::Cached(_) => {
                return self.kept.as_ref().map_or("unchanged".to_owned(), |kept| format!("unchanged; {kept}"));
            }
            Verdict::Runs { damaged: Some(what) } => return format!("damaged: {what}"),
            Verdict::Runs { damaged: None } | Verdict::Depends => {}
        }
        if let Some(input) = self.waits_for.first() {
            return format!("waits for {input}");
        }
        if self.compared.is_none() {
            return "no artifact yet".to_owned();
        }
        let mut parts: Vec<_> = self.differences.iter().take(SHOWN).map(Difference::to_string).collect();
        if self.differences.len() > SHOWN {
            parts.push(format!("and {} more", self.differences.len() - SHOWN));
        }
        parts.join(", ")
    }
}

impl Planner<'_> {
    /// For each stage of [`Planner::plan`], a key that is the same in two plans if the stage does the same work in both. It is
    /// the stage's own key where that is known; otherwise the keys of pending inputs take the place of their content.
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

    /// Plans all stages.
    pub fn plan(&self, against: Against) -> Vec<Planned> {
        let mut artifacts = BTreeMap::new();
        let mut stages = Vec::new();
        for &stage in &self.stages {
            let planned = self.resolve(stage, &artifacts, against);
            if let Some(artifact) = planned.artifact() {
                artifacts.insert(stage, artifact.clone());
            }
            stages.push(planned);
        }
        stages
    }

    /// Plans one stage; `inputs` are the artifacts that exist already.
    pub fn resolve(&self, stage: Stage, inputs: &BTreeMap<Stage, Artifact>, against: Against) -> Planned {
        let of_it = stage.inputs().into_iter().filter(|input| self.stages.contains(input));
        let waits_for: Vec<Stage> = of_it.filter(|input| !inputs.contains_key(input)).collect();
        // The content of pending inputs is left out on both sides of the comparison.
        let known = |mut components: Components| {
            let of_pending = |leaf: &str| waits_for.iter().any(|input| leaf.starts_with(&format!("inputs.{input}.")));
            components.0.retain(|leaf, _| !of_pending(leaf));
            components
        };
        let content = |input: &Input| inputs.get(&input.stage).map(|artifact| input.content(artifact));
        let components = known(self.leaves.components(stage, content));
        let key = waits_for.is_empty().then(|| components.key());
        let found = key.as_ref().map_or(Found::Missing, |key| self.store.find(stage.name(), key));
        let compared = match (against, &found) {
            (Against::Nearest, Found::Hit(artifact)) => Some(artifact.manifest().clone()),
            (Against::Nearest, _) => {
                let mut earlier = self.store.manifests(stage.name());
                earlier.iter_mut().for_each(|manifest| {
                    manifest.components = known(std::mem::take(&mut manifest.components));
                });
                nearest(&components, &earlier).cloned()
            }
            (Against::Nothing, _) => None,
            (Against::Run(run), _) => {
                let record = run.stages.iter().find(|record| record.stage == stage.name());
                record.and_then(|record| self.store.manifest(stage.name(), &record.key))
            }
        };
        let differences = compared
            .as_ref()
            .map_or(Vec::new(), |manifest| Difference::all(&known(manifest.components.clone()), &components));
        let verdict = match found {
            Found::Hit(artifact) => Verdict::Cached(artifact),
            Found::Damaged { what } => Verdict::Runs { damaged: Some(what) },
            Found::Missing if !waits_for.is_empty() && compared.is_some() && differences.is_empty() => Verdict::Depends,
            Found::Missing => Verdict::Runs { damaged: None },
        };
        let resumes_after = match &verdict {
            Verdict::Cached(_) => None,
            _ => key.as_ref().and_then(|key| self.store.newest_step(stage.name(), key)),
        };
        let kept = match &verdict {
            Verdict::Cached(training) if stage == Stage::Pretrain => {
                let diagnostics = Diagnostics::of(training).map(|diagnostics| diagnostics.unlike(&self.health));
                diagnostics.unwrap_or_else(|error| Some(format!("its diagnostics cannot be read: {error:#}")))
            }
            _ => None,
        };
        Planned { stage, verdict, key, components, waits_for, compared, differences, resumes_after, kept }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn long_lists_of_differences_are_cut() {
        let leaves = |value: u64| {
            let mut components = Components::default();
            (0..11).for_each(|i| components.insert(format!("leaf{i:02}"), &json!(value)));
            components
        };
        let (old, components) = (Manifest::new("data", leaves(1), Vec::new(), 0, 0, None), leaves(2));
        let planned = Planned {
            stage: Stage::Data,
            verdict: Verdict::Runs { damaged: None },
            key: Some(components.key()),
            waits_for: Vec::new(),
            differences: Difference::all(&old.components, &components),
            compared: Some(old),
            components,
            resumes_after: None,
            kept: None,
        };
        let reason = planned.reason();
        assert!(reason.starts_with("leaf00 1 -> 2, ") && reason.ends_with("leaf07 1 -> 2, and 3 more"), "{reason}");
    }
}
