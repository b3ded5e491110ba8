//! Loads a spec and the changes of a command line, and returns checked experiments: one per point.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Experiment,
    check::{self, Form},
    error::{SpecError, SpecErrors},
    extends,
    locate::{Node, Place},
    overrides,
    problem::Problem,
    read::{self, Document},
    rules, sweep, variant,
};

/// A spec that has passed every check.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The experiment, with defaults filled in and overrides applied.
    pub experiment: Experiment,
    /// The file, as it was given.
    pub path: PathBuf,
    /// Where the values come from.
    pub(super) places: Node,
    /// Notes on keys that were dropped because the command line or a sweep chose another method or variant.
    pub notes: Vec<String>,
}

impl Loaded {
    /// The experiment as a JSON value with every key. The conversion goes through YAML text, which keeps the digits of
    /// single-precision numbers as they were written (0.4 and not 0.4000000059604645) and reads every number back exactly.
    pub fn value(&self) -> Value {
        let text = serde_yaml::to_string(&self.experiment).expect("an experiment is YAML");
        serde_yaml::from_str(&text).expect("what was written as YAML")
    }
}

/// The changes that a command line makes to a spec.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Method to use in place of the spec's.
    pub method: Option<String>,
    /// Overrides (`dotted.key=YAML`), in order.
    pub set: Vec<String>,
    /// Axes of a sweep (`dotted.key=YAML,YAML`).
    pub sweep: Vec<String>,
}

impl Changes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.method.is_none() && self.set.is_empty() && self.sweep.is_empty()
    }

    /// Keys that `--method` or `--set` fix to one value, with their places.
    fn fixed(&self) -> Vec<(&str, Place)> {
        let method = self.method.iter().map(|name| (variant::METHOD_NAME, Place::Method(name.as_str().into())));
        let set =
            self.set.iter().filter_map(|text| Some((text.split_once('=')?.0.trim(), Place::Set(text.as_str().into()))));
        method.chain(set).collect()
    }
}

/// The experiments that a spec describes, each checked.
#[derive(Clone, Debug)]
pub struct Points {
    /// Never empty. Without a sweep, it is one point without swept values.
    pub points: Vec<Point>,
    /// Whether a sweep was requested, even if it has only one point.
    pub is_sweep: bool,
}

/// One experiment of a sweep.
#[derive(Clone, Debug)]
pub struct Point {
    /// Swept keys and their values at this point.
    pub values: Vec<(String, Value)>,
    pub loaded: Loaded,
}

impl Points {
    /// The notes of all points, without repetitions.
    pub fn notes(&self) -> Vec<&str> {
        let mut notes: Vec<&str> = vec![];
        for note in self.points.iter().flat_map(|point| &point.loaded.notes) {
            if !notes.contains(&note.as_str()) {
                notes.push(note);
            }
        }
        notes
    }
}

impl Point {
    /// The values as readable text, e.g. `method.tau=0.2, seed=1`.
    pub fn label(&self) -> String {
        let values = self.values.iter().map(|(key, value)| format!("{key}={}", sweep::plain(value)));
        values.collect::<Vec<_>>().join(", ")
    }

    /// The values as a JSON object.
    pub fn object(&self) -> Value {
        Value::Object(self.values.iter().cloned().collect())
    }
}

/// Reads the spec at `path`, applies the `overrides` (`dotted.key=YAML`, in order) and checks it.
///
/// # Errors
/// All problems of the spec, at once. A sweep of several points is a problem, too.
pub fn load(path: &Path, overrides: &[String]) -> Result<Loaded, SpecErrors> {
    let text = read::text(path).map_err(|errors| SpecErrors::new(path, errors))?;
    load_text(path, &text, overrides)
}

/// Like [`load`], for a text that was already read from `path`.
///
/// # Errors
/// All problems of the spec, at once.
pub fn load_text(path: &Path, text: &str, overrides: &[String]) -> Result<Loaded, SpecErrors> {
    let changes = Changes { set: overrides.to_vec(), ..Changes::default() };
    let mut points = load_points_text(path, text, &changes)?.points;
    match (points.pop(), points.len()) {
        (Some(point), 0) => Ok(point.loaded),
        (_, others) => {
            let problem = Problem::Sweep {
                reason: "one experiment is wanted".to_owned(),
                found: format!("a sweep of {} points", others + 1),
                hint: "fix the swept keys with `--set`".to_owned(),
            };
            Err(SpecErrors::new(path, vec![SpecError { place: None, key: sweep::KEY.to_owned(), problem }]))
        }
    }
}

