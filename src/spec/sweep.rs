//! `sweep:` and `--sweep`: keys that take several values, and the resulting points. This module does not know which keys exist.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    describe::show,
    error::SpecError,
    locate::{Node, Place},
    overrides,
    problem::Problem,
    read::{self, Document},
};
use crate::stage::is_inside;

/// The key of a sweep in a spec.
pub const KEY: &str = "sweep";

/// The most points of a sweep. More points are probably a mistake.
const MOST_POINTS: usize = 10_000;

const LIST: &str = "a list of 1 or more values";
const SECTION: &str = "a section of lines `dotted.key: [value, value]`";
const FORM: &str = "write `--sweep key=value,value`, e.g. `--sweep method.tau=0.1,0.2`";

/// A swept key and its values, each with its places.
#[derive(Clone)]
pub struct Axis {
    pub key: String,
    names: Vec<String>,
    place: Place,
    values: Vec<(Value, Node)>,
}

/// Removes the key `sweep` from a document, and returns its axes. None if the document has no sweep.
pub fn take(document: &mut Document, errors: &mut Vec<SpecError>) -> Option<Vec<Axis>> {
    let given = document.value.as_object_mut()?.shift_remove(KEY)?;
    let places = document.places.take_child(KEY)?;
    let mut wrong = |place: &Place, key: String, problem| {
        errors.push(SpecError { place: Some(place.clone()), key, problem });
    };
    let section = match given {
        // `sweep: null` removes the sweep of a base.
        Value::Null => return None,
        Value::Object(section) => section,
        other => {
            let problem = Problem::WrongType { found: show(&other), allowed: SECTION.to_owned(), hint: None };
            wrong(&places.value, KEY.to_owned(), problem);
            return Some(vec![]);
        }
    };
    let mut axes = vec![];
    for (key, values) in section {
        let node = places.child(&key).unwrap_or(&places).clone();
        let dotted = format!("{KEY}.{key}");
        let problem = match values {
            Value::Null => continue,
            Value::Array(items) if !items.is_empty() => {
                let at = |i: usize| node.child(&i.to_string()).unwrap_or(&node).clone();
                let values = items.into_iter().enumerate().map(|(i, value)| (value, at(i))).collect();
                match Axis::new(key, node.key.clone(), values) {
                    Ok(axis) => {
                        axes.push(axis);
                        continue;
                    }
                    Err(problem) => problem,
                }
            }
            Value::Array(_) => Problem::WrongLength { found: "[]".to_owned(), allowed: LIST.to_owned() },
            other => {
                let hint = (!other.is_object()).then(|| format!("write a list: `{key}: [{}]`", show(&other)));
                Problem::WrongType { found: show(&other), allowed: LIST.to_owned(), hint }
            }
        };
        wrong(&node.value, dotted, problem);
    }
    Some(axes)
}

impl Axis {
    fn new(key: String, place: Place, values: Vec<(Value, Node)>) -> Result<Axis, Problem> {
        let names =
            overrides::names(&key).map_err(|(reason, hint)| Problem::Override { reason, hint: hint.to_owned() })?;
        let mut earlier = HashSet::new();
        if !values.iter().all(|(value, _)| earlier.insert(value)) {
            let found = show(&values.iter().map(|(value, _)| value.clone()).collect());
            return Err(Problem::Repeated { found });
        }
        // All values have the same place of the key, so that a mistake in the key is reported once.
        let keyed = |(value, mut node): (Value, Node)| {
            node.key = place.clone();
            (value, node)
        };
        let values = values.into_iter().map(keyed).collect();
        Ok(Axis { key, names, place, values })
    }

    /// Parses the axis of a `--sweep` (`dotted.key=value,value`, each any YAML; or one YAML list of values).
    pub fn of_text(text: &str) -> Result<Axis, Vec<SpecError>> {
        let place = Place::Sweep(text.into());
        let fail = |key: &str, problem| vec![SpecError { place: Some(place.clone()), key: key.to_owned(), problem }];
        let refuse =
            |key: &str, reason: String, hint: &str| fail(key, Problem::Override { reason, hint: hint.to_owned() });
        let Some((key, written)) = text.split_once('=') else {
            return Err(refuse("", "there is no `=`".to_owned(), FORM));
        };
        let key = key.trim();
        let items = match (read::fragment(written), read::fragment(&format!("[{written}]"))) {
            (Ok(Value::Array(items)), _) | (_, Ok(Value::Array(items))) => items,
            (_, Err(reason)) | (Err(reason), _) => {
                let reason = format!("not YAML values with commas between: {reason}");
                return Err(refuse(key, reason, "quote texts with commas, brackets or colons in them"));
            }
            _ => vec![],
        };
        if items.is_empty() {
            return Err(refuse(key, "there are no values".to_owned(), FORM));
        }
        let value = |value: Value| {
            let node = Node::all_at(&value, &Place::Sweep(format!("{key}={}", plain(&value)).into()));
            (value, node)
        };
        Axis::new(key.to_owned(), place.clone(), items.into_iter().map(value).collect())
            .map_err(|problem| fail(key, problem))
    }

