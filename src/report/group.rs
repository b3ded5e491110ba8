//! Groups runs that differ only by seed, with mean and deviation.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::Run;

/// Leaves that name a run without changing its results.
pub const NAMES: [&str; 2] = ["name", "description"];

/// The leaf with the seed of a run.
pub const SEED: &str = "seed";

/// One run, or several that differ only by seed.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    pub runs: Vec<&'a Run>,
}

/// Each run as a group of its own. A run that is given twice counts once.
pub fn single(runs: &[Run]) -> Vec<Group<'_>> {
    let mut seen = HashSet::new();
    runs.iter().filter(|run| seen.insert(&run.record.run)).map(|run| Group { runs: vec![run] }).collect()
}

/// Runs grouped by everything in their specs but name, description and seed, in the order of their first runs. A group never has
/// two runs with the same seed.
pub fn by_seed(runs: &[Run]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut alike: HashMap<String, Vec<usize>> = HashMap::new();
    for run in single(runs).into_iter().map(|group| group.runs[0]) {
        let seed = run.spec.get(SEED);
        let of_spec = alike.entry(without_seed(&run.spec)).or_default();
        let has_no_such = |at: &&usize| groups[**at].runs.iter().all(|other| other.spec.get(SEED) != seed);
        match of_spec.iter().find(has_no_such) {
            Some(&at) => groups[at].runs.push(run),
            None => {
                of_spec.push(groups.len());
                groups.push(Group { runs: vec![run] });
            }
        }
    }
    groups
}

/// A spec without name, description and seed, as text that is fast to compare with many others.
fn without_seed(spec: &Value) -> String {
    let mut spec = spec.clone();
    if let Some(map) = spec.as_object_mut() {
        map.retain(|key, _| key != SEED && !NAMES.contains(&key.as_str()));
    }
    spec.sort_all_objects();
    spec.to_string()
}

impl Group<'_> {
    /// The name of the run. For several runs: the name of the first one, and the number of runs.
    pub fn label(&self) -> String {
        let first = &self.runs[0].record.run;
        match self.runs.len() {
            1 => first.clone(),
            n => format!("{first} (n={n})"),
        }
    }

    /// The spec that the runs have in common, with all their seeds.
    pub fn spec(&self) -> Value {
        let mut spec = self.runs[0].spec.clone();
        if self.runs.len() > 1
            && let Some(map) = spec.as_object_mut()
        {
            map.insert(SEED.to_owned(), self.seeds());
        }
        spec
    }

    /// The seed of each run.
    pub fn seeds(&self) -> Value {
        self.runs.iter().map(|run| run.spec.get(SEED).cloned().unwrap_or_default()).collect()
    }
}

/// Mean and sample standard deviation of the known values. The deviation needs two values.
pub fn mean_and_deviation(values: &[Option<f64>]) -> (Option<f64>, Option<f64>) {
    let known: Vec<f64> = values.iter().copied().flatten().collect();
    let n = known.len() as f64;
    if known.is_empty() {
        return (None, None);
    }
    let mean = known.iter().sum::<f64>() / n;
    let squares: f64 = known.iter().map(|value| value - mean).map(|off| off * off).sum();
    (Some(mean), (known.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::run;

    #[test]
    fn runs_that_differ_in_their_seed_alone_are_one_group() {
        let runs = [
            run("a", "name: x\nseed: 1\nepochs: 5\n", &[]),
            run("b", "name: x\nseed: 1\nepochs: 6\n", &[]),
            run("c", "name: y\nseed: 2\nepochs: 5\n", &[]),
            run("d", "name: z\nseed: 1\nepochs: 5\n", &[]),
            run("a", "name: x\nseed: 1\nepochs: 5\n", &[]),
        ];
        let labels: Vec<String> = by_seed(&runs).iter().map(Group::label).collect();
        assert_eq!(labels, ["a (n=2)", "b", "d"]);
        assert_eq!(by_seed(&runs)[0].spec()["seed"], serde_json::json!([1, 2]));
        assert_eq!(single(&runs).len(), 4);
    }

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        assert_eq!(mean_and_deviation(&[Some(1.0), None, Some(3.0)]), (Some(2.0), Some(2f64.sqrt())));
        assert_eq!(mean_and_deviation(&[Some(1.0), None]), (Some(1.0), None));
        assert_eq!(mean_and_deviation(&[None]), (None, None));
    }
}
