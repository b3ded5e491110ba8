//! Compares runs: the leaves in which their specs differ, and their scores. Other files draw the result.

use std::collections::{BTreeSet, HashMap, HashSet};

use rayon::prelude::*;
use serde_json::Value;

use super::{
    Run,
    group::{self, Group, NAMES, mean_and_deviation},
    paired::{self, Correctness, PREDICTED, Paired},
    predictions, provenance,
};
use crate::artifact::Store;

/// Runs, or groups of runs, side by side. Every row has one value per column, in the order of the columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Headings of the columns: names of runs, or labels of groups.
    pub runs: Vec<String>,
    /// The runs of each column, and their seeds.
    pub members: Vec<(Vec<String>, Value)>,
    /// Leaves of the specs that differ between runs.
    pub spec: Vec<SpecRow>,
    /// Scores and other metrics.
    pub scores: Vec<ScoreRow>,
    /// Differences between each column and a baseline column, on the same test samples.
    pub differences: Vec<DifferenceRow>,
    /// Gains of each column over the weights of `encoder.init`, on the same test samples; None if training started from random
    /// weights.
    pub gains: Vec<(String, Vec<Option<Paired>>)>,
    /// Obstacles to a comparison: other test images, other devices or precisions.
    pub notes: Vec<String>,
}

/// Differences of a score.
#[derive(Clone, Debug, PartialEq)]
pub struct DifferenceRow {
    pub metric: String,
    /// Index of the baseline column.
    pub baseline: usize,
    /// None for the baseline, and where the samples differ or are unknown.
    pub values: Vec<Option<Paired>>,
}

/// A leaf of the specs.
#[derive(Clone, Debug, PartialEq)]
pub struct SpecRow {
    /// Dotted key.
    pub key: String,
    /// None if a spec lacks it.
    pub values: Vec<Option<Value>>,
}

/// A metric.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRow {
    pub metric: String,
    /// None if a run lacks it. For a group, the mean.
    pub values: Vec<Option<f64>>,
    /// Sample standard deviation, for a group.
    pub deviations: Vec<Option<f64>>,
    /// The value of each run of each column.
    pub members: Vec<Vec<Option<f64>>>,
    /// Whether each value is the best of the row. Always false if only one value is known, or the metric has no better direction.
    pub best: Vec<bool>,
}

impl Comparison {
    /// Compares runs. A run that is given twice counts once.
    pub fn new(runs: &[Run]) -> Self {
        Self::of(&group::single(runs))
    }

    /// Compares groups of runs.
    pub fn of(groups: &[Group]) -> Self {
        let names = |group: &Group| group.runs.iter().map(|run| run.record.run.clone()).collect();
        Comparison {
            runs: groups.iter().map(Group::label).collect(),
            members: groups.iter().map(|group| (names(group), group.seeds())).collect(),
            spec: spec_rows(groups),
            scores: score_rows(groups),
            differences: vec![],
            gains: vec![],
            notes: vec![],
        }
    }

    /// Checks the artifacts of the compared `groups`. If their test images differ, no score is marked as best. Notes stages
    /// that ran on different devices or in different precisions.
    pub fn look_at_artifacts(&mut self, store: &Store, groups: &[Group]) {
        let splits: Vec<Vec<String>> = groups.iter().map(|group| test_splits(store, group)).collect();
        let first = splits.iter().flatten().next().cloned();
        let others: Vec<&str> = self
            .runs
            .iter()
            .zip(&splits)
            .filter(|(_, splits)| splits.iter().any(|split| Some(split) != first.as_ref()))
            .map(|(label, _)| label.as_str())
            .collect();
        if !others.is_empty() {
            for row in self.scores.iter_mut().filter(|row| is_of_test_images(&row.metric)) {
                row.best.fill(false);
            }
            let known = splits.iter().position(|splits| !splits.is_empty()).unwrap_or(0);
            self.notes.push(format!(
                "no score is marked as best: the test images of {} are not all those of {}",
                others.join(", "),
                self.runs[known]
            ));
        }
        self.notes.extend(provenance::notes(store, &self.runs, groups));
    }

    /// Adds the differences between the compared `groups` and the group at index `baseline`, sample by sample.
    ///
    /// # Errors
    /// When an artifact cannot be read.
    pub fn add_differences(&mut self, store: &Store, groups: &[Group], baseline: usize) -> anyhow::Result<()> {
        for (metric, stage) in PREDICTED {
            let mut all = Vec::new();
            for group in groups {
                let read = group.runs.par_iter().map(|run| Correctness::read(store, run, stage));
                let read: Option<Vec<_>> = read.collect::<anyhow::Result<_>>()?;
                all.push(read.unwrap_or_default());
            }
            let value = |i: usize| (i != baseline).then(|| paired::compare(&all[baseline], &all[i]))?;
            let values: Vec<Option<Paired>> = (0..groups.len()).into_par_iter().map(value).collect();
            if values.iter().any(Option::is_some) {
                self.differences.push(DifferenceRow { metric: metric.to_owned(), baseline, values });
            }
        }
        Ok(())
    }

    /// Adds the gains of the compared `groups` over the weights that their trainings started from, sample by sample.
    ///
    /// # Errors
    /// When an artifact cannot be read.
    pub fn add_gains(&mut self, store: &Store, groups: &[Group]) -> anyhow::Result<()> {
        for (metric, _) in PREDICTED {
            let gains = groups.par_iter().map(|group| paired::gain(store, &group.runs, metric));
            let gains = gains.collect::<anyhow::Result<Vec<_>>>()?;
            if gains.iter().any(Option::is_some) {
                self.gains.push((metric.to_owned(), gains));
            }
        }
        Ok(())
    }