    fn wrong(&self, problem: Problem) -> SpecError {
        SpecError { place: Some(self.place.clone()), key: self.key.clone(), problem }
    }
}

/// Combines the axes of a spec (`own`) with those of `--sweep` (`given`) and the keys of `--set` and `--method` (`fixed`). A
/// `--sweep` replaces the spec's axis of the same key, and a `--set` reduces the axis to one value. No axis may be inside
/// another.
pub fn combine(
    own: Vec<Axis>,
    given: Vec<Axis>,
    fixed: &[(&str, Place)],
    document: &Document,
    errors: &mut Vec<SpecError>,
) -> Vec<Axis> {
    let is_fixed = |axis: &Axis| fixed.iter().any(|(key, _)| *key == axis.key);
    let mut axes = own;
    for axis in axes.iter_mut().filter(|axis| is_fixed(axis)) {
        if let (Some(value), Some(node)) =
            (super::walk::lookup(&document.value, &axis.names), document.places.get(&axis.names))
        {
            axis.values = vec![(value.clone(), node.clone())];
        }
    }
    let mut from_text: Vec<String> = vec![];
    for axis in given {
        if is_fixed(&axis) || from_text.contains(&axis.key) {
            let reason = "given twice on the command line".to_owned();
            errors
                .push(axis.wrong(Problem::Override { reason, hint: "keep one `--sweep` or `--set` of it".to_owned() }));
        }
        from_text.push(axis.key.clone());
        match axes.iter_mut().find(|own| own.key == axis.key) {
            Some(own) => *own = axis,
            None => axes.push(axis),
        }
    }
    for (key, place) in fixed {
        // Each value of the axis would overwrite the fixed value inside it.
        if let Some(outer) = axes.iter().find(|outer| outer.key != *key && is_inside(key, &outer.key)) {
            let reason = format!("`{key}` is inside `{}`, which is swept", outer.key);
            let hint =
                format!("give the values of `{}` on the command line: `--sweep {0}=…`, or `--set {0}=…`", outer.key);
            let problem = Problem::Override { reason, hint };
            errors.push(SpecError { place: Some(place.clone()), key: (*key).to_owned(), problem });
        }
    }
    let is_within = |axis: &Axis, outer: &Axis| outer.key != axis.key && is_inside(&axis.key, &outer.key);
    for axis in &axes {
        if let Some(outer) = axes.iter().find(|outer| is_within(axis, outer)) {
            errors.push(axis.wrong(Problem::Sweep {
                reason: format!("`{}` is inside `{}`, which is swept too", axis.key, outer.key),
                found: format!("{}, {}", outer.key, axis.key),
                hint: format!("give the values of `{}` whole, or sweep single keys of it", outer.key),
            }));
        }
    }
    let outermost: Vec<String> = axes
        .iter()
        .filter(|axis| !axes.iter().any(|outer| is_within(axis, outer)))
        .map(|axis| axis.key.clone())
        .collect();
    axes.retain(|axis| outermost.contains(&axis.key));
    let count = axes.iter().fold(1usize, |count, axis| count.saturating_mul(axis.values.len()));
    if count > MOST_POINTS {
        errors.push(
            axes[axes.len() - 1].wrong(Problem::Sweep {
                reason: format!("the sweep has {count} points; a sweep has at most {MOST_POINTS}"),
                found: axes
                    .iter()
                    .map(|axis| format!("{}: {} values", axis.key, axis.values.len()))
                    .collect::<Vec<_>>()
                    .join(", "),
                hint: "sweep fewer keys or values at a time".to_owned(),
            }),
        );
        return vec![];
    }
    axes
}

/// The values by swept key, and the document with these values.
pub type Combination = (Vec<(String, Value)>, Document);

/// Number of combinations of the axes' values; 1 without axes.
pub fn count(axes: &[Axis]) -> usize {
    axes.iter().map(|axis| axis.values.len()).product()
}

/// The combination of the axes' values with this number, from 0; the last axis varies fastest. Without axes, it is the document
/// itself.
pub fn point(axes: &[Axis], document: &Document, number: usize) -> Result<Combination, Vec<SpecError>> {
    let mut point = document.clone();
    let mut values = vec![];
    let mut turns = count(axes);
    for axis in axes {
        turns /= axis.values.len();
        let (value, node) = &axis.values[number / turns % axis.values.len()];
        overrides::put(&mut point, &axis.names, value.clone(), node.clone())
            .map_err(|(reason, hint)| vec![axis.wrong(Problem::Override { reason, hint: hint.to_owned() })])?;
        values.push((axis.key.clone(), value.clone()));
    }
    Ok((values, point))
}

