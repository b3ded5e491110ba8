//! What a stage's key is made of. Explanations read the same leaves, so that the two cannot drift apart.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Stage;
use crate::{
    artifact::{Components, hash},
    spec::{self, Experiment},
    train::Precision,
};

/// Up to so many source files are leaves of their own, so that an explanation can name the one that changed.
const NAMED_SOURCES: usize = 32;

/// Leaf of the file that the encoder starts from. Its path, `encoder.init`, is operational.
pub const INIT: &str = "encoder.init_file";

/// Leaf of what multiplies bf16 where that is the precision: each kind rounds its sums in an order of its own, while f32 has
/// the same bits on all.
pub const UNIT: &str = "precision.unit";

/// The semantic fields of an experiment by dotted name, and the hashes of files that it names.
pub struct Leaves(BTreeMap<String, Value>);

impl Leaves {
    /// The fields of `experiment` that can change a result.
    pub fn of(experiment: &Experiment) -> anyhow::Result<Self> {
        let mut leaves = BTreeMap::new();
        flatten("", &spec::semantic(&serde_json::to_value(experiment)?), &mut leaves);
        Ok(Leaves(leaves))
    }

    /// Adds source files: role -> hash of the bytes.
    pub fn add_sources(&mut self, sources: BTreeMap<String, String>) {
        if sources.is_empty() {
            return;
        }
        self.0.insert("data.source_files".into(), sources.len().into());
        if sources.len() <= NAMED_SOURCES {
            self.0.extend(sources.into_iter().map(|(role, hash)| (format!("data.source.{role}"), hash.into())));
        } else {
            let list = serde_json::to_string(&sources).expect("a map of strings");
            self.0.insert("data.source".into(), hash::bytes(list.as_bytes()).into());
        }
    }

    /// Adds the hash of the file that the encoder starts from.
    pub fn add_init(&mut self, hash: Option<String>) {
        if let Some(hash) = hash {
            self.0.insert(INIT.into(), hash.into());
        }
    }

    /// Adds what multiplies bf16 on this machine, where `precision` asks for bf16.
    pub fn add_unit(&mut self, precision: Precision, unit: Option<&str>) {
        if precision == Precision::Bf16 {
            self.0.insert(UNIT.into(), unit.unwrap_or("f32").into());
        }
    }

    /// Everything that `stage` depends on; `content` gives the content hash of an input.
    pub fn components(&self, stage: Stage, content: impl Fn(Stage) -> String) -> Components {
        let (sections, except) = stage.fields();
        let within = |name: &str, sections: &[&str]| {
            sections
                .iter()
                .any(|section| name.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        };
        let mut components = Components::default();
        components.insert("stage", &stage.name().into());
        components.insert("stage_version", &stage.version().into());
        for (name, value) in self.0.iter().filter(|(name, _)| within(name, sections) && !within(name, except)) {
            components.insert(name.as_str(), value);
        }
        for &input in stage.inputs() {
            components.insert(format!("inputs.{input}"), &content(input).into());
        }
        components
    }
}

/// Objects become dotted names; everything else, lists among them, is a leaf.
fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() || prefix.is_empty() => {
            for (name, value) in fields {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&name, value, into);
            }
        }
        leaf => {
            into.insert(prefix.to_owned(), leaf.clone());
        }
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
            let mut leaves = Leaves::of(&experiment).unwrap();
            leaves.add_unit(experiment.precision, unit);
            Stage::ALL.map(|stage| leaves.components(stage, |_| "content".to_owned()))
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
