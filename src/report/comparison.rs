//! What differs between runs: the leaves of their specs, and their scores. Unaware of how it is shown.

use serde_json::Value;

use super::Run;

/// Leaves that say what a run is called, not what it did.
pub(super) const NAMES: [&str; 2] = ["name", "description"];

/// Runs side by side; every row has one value per run, in the order of the runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Names of the runs.
    pub runs: Vec<String>,
    /// Leaves of the specs that are not the same in all runs.
    pub spec: Vec<SpecRow>,
    /// Scores and other figures.
    pub scores: Vec<ScoreRow>,
}

/// A leaf of the specs.
#[derive(Clone, Debug, PartialEq)]
pub struct SpecRow {
    /// Dotted key.
    pub key: String,
    /// None where a spec does not have it.
    pub values: Vec<Option<Value>>,
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRow {
    pub metric: String,
    /// None where a run does not have it.
    pub values: Vec<Option<f64>>,
    /// Whether it is the best; of metrics that know no better, and of a single value, none is.
    pub best: Vec<bool>,
}

impl Comparison {
    /// Compares runs; one that is given twice counts once.
    pub fn new(runs: &[Run]) -> Self {
        let mut distinct: Vec<&Run> = Vec::new();
        for run in runs {
            if distinct.iter().all(|other| other.record.run != run.record.run) {
                distinct.push(run);
            }
        }
        Comparison {
            runs: distinct.iter().map(|run| run.record.run.clone()).collect(),
            spec: spec_rows(&distinct),
            scores: score_rows(&distinct),
        }
    }
}

fn spec_rows(runs: &[&Run]) -> Vec<SpecRow> {
    let leaves: Vec<Vec<(String, Value)>> = runs
        .iter()
        .map(|run| {
            let mut leaves = Vec::new();
            flatten("", &run.spec, &mut leaves);
            leaves
        })
        .collect();
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in leaves.iter().flatten() {
        if !keys.contains(&key) && !NAMES.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let value =
        |leaves: &[(String, Value)], key: &str| leaves.iter().find(|leaf| leaf.0 == key).map(|leaf| leaf.1.clone());
    keys.into_iter()
        .map(|key| SpecRow { key: key.clone(), values: leaves.iter().map(|leaves| value(leaves, key)).collect() })
        .filter(|row| row.values.iter().any(|value| *value != row.values[0]))
        .collect()
}

/// The leaves below `value`. A list without maps in it is one leaf.
pub(super) fn flatten(key: &str, value: &Value, leaves: &mut Vec<(String, Value)>) {
    let dotted = |part: &str| if key.is_empty() { part.to_owned() } else { format!("{key}.{part}") };
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(part, value)| flatten(&dotted(part), value, leaves));
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().enumerate().for_each(|(i, value)| flatten(&dotted(&i.to_string()), value, leaves));
        }
        leaf => leaves.push((key.to_owned(), leaf.clone())),
    }
}

fn score_rows(runs: &[&Run]) -> Vec<ScoreRow> {
    let mut metrics: Vec<&String> = runs.iter().flat_map(|run| run.record.metrics.keys()).collect();
    metrics.sort_unstable();
    metrics.dedup();
    let row = |metric: &String| {
        let values: Vec<Option<f64>> =
            runs.iter().map(|run| run.record.metrics.get(metric).copied().flatten()).collect();
        let known = values.iter().flatten();
        let best = match known.clone().count() >= 2 && more_is_better(metric) {
            true => known.copied().reduce(f64::max),
            false => None,
        };
        let best = values.iter().map(|value| best.is_some() && *value == best).collect();
        ScoreRow { metric: metric.clone(), values, best }
    };
    metrics.into_iter().map(row).collect()
}

/// Accuracies, but not those of controls, and speed. Losses of different methods do not compare.
fn more_is_better(metric: &str) -> bool {
    let name = metric.rsplit('/').next().unwrap_or(metric);
    let control = name.ends_with("_random_init") || name.ends_with("_shuffled_labels");
    (name.starts_with("top") && !control) || name == "images_per_second"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::{pair, run};

    #[test]
    fn only_leaves_that_differ_are_shown() {
        let comparison = Comparison::new(&pair());
        assert_eq!(comparison.runs, ["paper-0a0a0a0a", "release-1b1b1b1b"]);
        let rows: Vec<(&str, String)> =
            comparison.spec.iter().map(|row| (row.key.as_str(), serde_json::to_string(&row.values).unwrap())).collect();
        assert_eq!(
            rows,
            [
                ("method.tau", "[0.1,0.2]".to_owned()),
                ("knn.k", "[[20,10],[200]]".to_owned()),
                ("method.attention", "[null,\"cosine\"]".to_owned()),
            ]
        );
    }

    #[test]
    fn the_best_is_marked_where_more_is_better() {
        let comparison = Comparison::new(&pair());
        let best = |metric: &str| comparison.scores.iter().find(|row| row.metric == metric).unwrap().best.clone();
        assert_eq!(best("knn/top1"), [true, false]);
        assert_eq!(best("linear/top1"), [true, true]);
        assert_eq!(best("knn/top1_random_init"), [false, false]);
        assert_eq!(best("train/images_per_second"), [true, false]);
    }

    #[test]
    fn a_run_given_twice_counts_once_and_a_single_one_has_no_best() {
        let [a, _] = pair();
        let comparison = Comparison::new(&[a.clone(), a]);
        assert_eq!(comparison.runs.len(), 1);
        assert!(comparison.spec.is_empty());
        assert!(comparison.scores.iter().all(|row| row.best == [false]));
    }

    #[test]
    fn runs_need_not_have_the_same_metrics() {
        let comparison = Comparison::new(&[run("a", "seed: 1", &[("knn/top1", 0.5)]), run("b", "seed: 2", &[])]);
        assert_eq!(comparison.scores[0].values, [Some(0.5), None]);
        assert_eq!(comparison.scores[0].best, [false, false]);
    }
}