/// A value as text, as on a command line: without quotes.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn document(text: &str) -> Document {
        read::document(text, &Path::new("a").into()).unwrap()
    }

    fn values(axis: &Axis) -> Vec<Value> {
        axis.values.iter().map(|(value, _)| value.clone()).collect()
    }

    fn told(errors: &[SpecError]) -> Vec<String> {
        let place = |error: &SpecError| error.place.as_ref().unwrap().to_string();
        errors.iter().map(|error| format!("{}: {}: {}", place(error), error.key, error.problem)).collect()
    }

    #[test]
    fn values_on_the_command_line_are_yaml_with_commas_between() {
        let of = |text| values(&Axis::of_text(text).ok().unwrap());
        assert_eq!(of("seed=1,2,3"), [json!(1), json!(2), json!(3)]);
        assert_eq!(of("method.tau=0.1"), [json!(0.1)]);
        assert_eq!(of("knn.k=[[20],[200]]"), [json!([20]), json!([200])]);
        assert_eq!(of("knn.k=[20],[200, 10]"), [json!([20]), json!([200, 10])]);
        assert_eq!(of("schedule={warmup_epochs: 1},{}"), [json!({"warmup_epochs": 1}), json!({})]);
        assert_eq!(of("data.train=a/b.parquet,c"), [json!("a/b.parquet"), json!("c")]);
        let fail = |text| told(&Axis::of_text(text).err().unwrap()).remove(0);
        assert_eq!(fail("seed"), "--sweep seed: : there is no `=`");
        assert_eq!(fail("seed="), "--sweep seed=: seed: there are no values");
        assert_eq!(fail("a..b=1"), "--sweep a..b=1: a..b: `a..b` is not a key");
        assert_eq!(fail("seed=1,1"), "--sweep seed=1,1: seed: an item is listed twice");
        assert!(fail("seed=[1").starts_with("--sweep seed=[1: seed: not YAML values with commas between: "));
    }

    #[test]
    fn the_last_axis_turns_fastest_and_places_are_those_of_the_items() {
        let mut document = document("sweep:\n  method.tau: [0.1, 0.2]\n  seed: [1, 2]\nseed: 9\n");
        let mut errors = vec![];
        let axes = take(&mut document, &mut errors).unwrap();
        assert_eq!(document.value, json!({"seed": 9}));
        let points: Vec<_> = (0..count(&axes)).map(|number| point(&axes, &document, number).ok().unwrap()).collect();
        let all: Vec<Value> = points.iter().map(|(_, point)| point.value.clone()).collect();
        let expected = [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)];
        assert_eq!(all, expected.map(|(tau, seed)| json!({"seed": seed, "method": {"tau": tau}})));
        let node = points[2].1.places.get(&["method", "tau"].map(str::to_owned)).unwrap();
        assert_eq!((node.key.to_string(), node.value.to_string()), ("a:2:3".into(), "a:2:21".into()));
    }

    #[test]
    fn the_command_line_replaces_and_fixes_axes() {
        let mut own = document("sweep: {seed: [1, 2], method.tau: [0.1, 0.2]}\nseed: 7\n");
        let mut errors = vec![];
        let axes = take(&mut own, &mut errors).unwrap();
        let given = vec![Axis::of_text("method.tau=0.3").ok().unwrap()];
        let axes = combine(axes, given, &[("seed", Place::Set("seed=7".into()))], &own, &mut errors);
        assert!(errors.is_empty());
        assert_eq!(axes.iter().map(values).collect::<Vec<_>>(), [[json!(7)], [json!(0.3)]]);
        let given = ["seed=1", "method={}", "method.k=1"].map(|text| Axis::of_text(text).ok().unwrap());
        combine(vec![], given.to_vec(), &[("seed", Place::Set("seed=7".into()))], &own, &mut errors);
        assert_eq!(
            told(&errors),
            [
                "--sweep seed=1: seed: given twice on the command line",
                "--sweep method.k=1: method.k: `method.k` is inside `method`, which is swept too",
            ]
        );
    }

    #[test]
    fn sweeps_that_are_none() {
        let of = |text: &str| {
            let mut errors = vec![];
            let axes = take(&mut document(text), &mut errors);
            (axes.map(|axes| axes.len()), told(&errors))
        };
        assert_eq!(of("seed: 1\n"), (None, vec![]));
        assert_eq!(of("sweep:\n"), (None, vec![]));
        assert_eq!(of("sweep: {seed: null}\n"), (Some(0), vec![]));
        assert_eq!(of("sweep: 3\n"), (Some(0), vec!["a:1:8: sweep: wrong type".to_owned()]));
        assert_eq!(of("sweep: {seed: 3}\n"), (Some(0), vec!["a:1:15: sweep.seed: wrong type".to_owned()]));
        assert_eq!(of("sweep: {seed: []}\n"), (Some(0), vec!["a:1:15: sweep.seed: wrong number of items".to_owned()]));
        assert_eq!(of("sweep: {seed: [1, 1]}\n").1, ["a:1:15: sweep.seed: an item is listed twice"]);
        assert_eq!(of("sweep: {sweep.a: [1]}\n").1, ["a:1:18: sweep.sweep.a: `sweep.a` says which keys vary"]);
    }
}
