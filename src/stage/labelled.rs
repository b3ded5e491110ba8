//! Prepares features for classifiers: labelled samples of both splits, with labels as class numbers.

use rand::seq::SliceRandom;

use super::features::{Features, SplitFeatures};
use crate::ops::random::{Purpose, stream};

/// Labelled features of one split.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    /// Sample number within the split.
    pub ids: Vec<i64>,
    /// Label of each sample.
    pub labels: Vec<i64>,
    /// Feature vectors, [samples, dim].
    pub rows: Vec<f32>,
}

/// A classification task on features.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Width of a feature vector.
    pub dim: usize,
    /// The labels of the training split, ascending; a class is an index into them.
    pub classes: Vec<i64>,
    pub train: Labelled,
    pub test: Labelled,
    /// Class of each training sample.
    pub targets: Vec<usize>,
    /// Number of samples that were omitted because they have no label.
    pub unlabelled: usize,
}

impl Task {
    /// The task on `features`, or why there is none.
    pub fn new(features: SplitFeatures) -> Result<Self, String> {
        let SplitFeatures { train, test } = features;
        for (name, split) in [("train", &train), ("test", &test)] {
            if split.is_empty() {
                return Err(format!("the data has no {name} split"));
            }
            if split.labels.iter().all(Option::is_none) {
                return Err(format!("the {name} split has no labels"));
            }
        }
        if train.dim != test.dim {
            return Err(format!("the splits' features have widths {} and {}", train.dim, test.dim));
        }
        let dim = train.dim;
        let unlabelled = [&train, &test].iter().flat_map(|s| &s.labels).filter(|label| label.is_none()).count();
        let (train, test) = (labelled(train), labelled(test));
        let mut classes = train.labels.clone();
        classes.sort_unstable();
        classes.dedup();
        if let [_] = classes[..] {
            return Err("the train split has a single class, which every image would be assigned to".to_owned());
        }
        let targets = train.labels.iter().map(|label| classes.partition_point(|class| class < label)).collect();
        Ok(Task { dim, classes, train, test, targets, unlabelled })
    }

    /// Share of the test samples for which `right(sample, label)` holds.
    pub fn accuracy(&self, right: impl Fn(usize, i64) -> bool) -> f64 {
        let labels = &self.test.labels;
        labels.iter().enumerate().filter(|&(i, &label)| right(i, label)).count() as f64 / labels.len() as f64
    }

    /// The classes of the training samples in random order (a control: then only chance can be learned).
    pub fn shuffled_targets(&self, seed: u64) -> Vec<usize> {
        let mut targets = self.targets.clone();
        targets.shuffle(&mut stream(seed, Purpose::ShuffledLabels, 0, 0, 0));
        targets
    }
}

/// The predictions for some samples: class and confidence in [0, 1].
pub type Predictions = Vec<(usize, f64)>;

fn labelled(features: Features) -> Labelled {
    let keep: Vec<(usize, i64)> =
        features.labels.iter().enumerate().filter_map(|(i, label)| label.map(|label| (i, label))).collect();
    let rows = if keep.len() == features.len() {
        features.rows
    } else {
        keep.iter().flat_map(|&(i, _)| &features.rows[i * features.dim..][..features.dim]).copied().collect()
    };
    Labelled {
        ids: keep.iter().map(|&(i, _)| features.ids[i]).collect(),
        labels: keep.iter().map(|&(_, label)| label).collect(),
        rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(labels: &[Option<i64>]) -> Features {
        let n = labels.len();
        Features {
            dim: 2,
            ids: (0..n as i64).collect(),
            labels: labels.to_vec(),
            rows: (0..2 * n).map(|v| v as f32).collect(),
        }
    }

    fn task(train: &[Option<i64>], test: &[Option<i64>]) -> Result<Task, String> {
        Task::new(SplitFeatures { train: features(train), test: features(test) })
    }

    #[test]
    fn classes_are_the_training_labels_and_unlabelled_samples_are_left_out() {
        let task = task(&[Some(7), None, Some(-2), Some(7)], &[Some(9), Some(7)]).unwrap();
        assert_eq!((task.classes.as_slice(), task.targets.as_slice()), (&[-2, 7][..], &[1, 0, 1][..]));
        assert_eq!(task.train.ids, [0, 2, 3]);
        assert_eq!(task.train.rows, [0.0, 1.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(task.unlabelled, 1);
        assert_eq!(task.accuracy(|i, label| i == 1 && label == 7), 0.5);
    }

    #[test]
    fn what_is_missing_is_said() {
        let some = [Some(1)];
        assert_eq!(task(&some, &[]).unwrap_err(), "the data has no test split");
        assert_eq!(task(&[None, None], &some).unwrap_err(), "the train split has no labels");
        assert_eq!(task(&some, &[None]).unwrap_err(), "the test split has no labels");
        let one = "the train split has a single class, which every image would be assigned to";
        assert_eq!(task(&[Some(4), None, Some(4)], &[Some(4), Some(5)]).unwrap_err(), one);
    }

    #[test]
    fn shuffling_permutes_and_depends_on_the_seed_alone() {
        let labels: Vec<Option<i64>> = (0..50).map(|i| Some(i % 5)).collect();
        let task = task(&labels, &labels).unwrap();
        let (a, b) = (task.shuffled_targets(1), task.shuffled_targets(2));
        assert_eq!(a, task.shuffled_targets(1));
        assert!(a != b && a != task.targets);
        let sorted = |mut v: Vec<usize>| {
            v.sort_unstable();
            v
        };
        assert_eq!(sorted(a), sorted(task.targets.clone()));
    }
}