    /// Whether any column holds more than one run.
    pub fn is_grouped(&self) -> bool {
        self.members.iter().any(|(runs, _)| runs.len() > 1)
    }

    /// The notes below a table.
    pub fn footnotes(&self) -> String {
        let mut text: String = self.notes.iter().map(|note| format!("{note}\n")).collect();
        if self.is_grouped() {
            text += "± sample standard deviation over seeds\n";
        }
        let gains: Vec<&Paired> = self.gains.iter().flat_map(|(_, values)| values).flatten().collect();
        if !gains.is_empty() {
            text += &format!(
                "over initial: trained minus the weights that training started from, in points, {}\n",
                interval(&gains)
            );
        }
        let differences: Vec<&Paired> = self.differences.iter().flat_map(|row| &row.values).flatten().collect();
        if let Some(row) = self.differences.first() {
            text += &format!("difference to {} in points, {}", self.runs[row.baseline], interval(&differences));
            let has_p = differences.iter().any(|paired| paired.p.is_some());
            text += if has_p { "; p of McNemar's exact test\n" } else { "\n" };
        }
        text
    }
}

/// What the intervals of `differences` cover.
fn interval(differences: &[&Paired]) -> String {
    let samples: BTreeSet<usize> = differences.iter().map(|paired| paired.samples).collect();
    let samples = samples.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    let over = |over_seeds: bool| differences.iter().any(|paired| paired.over_seeds == over_seeds);
    let seeds = match (over(true), over(false)) {
        (true, false) => "seeds and ",
        (true, true) => "seeds, where both sides have several, and ",
        (false, _) => "",
    };
    format!("with its 95 % interval over {seeds}{samples} test samples")
}

fn spec_rows(groups: &[Group]) -> Vec<SpecRow> {
    let leaves: Vec<Vec<(String, Value)>> = groups
        .par_iter()
        .map(|group| {
            let mut leaves = Vec::new();
            flatten("", &group.spec(), &mut leaves);
            leaves
        })
        .collect();
    let mut seen = HashSet::new();
    let keys = leaves.iter().flatten().map(|(key, _)| key);
    let keys: Vec<&String> = keys.filter(|key| !NAMES.contains(&key.as_str()) && seen.insert(*key)).collect();
    let by_key: Vec<HashMap<&String, &Value>> =
        leaves.iter().map(|leaves| leaves.iter().map(|(key, value)| (key, value)).collect()).collect();
    keys.into_iter()
        .map(|key| (key, by_key.iter().map(|leaves| leaves.get(key).copied()).collect::<Vec<_>>()))
        .filter(|(_, values)| values.iter().any(|value| *value != values[0]))
        .map(|(key, values)| SpecRow {
            key: key.clone(),
            values: values.into_iter().map(Option::<&Value>::cloned).collect(),
        })
        .collect()
}

/// All leaves of `value`. A list without maps is one leaf.
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

fn score_rows(groups: &[Group]) -> Vec<ScoreRow> {
    let runs = groups.iter().flat_map(|group| &group.runs);
    let mut metrics: Vec<&String> = runs.flat_map(|run| run.record.metrics.keys()).collect();
    metrics.sort_unstable();
    metrics.dedup();
    let row = |metric: &String| {
        let of_run = |run: &&Run| run.record.metrics.get(metric).copied().flatten();
        let members: Vec<Vec<Option<f64>>> =
            groups.iter().map(|group| group.runs.iter().map(of_run).collect()).collect();
        let (values, deviations): (Vec<_>, Vec<_>) = members.iter().map(|members| mean_and_deviation(members)).unzip();
        let known = values.iter().flatten();
        let best = match known.clone().count() >= 2 && more_is_better(metric) {
            true => known.copied().reduce(f64::max),
            false => None,
        };
        let best = values.iter().map(|value| best.is_some() && *value == best).collect();
        ScoreRow { metric: metric.clone(), values, deviations, members, best }
    };
    metrics.into_iter().map(row).collect()
}

/// Whether higher values of a metric are better. This holds for accuracies, except those of controls, and for speed. It does not
/// hold for losses, since losses of different methods cannot be compared.
fn more_is_better(metric: &str) -> bool {
    let name = metric.rsplit('/').next().unwrap_or(metric);
    let control = ["_random_init", "_initial", "_shuffled_labels"].iter().any(|end| name.ends_with(end));
    (is_of_test_images(metric) && !control) || name == "images_per_second"
}

/// Whether a metric is an accuracy on the test images. Accuracies of controls count too.
fn is_of_test_images(metric: &str) -> bool {
    metric.rsplit('/').next().is_some_and(|name| name.starts_with("top"))
}

/// Content hashes of the test splits on which a group was scored, without repetitions. Runs without scores or data add none.
fn test_splits(store: &Store, group: &Group) -> Vec<String> {
    let has_scores = |run: &&&Run| run.record.metrics.keys().any(|metric| is_of_test_images(metric));
    let splits = group.runs.iter().filter(has_scores).filter_map(|run| predictions::test_split(store, run));
    splits.collect::<BTreeSet<_>>().into_iter().collect()
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
