//! Compares two runs: leaves of their specs, environments, metrics, and predictions on the same images.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Run, artifacts,
    comparison::flatten,
    flips::Flips,
    group::NAMES,
    predictions::{self, Classifier},
};
use crate::artifact::{Manifest, StageRecord, Store};

/// Two runs side by side.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    pub a: String,
    pub b: String,
    pub spec: Vec<Difference>,
    pub environment: Vec<Environs>,
    pub metrics: Vec<Metric>,
    pub predictions: Vec<Paired>,
}

/// A leaf in which the specs differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub key: String,
    /// None if a spec lacks it.
    pub a: Option<Value>,
    pub b: Option<Value>,
}

/// A field of the environment that differs, and the stages in which it differs; None if it was not recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Environs {
    pub field: &'static str,
    pub a: Option<String>,
    pub b: Option<String>,
    pub stages: Vec<String>,
}

/// A metric of either run.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    pub name: String,
    pub a: Option<f64>,
    pub b: Option<f64>,
}

impl Metric {
    /// b - a, if both are known.
    pub fn difference(&self) -> Option<f64> {
        Some(self.b? - self.a?)
    }
}

/// Predictions of one evaluation in both runs.
#[derive(Clone, Debug)]
pub struct Paired {
    /// `kNN, k = 20` or `linear probe`.
    pub what: String,
    /// The stage that made the predictions.
    pub stage: &'static str,
    /// The pairs, or why the predictions cannot be paired.
    pub flips: Result<Flips, String>,
}

impl Diff {
    /// Compares two runs whose artifacts are in `store`. A spec without a run counts as a run without stages.
    pub fn new(store: &Store, a: &Run, b: &Run) -> Diff {
        Diff {
            a: a.record.run.clone(),
            b: b.record.run.clone(),
            spec: leaves(&a.spec, &b.spec),
            environment: environment(store, a, b),
            metrics: metrics(a, b),
            predictions: paired(store, a, b),
        }
    }
}

fn leaves(a: &Value, b: &Value) -> Vec<Difference> {
    let of = |value: &Value| {
        let mut leaves = Vec::new();
        flatten("", value, &mut leaves);
        leaves.retain(|(key, _)| !NAMES.contains(&key.as_str()));
        leaves
    };
    let (a, b) = (of(a), of(b));
    let value = |leaves: &[(String, Value)], key: &str| leaves.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let added = b.iter().filter(|(key, _)| value(&a, key).is_none());
    let rows =
        a.iter().chain(added).map(|(key, _)| Difference { key: key.clone(), a: value(&a, key), b: value(&b, key) });
    rows.filter(|leaf| leaf.a != leaf.b).collect()
}

/// Whether two specs differ in names only.
pub fn same_but_for_names(a: &Value, b: &Value) -> bool {
    leaves(a, b).is_empty()
}

fn stage<'a>(run: &'a Run, name: &str) -> Option<&'a StageRecord> {
    run.record.stages.iter().find(|stage| stage.stage == name)
}