/// Reads the spec at `path` with its bases, applies the `changes` and checks every point.
///
/// # Errors
/// All problems of all points, at once and without repetitions.
pub fn load_points(path: &Path, changes: &Changes) -> Result<Points, SpecErrors> {
    let text = read::text(path).map_err(|errors| SpecErrors::new(path, errors))?;
    load_points_text(path, &text, changes)
}

fn load_points_text(path: &Path, text: &str, changes: &Changes) -> Result<Points, SpecErrors> {
    let fail = |errors| SpecErrors::new(path, errors);
    let mut document = extends::document(path, text).map_err(fail)?;
    let mut errors = vec![];
    let own = sweep::take(&mut document, &mut errors);
    let is_sweep = own.is_some() || !changes.sweep.is_empty();
    if let Some(name) = &changes.method {
        errors.extend(overrides::method(name, &mut document).err().unwrap_or_default());
    }
    errors.extend(changes.set.iter().filter_map(|text| overrides::apply(text, &mut document).err()).flatten());
    let mut given = vec![];
    for text in &changes.sweep {
        match sweep::Axis::of_text(text) {
            Ok(axis) => given.push(axis),
            Err(refused) => errors.extend(refused),
        }
    }
    let axes = sweep::combine(own.unwrap_or_default(), given, &changes.fixed(), &document, &mut errors);
    let point = |number| {
        let (values, document) = sweep::point(&axes, &document, number)?;
        Ok(Point { values, loaded: checked(path, document)? })
    };
    let checked: Vec<Result<Point, Vec<SpecError>>> = (0..sweep::count(&axes)).into_par_iter().map(point).collect();
    let mut points = vec![];
    for point in checked {
        match point {
            Ok(point) => points.push(point),
            Err(found) => {
                let fresh = |new: &SpecError| !errors.iter().any(|old| new.is_same_as(old));
                let found: Vec<SpecError> = found.into_iter().filter(fresh).collect();
                errors.extend(found);
            }
        }
    }
    if errors.is_empty() { Ok(Points { points, is_sweep }) } else { Err(fail(errors)) }
}

/// Name of the spec at `path`, and whether it has a sweep. The spec is not checked. None if it cannot be read or has no name.
pub fn outline(path: &Path) -> Option<(String, bool)> {
    let mut document = extends::document(path, &read::text(path).ok()?).ok()?;
    let is_sweep = sweep::take(&mut document, &mut vec![]).is_some();
    Some((document.value.get("name")?.as_str()?.to_owned(), is_sweep))
}

/// The experiment of a document without `extends` and `sweep`.
fn checked(path: &Path, mut document: Document) -> Result<Loaded, Vec<SpecError>> {
    let experiment: Experiment = typed(&check::SPEC, &mut document, rules::broken)?;
    let Document { places, notes, .. } = document;
    Ok(Loaded { experiment, path: path.to_owned(), places, notes })
}

/// Converts a document that satisfies `form` and `rules` to a `T`. Moves the value and the errors out of the document.
pub(super) fn typed<T: DeserializeOwned>(
    form: &'static Form,
    document: &mut Document,
    rules: impl Fn(&Document, &[SpecError]) -> Vec<SpecError>,
) -> Result<T, Vec<SpecError>> {
    let mut errors = std::mem::take(&mut document.errors);
    let violations = form.violations(document);
    // A value that JSON cannot represent (NaN) was read as null and reported. Its type is not a second error.
    let fresh: Vec<SpecError> = violations
        .into_iter()
        .filter(|new| !errors.iter().any(|old| !old.key.is_empty() && old.key == new.key))
        .collect();
    errors.extend(fresh);
    let broken = rules(document, &errors);
    errors.extend(broken);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut value = std::mem::take(&mut document.value);
    whole_numbers(&mut value);
    serde_json::from_value(value).map_err(|error| {
        let place = Some(document.places.value.clone());
        let problem = Problem::Other { reason: error.to_string(), found: None };
        vec![SpecError { place, key: String::new(), problem }]
    })
}

/// Converts whole floats to integers: JSON Schema accepts 3.0 as an integer, but serde does not.
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
