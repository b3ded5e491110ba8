//! Predictions of two runs on the same images, sample by sample: which flipped, and whether chance would do that.

use anyhow::{Context, ensure};
use arrow::{
    array::{Array, AsArray, Int64Array},
    datatypes::Int64Type,
};

use super::mcnemar::mcnemar;
use crate::artifact::Artifact;

/// One prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    pub sample: i64,
    pub label: i64,
    pub predicted: i64,
}

/// What changed from one set of predictions to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flips {
    /// Samples that were right and are wrong.
    pub lost: Vec<i64>,
    /// Samples that were wrong and are right.
    pub won: Vec<i64>,
    pub right_in_both: u64,
    pub wrong_in_both: u64,
    /// McNemar's exact test, two-sided: how likely a split of the flips as uneven as this one, or more, would be if each went
    /// either way like a coin.
    pub p: f64,
}

impl Flips {
    /// Pairs predictions.
    ///
    /// # Errors
    /// When they are not of the same samples with the same labels, in the same order.
    pub fn between(before: &[Prediction], after: &[Prediction]) -> anyhow::Result<Flips> {
        let same = |(a, b): (&Prediction, &Prediction)| (a.sample, a.label) == (b.sample, b.label);
        ensure!(
            before.len() == after.len() && before.iter().zip(after).all(same),
            "the predictions are of different test samples"
        );
        let mut flips = Flips::default();
        for (a, b) in before.iter().zip(after) {
            match (a.predicted == a.label, b.predicted == b.label) {
                (true, true) => flips.right_in_both += 1,
                (false, false) => flips.wrong_in_both += 1,
                (true, false) => flips.lost.push(a.sample),
                (false, true) => flips.won.push(a.sample),
            }
        }
        flips.p = mcnemar(flips.won.len(), flips.lost.len());
        Ok(flips)
    }
}

/// The `predictions` of an evaluation, those of `k` neighbours where the table has such a column.
///
/// # Errors
/// When the artifact has no such table, e.g. because there were no labels, or it cannot be read.
pub fn predictions(artifact: &Artifact, k: Option<i64>) -> anyhow::Result<Vec<Prediction>> {
    let mut found = Vec::new();
    for batch in artifact.read("predictions")? {
        let batch = batch?;
        let column = |name: &str| -> Option<Int64Array> {
            Some(batch.column_by_name(name)?.as_primitive_opt::<Int64Type>()?.clone())
        };
        let named = |name: &str| column(name).with_context(|| format!("predictions have no int64 column {name}"));
        let (samples, labels, predicted) = (named("sample_id")?, named("label")?, named("predicted")?);
        let ks = column("k");
        for row in 0..batch.num_rows() {
            if ks.as_ref().zip(k).is_none_or(|(ks, k)| ks.is_valid(row) && ks.value(row) == k) {
                let (sample, label) = (samples.value(row), labels.value(row));
                found.push(Prediction { sample, label, predicted: predicted.value(row) });
            }
        }
    }
    Ok(found)
}

/// Numbers of neighbours in a `predictions` table, in its order; the first is that of the score.
///
/// # Errors
/// As [`predictions`].
pub fn neighbours(artifact: &Artifact) -> anyhow::Result<Vec<i64>> {
    let mut found: Vec<i64> = Vec::new();
    for batch in artifact.read("predictions")? {
        let batch = batch?;
        let ks = batch.column_by_name("k").and_then(|ks| ks.as_primitive_opt::<Int64Type>());
        for &k in ks.context("predictions have no int64 column k")?.values() {
            if !found.contains(&k) {
                found.push(k);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flips_are_counted_both_ways() {
        let of = |predicted: [i64; 4]| {
            let rows = predicted.into_iter().enumerate();
            rows.map(|(i, predicted)| Prediction { sample: i as i64, label: 1, predicted }).collect::<Vec<_>>()
        };
        let flips = Flips::between(&of([1, 1, 0, 0]), &of([1, 0, 1, 2])).unwrap();
        let expected = Flips { lost: vec![1], won: vec![2], right_in_both: 1, wrong_in_both: 1, p: 1.0 };
        assert_eq!(flips, expected);
        let mut other = of([1, 1, 0, 0]);
        other[2].label = 0;
        assert!(Flips::between(&of([1, 1, 0, 0]), &other).is_err());
    }
}