fn environment(store: &Store, a: &Run, b: &Run) -> Vec<Environs> {
    type Row = (usize, &'static str, Option<String>, Option<String>);
    let mut rows: BTreeMap<Row, Vec<String>> = BTreeMap::new();
    for of_a in &a.record.stages {
        let Some(of_b) = stage(b, &of_a.stage).filter(|of_b| of_b.key != of_a.key) else { continue };
        let fields = |record: &StageRecord| {
            let manifest: Option<Manifest> = store.manifest(&record.stage, &record.key);
            manifest.and_then(|manifest| manifest.environment).map(|environment| environment.fields())
        };
        let (in_a, in_b) = (fields(of_a), fields(of_b));
        let names = in_a.as_ref().or(in_b.as_ref()).map(|fields| fields.each_ref().map(|(name, _)| *name));
        for (i, name) in names.into_iter().flatten().enumerate() {
            let value = |fields: &Option<[(&str, String); 5]>| fields.as_ref().map(|fields| fields[i].1.clone());
            let (a, b) = (value(&in_a), value(&in_b));
            if a != b {
                rows.entry((i, name, a, b)).or_default().push(of_a.stage.clone());
            }
        }
    }
    rows.into_iter().map(|((_, field, a, b), stages)| Environs { field, a, b, stages }).collect()
}

fn metrics(a: &Run, b: &Run) -> Vec<Metric> {
    let (a, b) = (&a.record.metrics, &b.record.metrics);
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let value = |metrics: &BTreeMap<String, Option<f64>>, name: &str| metrics.get(name).copied().flatten();
    names.into_iter().map(|name| Metric { name: name.clone(), a: value(a, name), b: value(b, name) }).collect()
}

fn paired(store: &Store, a: &Run, b: &Run) -> Vec<Paired> {
    let pair = |name: &'static str, label: &str| -> Option<Paired> {
        stage(a, name).and(stage(b, name))?;
        let read = |run| artifacts::stage(store, run, name).and_then(|artifact| predictions::read(&artifact));
        let both = read(a).and_then(|first| Ok((first, read(b)?))).map_err(|error| format!("{error:#}"));
        let both = both.and_then(|both| same_test_images(store, a, b).map(|()| both));
        let (k, flips) = match both.and_then(|(a, b)| common(a, b)) {
            Err(why) => (None, Err(why)),
            Ok((a, b)) => (a.k, Flips::between(&a.predictions, &b.predictions).map_err(|error| format!("{error:#}"))),
        };
        let what = k.map_or(label.to_owned(), |k| format!("{label}, k = {k}"));
        Some(Paired { what, stage: name, flips })
    };
    [pair("linear_probe", "linear probe"), pair("knn", "kNN")].into_iter().flatten().collect()
}

/// The first classifier that both runs have, from each run: the linear probe, or kNN with the same number of neighbours.
fn common(a: Vec<Classifier>, mut b: Vec<Classifier>) -> Result<(Classifier, Classifier), String> {
    if a.is_empty() || b.is_empty() {
        return Err("the evaluation was skipped".to_owned());
    }
    let ks = |all: &[Classifier]| all.iter().filter_map(|classifier| classifier.k).collect::<Vec<_>>();
    let none = format!("they share no number of neighbours: {:?} and {:?}", ks(&a), ks(&b));
    let pair = a.into_iter().find_map(|of_a| {
        let at = b.iter().position(|of_b| of_b.k == of_a.k)?;
        Some((of_a, b.swap_remove(at)))
    });
    pair.ok_or(none)
}

/// Checks that both runs have the same test images, since otherwise sample numbers mean different images.
fn same_test_images(store: &Store, a: &Run, b: &Run) -> Result<(), String> {
    let (Some(of_a), Some(of_b)) = (stage(a, "data"), stage(b, "data")) else {
        return Err("a run has not recorded its data".to_owned());
    };
    let split = |run| predictions::test_split(store, run);
    match of_a.content == of_b.content || split(a).is_some_and(|of_a| Some(of_a) == split(b)) {
        true => Ok(()),
        false => Err("the runs have different test images".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::{pair, run};

    #[test]
    fn leaves_and_metrics_stand_side_by_side_and_a_run_does_not_differ_from_itself() {
        let store = Store::open(std::path::Path::new("nowhere"));
        let [a, b] = pair();
        let diff = Diff::new(&store, &a, &b);
        let keys: Vec<_> = diff.spec.iter().map(|leaf| leaf.key.as_str()).collect();
        assert_eq!(keys, ["method.tau", "knn.k", "method.attention"]);
        assert_eq!((&diff.spec[2].a, &diff.spec[2].b), (&None, &Some("cosine".into())));
        let knn = &diff.metrics[0];
        assert_eq!((knn.name.as_str(), knn.a, knn.b), ("knn/top1", Some(0.8764), Some(0.85)));
        assert!((knn.difference().unwrap() + 0.0264).abs() < 1e-12);
        assert!(Diff::new(&store, &a, &a).spec.is_empty());
        assert!(diff.predictions.is_empty() && diff.environment.is_empty(), "neither has stages");
        assert!(same_but_for_names(&run("x", "name: x\nseed: 1", &[]).spec, &run("y", "name: y\nseed: 1", &[]).spec));
    }
}
