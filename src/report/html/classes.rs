//! Scores per class and the confusion matrix, from the predictions per sample.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::{
    artifact::Store,
    report::{Run, artifacts, predictions},
};

/// Up to this many classes the whole matrix is shown; beyond it, only the most confused pairs.
const MATRIX: usize = 30;
/// The number of confused pairs to list.
const PAIRS: usize = 20;

/// Predictions of one classifier on the test split.
#[derive(Debug, PartialEq)]
pub struct Evaluation {
    pub name: String,
    /// Sample -> label and predicted label.
    pub predictions: BTreeMap<i64, (i64, i64)>,
}

/// The classifiers of a run: the linear probe, then kNN for each k. Empty if there are no labels.
///
/// # Errors
/// When an evaluation is missing or damaged.
pub fn read(store: &Store, run: &Run) -> anyhow::Result<Vec<Evaluation>> {
    let mut found: Vec<Evaluation> = Vec::new();
    for (stage, title) in [("linear_probe", "Linear probe"), ("knn", "kNN")] {
        if run.record.stages.iter().all(|record| record.stage != stage) {
            continue;
        }
        for classifier in predictions::read(&artifacts::stage(store, run, stage)?)? {
            let name = classifier.k.map_or(title.to_owned(), |k| format!("{title}, k = {k}"));
            let of_sample = classifier.predictions.iter().map(|p| (p.sample, (p.label, p.predicted)));
            found.push(Evaluation { name, predictions: of_sample.collect() });
        }
    }
    Ok(found)
}

impl Evaluation {
    /// The labels that occur, ascending, and the count of each pair (label, predicted).
    fn counts(&self) -> (Vec<i64>, HashMap<(i64, i64), usize>) {
        let mut labels: Vec<i64> = self.predictions.values().flat_map(|(label, guess)| [*label, *guess]).collect();
        labels.sort_unstable();
        labels.dedup();
        let mut counts = HashMap::new();
        for pair in self.predictions.values() {
            *counts.entry(*pair).or_insert(0) += 1;
        }
        (labels, counts)
    }

    /// The JSON of the page: `name`; `labels`; `scores` with `[images, right, predicted]` per label; `matrix` [label][predicted],
    /// which is null beyond [`MATRIX`] classes; and `pairs`, the most confused ones, as `[label, predicted, images]`.
    pub fn to_json(&self) -> Value {
        let (labels, counts) = self.counts();
        let count = |label: i64, guess: i64| counts.get(&(label, guess)).copied().unwrap_or(0);
        let (mut of_label, mut of_guess) = (HashMap::new(), HashMap::new());
        for ((label, guess), n) in &counts {
            *of_label.entry(*label).or_insert(0) += n;
            *of_guess.entry(*guess).or_insert(0) += n;
        }
        let total = |map: &HashMap<i64, usize>, label: i64| map.get(&label).copied().unwrap_or(0);
        let scores: Vec<[usize; 3]> =
            labels.iter().map(|&l| [total(&of_label, l), count(l, l), total(&of_guess, l)]).collect();
        let matrix: Option<Vec<Vec<usize>>> = (labels.len() <= MATRIX)
            .then(|| labels.iter().map(|&l| labels.iter().map(|&guess| count(l, guess)).collect()).collect());
        let mut pairs: Vec<(i64, i64, usize)> =
            counts.iter().filter(|((l, guess), _)| l != guess).map(|((l, guess), n)| (*l, *guess, *n)).collect();
        pairs.sort_by_key(|&(label, guess, n)| (std::cmp::Reverse(n), label, guess));
        pairs.truncate(PAIRS);
        json!({ "name": self.name, "labels": labels, "scores": scores, "matrix": matrix, "pairs": pairs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(pairs: impl IntoIterator<Item = (i64, i64)>) -> Evaluation {
        let predictions = pairs.into_iter().enumerate().map(|(sample, pair)| (sample as i64, pair)).collect();
        Evaluation { name: "kNN".into(), predictions }
    }

    #[test]
    fn rows_are_labels_and_columns_predictions() {
        let json = evaluation([(0, 0), (0, 2), (0, 2), (2, 2), (5, 0)]).to_json();
        assert_eq!(json["labels"], json!([0, 2, 5]));
        assert_eq!(json["matrix"], json!([[1, 2, 0], [0, 1, 0], [1, 0, 0]]));
        assert_eq!(json["scores"], json!([[3, 1, 2], [1, 1, 3], [1, 0, 0]]));
        assert_eq!(json["pairs"], json!([[0, 2, 2], [5, 0, 1]]));
    }

    #[test]
    fn many_classes_have_no_matrix_but_their_worst_pairs() {
        let json = evaluation((0..200).map(|i| (i % 40, (i + i % 3) % 40))).to_json();
        assert_eq!((json["labels"].as_array().unwrap().len(), &json["matrix"]), (40, &Value::Null));
        assert_eq!(json["pairs"].as_array().unwrap().len(), PAIRS);
    }
}
