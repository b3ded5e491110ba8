//! Flips: test images that two runs predict differently, and whether chance could explain their numbers.

use anyhow::ensure;

use super::{mcnemar::mcnemar, predictions::Prediction};

/// The changes from one set of predictions to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flips {
    /// Samples that were right before and are wrong now.
    pub lost: Vec<i64>,
    /// Samples that were wrong before and are right now.
    pub won: Vec<i64>,
    pub right_in_both: u64,
    pub wrong_in_both: u64,
    /// p of McNemar's exact test, two-sided: the probability of a split of the flips at least as uneven as this, if each were a
    /// coin toss.
    pub p: f64,
}

impl Flips {
    /// Pairs predictions.
    ///
    /// # Errors
    /// When samples, labels or their order differ.
    pub fn between(before: &[Prediction], after: &[Prediction]) -> anyhow::Result<Flips> {
        let same = |(a, b): (&Prediction, &Prediction)| (a.sample, a.label) == (b.sample, b.label);
        ensure!(
            before.len() == after.len() && before.iter().zip(after).all(same),
            "the predictions are for different test samples"
        );
        let mut flips = Flips::default();
        for (a, b) in before.iter().zip(after) {
            match (a.is_right(), b.is_right()) {
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
