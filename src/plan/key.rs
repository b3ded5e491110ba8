//! Builds the key of a stage from its leaves. Explanations read the same leaves, so that the two cannot drift apart.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Job, Stage, source::FileHashes};
use crate::{
    artifact::Components,
    spec::{self, Experiment},
    stage::Input,
    train::Precision,
};

/// Leaf with the hash of the file that the encoder starts from. Its path, `encoder.init`, cannot change a result and is no leaf.
pub const INIT: &str = "encoder.init_file";

/// Leaf with the kind of unit that multiplies bf16, if that is the precision. Each kind rounds its sums in its own order, while
/// f32 has the same bits on all.
pub const UNIT: &str = "precision.unit";

/// For each stage, the leaves that do not come from its inputs: its name and version, the fields of the spec that it reads, the
/// files that the spec names, and the kind of unit that multiplies bf16.
pub struct KeyFields(BTreeMap<Stage, Components>);

impl KeyFields {
    /// The leaves of what each stage reads from `experiment`, without fields that cannot change a result.
    ///
    /// # Errors
    /// When a field cannot be represented in JSON.
    pub fn of(experiment: &Experiment) -> anyhow::Result<Self> {
        let of_stage = |stage: Stage| {
            let mut leaves = Components::default();
            leaves.insert("stage", &stage.name().into());
            leaves.insert("stage_version", &stage.version().into());
            let semantic = spec::semantic(serde_json::to_value(Job::new(stage, experiment))?);
            flatten(&mut String::new(), &semantic, &mut |name, value| leaves.insert(name, value));
            Ok((stage, leaves))
        };
        Ok(KeyFields(Stage::ALL.into_iter().map(of_stage).collect::<anyhow::Result<_>>()?))
    }

    fn add(&mut self, stage: Stage, leaf: impl Into<String>, value: impl Into<Value>) {
        self.0.entry(stage).or_default().insert(leaf, &value.into());
    }

    /// Adds source files.
    pub fn add_sources(&mut self, sources: FileHashes) {
        match sources {
            FileHashes::Named(files) if files.is_empty() => {}
            FileHashes::Named(files) => {
                self.add(Stage::Data, "data.source_files", files.len());
                files.into_iter().for_each(|(role, hash)| self.add(Stage::Data, format!("data.source.{role}"), hash));
            }
            FileHashes::Many(files, all) => {
                self.add(Stage::Data, "data.source_files", files);
                self.add(Stage::Data, "data.source", all);
            }
        }
    }

    /// Adds the hash of the file that the encoder starts from. The trained encoder's embeddings depend on it only through the
    /// trained weights.
    pub fn add_init(&mut self, hash: Option<String>) {
        if let Some(hash) = hash {
            for stage in [Stage::Pretrain, Stage::EmbedInitial] {
                self.add(stage, INIT, hash.clone());
            }
        }
    }

    /// Adds the kind of unit that multiplies bf16 on this machine, if `precision` is bf16. Embeddings are computed in f32
    /// everywhere.
    pub fn add_unit(&mut self, precision: Precision, unit: Option<&str>) {
        if precision == Precision::Bf16 {
            self.add(Stage::Pretrain, UNIT, unit.unwrap_or("f32"));
        }
    }

    /// Everything that `stage` depends on. `content` returns the content that the stage reads from an input, or None for an input
    /// without known content.
    pub fn components(&self, stage: Stage, content: impl Fn(&Input) -> Option<String>) -> Components {
        let mut components = self.0[&stage].clone();
        for input in stage.descriptor().inputs {
            if let Some((leaf, content)) = input.leaf().and_then(|leaf| Some((leaf, content(input)?))) {
                components.insert(leaf, &content.into());
            }
        }
        components
    }
}

/// Flattens JSON: the fields of objects get dotted names after `prefix`. Everything else is a leaf, including lists and empty
/// objects.
pub(super) fn flatten(prefix: &mut String, value: &Value, leaf: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) if !fields.is_empty() || prefix.is_empty() => {
            let outer = prefix.len();
            for (name, value) in fields {
                if outer > 0 {
                    prefix.push('.');
                }
                prefix.push_str(name);
                flatten(prefix, value, leaf);
                prefix.truncate(outer);
            }
        }
        value => leaf(prefix, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::experiment;

    #[test]
    fn a_training_in_bf16_depends_on_what_multiplies_and_nothing_else_does() {
        let components = |precision: &str, unit| {
            let experiment = experiment(&[("precision", precision.into())]);
            let mut leaves = KeyFields::of(&experiment).unwrap();
            leaves.add_unit(experiment.precision, unit);
            Stage::ALL.map(|stage| leaves.components(stage, |_| Some("content".to_owned())))
        };
        for precision in ["f32", "tf32"] {
            assert_eq!(components(precision, Some("AVX512-BF16")), components(precision, None), "{precision}");
            assert!(components(precision, None).iter().all(|stage| !stage.0.contains_key(UNIT)), "{precision}");
        }
        let [wide, narrow] = [Some("AVX512-BF16"), None].map(|unit| components("bf16", unit));
        for (stage, (wide, narrow)) in Stage::ALL.into_iter().zip(wide.iter().zip(&narrow)) {
            let leaf = |of: &Components| of.0.get(UNIT).cloned();
            if stage == Stage::Pretrain {
                assert_eq!((leaf(wide), leaf(narrow)), (Some("\"AVX512-BF16\"".into()), Some("\"f32\"".into())));
                assert_ne!(wide.key(), narrow.key());
            } else {
                assert_eq!((leaf(wide), wide.key()), (None, narrow.key()), "{stage}");
            }
        }
    }
}
