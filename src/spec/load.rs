//! Reads a spec. TO BE REPLACED by the located, schema-checked reader; same interface.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Experiment;

/// A spec that was read.
pub struct Loaded {
    pub experiment: Experiment,
    /// With defaults filled in.
    pub value: Value,
    pub path: PathBuf,
}

/// Everything that is wrong with a spec.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SpecErrors(String);

/// Reads the spec at `path`, with `a.b=c` overrides.
pub fn load(path: &Path, overrides: &[String]) -> Result<Loaded, SpecErrors> {
    let fail = |error: &dyn std::fmt::Display| SpecErrors(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
    let mut value: Value = serde_yaml::from_str(&text).map_err(|error| fail(&error))?;
    for text in overrides {
        let (name, new) = text.split_once('=').ok_or_else(|| fail(&format!("--set {text}: no `=`")))?;
        let mut at = &mut value;
        for part in name.split('.') {
            at = &mut at[part];
        }
        *at = serde_yaml::from_str(new).map_err(|error| fail(&error))?;
    }
    let experiment: Experiment = serde_json::from_value(value).map_err(|error| fail(&error))?;
    let value = serde_json::to_value(&experiment).map_err(|error| fail(&error))?;
    Ok(Loaded { experiment, value, path: path.to_owned() })
}

/// `value` without the fields that cannot change a result.
pub fn semantic(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| name != "name" && name != "description");
        if let Some(data) = fields.get_mut("data").and_then(Value::as_object_mut) {
            data.retain(|name, _| !["train", "test", "train_labels", "test_labels"].contains(&name.as_str()));
        }
    }
    value
}
