//! A YAML spec becomes a located, schema-checked [`Experiment`].
//!
//! `read` makes a value and the places of its parts out of the text, `overrides` changes it, `check` holds it against
//! the JSON Schema and `rules` against what no schema can say. All errors come at once, as [`SpecErrors`].

mod check;
mod describe;
mod error;
mod experiment;
mod locate;
mod overrides;
mod problem;
mod read;
mod rules;
mod schema;
mod semantic;
mod suggest;
mod synonyms;
mod walk;

use std::path::{Path, PathBuf};

use serde_json::Value;

pub use error::{SpecError, SpecErrors};
pub use experiment::Experiment;
pub use locate::Place;
pub use problem::Problem;
pub use schema::{schema, schema_text};
pub use semantic::semantic;

/// A spec that has passed every check.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub experiment: Experiment,
    /// The experiment with its defaults filled in and its overrides applied.
    pub value: Value,
    /// The file, as it was given.
    pub path: PathBuf,
}

/// Reads the spec at `path`, applies the `overrides` (`dotted.key=YAML`, in order) and checks it.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn load(path: &Path, overrides: &[String]) -> Result<Loaded, SpecErrors> {
    let text = read::text(path).map_err(|errors| SpecErrors::new(path, errors))?;
    load_text(path, &text, overrides)
}

/// Like [`load`], of a text that was read from `path`.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn load_text(path: &Path, text: &str, overrides: &[String]) -> Result<Loaded, SpecErrors> {
    let fail = |errors| SpecErrors::new(path, errors);
    let mut document = read::document(text).map_err(fail)?;
    let refused: Vec<SpecError> =
        overrides.iter().filter_map(|text| overrides::apply(text, &mut document).err()).flatten().collect();
    let mut errors = std::mem::take(&mut document.errors);
    errors.extend(refused);
    let violations = check::violations(&document);
    // A value that is no value at all (NaN) has been read as nothing: its type is not a second error.
    let fresh: Vec<SpecError> = violations
        .into_iter()
        .filter(|new| !errors.iter().any(|old| !old.key.is_empty() && old.key == new.key))
        .collect();
    errors.extend(fresh);
    let broken = rules::broken(&document, &errors);
    errors.extend(broken);
    if !errors.is_empty() {
        return Err(fail(errors));
    }
    let other = |reason: String| {
        let place = Some(document.places.value.clone());
        fail(vec![SpecError { place, key: String::new(), problem: Problem::Other { reason, found: None } }])
    };
    let mut value = document.value;
    whole_numbers(&mut value);
    let experiment: Experiment = serde_json::from_value(value).map_err(|error| other(error.to_string()))?;
    let value = resolved(&experiment).map_err(|error| other(error.to_string()))?;
    Ok(Loaded { experiment, value, path: path.to_owned() })
}

/// JSON Schema counts 3.0 among the integers, and serde does not.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|x| number.is_f64() && x.fract() == 0.0) {
                if (0.0..u64::MAX as f64).contains(&float) {
                    *value = Value::from(float as u64);
                } else if (i64::MIN as f64..0.0).contains(&float) {
                    *value = Value::from(float as i64);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// Every key of the experiment. By way of YAML text, which keeps the digits of single-precision numbers as they were
/// written (0.4 and not 0.4000000059604645) and reads every number back exactly.
fn resolved(experiment: &Experiment) -> Result<Value, serde_yaml::Error> {
    serde_yaml::from_str(&serde_yaml::to_string(experiment)?)
}
