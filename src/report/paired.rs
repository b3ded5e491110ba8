//! Paired comparison of two classifiers on the same test samples: difference, 95 % interval, McNemar's test.

use std::collections::BTreeMap;

use anyhow::Context;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::{
    Run, artifacts,
    group::{SEED, mean_and_deviation},
    mcnemar::mcnemar,
    predictions,
};
use crate::artifact::{Artifact, Store};

/// Scores with predictions per sample, and their stages.
pub const PREDICTED: [(&str, &str); 2] = [("knn/top1", "knn"), ("linear/top1", "linear_probe")];

/// Number of bootstrap resamplings: the ends of a 95 % interval are then accurate to a few hundredths of its width.
const RESAMPLINGS: usize = 10_000;

/// For each test sample, whether the classifier behind a top-1 score is right.
#[derive(Clone, Debug, PartialEq)]
pub struct Correctness {
    /// Seed of the run.
    pub seed: Option<u64>,
    /// Content hash of the test split: the same for the same samples in the same order.
    pub split: String,
    /// Whether each sample is right, by its number in the split.
    pub right: BTreeMap<i64, bool>,
}

impl Correctness {
    /// Reads the correctness from `stage` (`knn` or `linear_probe`) of `run`; None if the run has no predictions, or an artifact
    /// is missing.
    ///
    /// # Errors
    /// When an artifact exists and cannot be read.
    pub fn read(store: &Store, run: &Run, stage: &str) -> anyhow::Result<Option<Self>> {
        Self::of(store, run, stage, predictions::read)
    }

    /// Like [`Correctness::read`], for the weights that training started from; also None if these were random.
    ///
    /// # Errors
    /// As [`Correctness::read`].
    pub fn read_initial(store: &Store, run: &Run, stage: &str) -> anyhow::Result<Option<Self>> {
        Self::of(store, run, stage, predictions::read_initial)
    }

    fn of(
        store: &Store,
        run: &Run,
        stage: &str,
        read: fn(&Artifact) -> anyhow::Result<Vec<predictions::Classifier>>,
    ) -> anyhow::Result<Option<Self>> {
        let (Some(split), Some(evaluation)) = (predictions::test_split(store, run), artifacts::find(store, run, stage))
        else {
            return Ok(None);
        };
        let of_run = || format!("stage {stage} of run {}", run.record.run);
        let first = read(&evaluation).with_context(of_run)?.into_iter().next();
        let right = |p: &predictions::Prediction| (p.sample, p.is_right());
        let seed = run.spec.get(SEED).and_then(Value::as_u64);
        Ok(first.map(|first| Correctness { seed, split, right: first.predictions.iter().map(right).collect() }))
    }
}

/// The difference between two classifiers: how much more often the second is right.
#[derive(Clone, Debug, PartialEq)]
pub struct Paired {
    /// Number of test samples.
    pub samples: usize,
    /// Difference of the accuracies, from -1 to 1.
    pub difference: f64,
    /// Ends of the 95 % interval.
    pub low: f64,
    pub high: f64,
    /// Whether the interval covers the choice of seeds too, which needs several runs on both sides. Otherwise it covers the choice
    /// of test samples alone.
    pub over_seeds: bool,
    /// Two-sided p of McNemar's exact test; None if one of the two is an average over seeds.
    pub p: Option<f64>,
}

/// The gain in `metric` of a run, or of several, over the weights that training started from. None if these were random, or
/// predictions are missing.
///
/// # Errors
/// When an artifact exists and cannot be read.
pub fn gain(store: &Store, runs: &[&Run], metric: &str) -> anyhow::Result<Option<Paired>> {
    let Some((_, stage)) = PREDICTED.into_iter().find(|(predicted, _)| *predicted == metric) else { return Ok(None) };
    let (mut initial, mut trained) = (Vec::new(), Vec::new());
    for run in runs {
        // Most runs start from random weights: return before reading artifacts.
        if !run.record.metrics.contains_key(&format!("{metric}_initial")) {
            return Ok(None);
        }
        initial.extend(Correctness::read_initial(store, run, stage)?);
        trained.extend(Correctness::read(store, run, stage)?);
    }
    Ok(if initial.len() == runs.len() && trained.len() == runs.len() { compare(&initial, &trained) } else { None })
}

/// Compares `second` with `first`. Each is the correctness of one run, or of several runs of different seeds, which are averaged
/// sample by sample. None if the samples differ.
pub fn compare(first: &[Correctness], second: &[Correctness]) -> Option<Paired> {
    let one = first.first()?;
    let is_same = |other: &Correctness| other.split == one.split && other.right.keys().eq(one.right.keys());
    if one.right.is_empty() || second.is_empty() || !first.iter().chain(second).all(is_same) {
        return None;
    }
    let share =
        |runs: &[Correctness], id: &i64| runs.iter().filter(|run| run.right[id]).count() as f64 / runs.len() as f64;
    let differences: Vec<f64> = one.right.keys().map(|id| share(second, id) - share(first, id)).collect();
    let samples = differences.len();
    let difference = differences.iter().sum::<f64>() / samples as f64;
    let by_seed = over_seeds(first, second);
    let (low, high) = match by_seed {
        None => interval(&differences),
        Some(by_seed) => {
            let margin = margin([by_seed, Spread::of_mean(&differences)?]);
            (difference - margin, difference + margin)
        }
    };
    let p = (first.len() == 1 && second.len() == 1).then(|| {
        let count = |value: f64| differences.iter().filter(|difference| **difference == value).count();
        mcnemar(count(1.0), count(-1.0))
    });
    Some(Paired { samples, difference, low, high, over_seeds: by_seed.is_some(), p })
}

/// The variance of an estimate, and the degrees of freedom with which it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    variance: f64,
    freedom: f64,
}

impl Spread {
    /// The spread of the mean of independent values; None if there are fewer than two.
    fn of_mean(values: &[f64]) -> Option<Spread> {
        let values: Vec<Option<f64>> = values.iter().copied().map(Some).collect();
        let deviation = mean_and_deviation(&values).1?;
        Some(Spread { variance: deviation * deviation / values.len() as f64, freedom: (values.len() - 1) as f64 })
    }

    /// The spread of the sum of independent estimates, by the formula of Welch and Satterthwaite.
    fn of_sum(parts: [Spread; 2]) -> Spread {
        let variance: f64 = parts.iter().map(|part| part.variance).sum();
        let squares: f64 = parts.iter().map(|part| part.variance * part.variance / part.freedom).sum();
        let least = parts[0].freedom.min(parts[1].freedom);
        Spread { variance, freedom: if squares > 0.0 { variance * variance / squares } else { least } }
    }
}

/// The spread over seeds of the difference between the mean accuracies. If both sides have the same seeds, their runs are paired.
/// None if a side has one run only.
fn over_seeds(first: &[Correctness], second: &[Correctness]) -> Option<Spread> {
    let accuracy =
        |run: &Correctness| run.right.values().filter(|right| **right).count() as f64 / run.right.len() as f64;
    let by_seed = |runs: &[Correctness]| -> BTreeMap<Option<u64>, f64> {
        runs.iter().map(|run| (run.seed, accuracy(run))).collect()
    };
    let (firsts, seconds) = (by_seed(first), by_seed(second));
    if firsts.keys().eq(seconds.keys()) {
        let differences: Vec<f64> =
            firsts.values().zip(seconds.values()).map(|(first, second)| second - first).collect();
        return Spread::of_mean(&differences);
    }
    let of = |runs: &[Correctness]| Spread::of_mean(&runs.iter().map(accuracy).collect::<Vec<_>>());
    Some(Spread::of_sum([of(first)?, of(second)?]))
}

/// Half of the width of the 95 % t interval of an estimate whose variance has these two parts.
fn margin(parts: [Spread; 2]) -> f64 {
    let Spread { variance, freedom } = Spread::of_sum(parts);
    let t = StudentsT::new(0.0, 1.0, freedom).map_or(f64::NAN, |t| t.inverse_cdf(0.975));
    t * variance.sqrt()
}

/// Ends of the 95 % percentile bootstrap interval of the mean. The order of the values does not change the result.
fn interval(values: &[f64]) -> (f64, f64) {
    // There are few distinct values. The numbers of their draws are multinomial, so one binomial draw per distinct value
    // suffices, instead of one draw per sample.
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    values.iter().for_each(|value| *counts.entry(value.to_bits()).or_default() += 1);
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut means: Vec<f64> = (0..RESAMPLINGS)
        .map(|_| {
            let (mut draws, mut others, mut sum) = (values.len() as u64, values.len() as u64, 0.0);
            for (&value, &count) in &counts {
                let drawn = match count == others {
                    true => draws,
                    false => binomial(draws, count as f64 / others as f64, &mut random),
                };
                sum += drawn as f64 * f64::from_bits(value);
                draws -= drawn;
                others -= count;
            }
            sum / values.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    (means[RESAMPLINGS / 40], means[RESAMPLINGS - 1 - RESAMPLINGS / 40])
}

/// Draws the number of successes of `draws` trials with probability `p`, which is rounded to 64 bits. The result is the same on
/// every machine.
fn binomial(draws: u64, p: f64, random: &mut ChaCha8Rng) -> u64 {
    // A trial succeeds if a random number is less than p. Bits of both are compared from the highest one; a random word holds one
    // bit of each of 64 trials.
    let p = (p * u64::MAX as f64) as u64;
    let mut successes = 0;
    for first in (0..draws).step_by(64) {
        let mut equal = u64::MAX >> 64u64.saturating_sub(draws - first);
        let mut less = 0u64;
        for bit in (0..64).rev() {
            let word = random.random::<u64>();
            if p >> bit & 1 == 1 {
                less |= equal & !word;
                equal &= word;
            } else {
                equal &= !word;
            }
            if equal == 0 {
                break;
            }
        }
        successes += u64::from(less.count_ones());
    }
    successes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn correctness(right: &[bool]) -> Correctness {
        let right = right.iter().enumerate().map(|(i, right)| (i as i64, *right)).collect();
        Correctness { seed: Some(0), split: "x".into(), right }
    }

    #[test]
    fn the_interval_is_that_of_the_normal_approximation_where_that_holds() {
        let values: Vec<f64> = (0..1000).map(|i| [1.0, 0.0, 0.0, -1.0, 0.5][i % 5]).collect();
        let (low, high) = interval(&values);
        let deviation = ((2.25f64 / 5.0 - 0.01) / 1000.0).sqrt();
        assert!((low - (0.1 - 1.96 * deviation)).abs() < 0.002, "{low}");
        assert!((high - (0.1 + 1.96 * deviation)).abs() < 0.002, "{high}");
        let reversed: Vec<f64> = values.into_iter().rev().collect();
        assert_eq!(interval(&reversed), (low, high));
        assert_eq!(interval(&[0.0; 7]), (0.0, 0.0));
    }

    #[test]
    fn successes_have_the_mean_and_variance_of_their_distribution() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for (draws, p) in [(100, 0.3), (64, 0.5), (7, 0.999), (1000, 1e-3)] {
            let found: Vec<f64> = (0..20_000).map(|_| binomial(draws, p, &mut random) as f64).collect();
            let mean = found.iter().sum::<f64>() / 20_000.0;
            let variance = found.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
            let expected = draws as f64 * p * (1.0 - p);
            assert!((mean - draws as f64 * p).abs() < 4.0 * (expected / 20_000.0).sqrt(), "{draws} {p}: {mean}");
            assert!((variance / expected - 1.0).abs() < 0.2, "{draws} {p}: {variance}");
            assert!(found.iter().all(|x| *x <= draws as f64));
        }
        assert_eq!((binomial(100, 0.0, &mut random), binomial(0, 0.5, &mut random)), (0, 0));
    }

    fn one(first: &Correctness, second: &Correctness) -> Option<Paired> {
        compare(std::slice::from_ref(first), std::slice::from_ref(second))
    }

    #[test]
    fn runs_are_paired_by_sample_and_groups_are_averaged() {
        let first = correctness(&[true, true, false, false]);
        let second = correctness(&[true, true, true, true]);
        let single = one(&first, &second).unwrap();
        assert_eq!((single.samples, single.difference), (4, 0.5));
        assert!((single.p.unwrap() - 0.5).abs() < 1e-12 && !single.over_seeds);
        let group = compare(&[first.clone(), second.clone()], &[second.clone(), second.clone()]).unwrap();
        assert_eq!((group.difference, group.p), (0.25, None));
        assert!(group.low >= 0.0 && group.high <= 0.5);
        assert_eq!(one(&first, &first).unwrap().high, 0.0);
    }

    #[test]
    fn with_several_runs_on_both_sides_the_interval_covers_the_seeds() {
        let runs = |runs: [(u64, [u8; 5]); 3]| {
            let run = |(seed, right): (u64, [u8; 5])| Correctness {
                seed: Some(seed),
                ..correctness(&right.map(|right| right == 1))
            };
            runs.map(run)
        };
        let first = runs([(1, [1, 1, 0, 0, 0]), (2, [1, 0, 0, 0, 0]), (3, [1, 1, 1, 0, 0])]);
        let mut second = runs([(1, [1, 1, 1, 1, 0]), (2, [1, 1, 0, 0, 0]), (3, [0, 1, 1, 1, 1])]);
        let is = |paired: Paired, [difference, low, high]: [f64; 3]| {
            let off = [paired.difference - difference, paired.low - low, paired.high - high].map(f64::abs);
            assert!(paired.over_seeds && off.iter().all(|off| *off < 1e-9), "{paired:?}");
        };
        // The variances of the means over seeds and over samples, and Student's t, by NumPy and SciPy.
        let paired = [0.26666666666666666, -0.18259824653818302, 0.7159315798715163];
        is(compare(&first, &second).unwrap(), paired);
        second.reverse();
        is(compare(&first, &second).unwrap(), paired);
        // With other seeds, the runs are not paired.
        is(compare(&first[..2], &second).unwrap(), [0.36666666666666664, -0.22350804269473673, 0.9568413760280701]);
        // One run says nothing about its seed.
        assert!(!compare(&first[..1], &second).unwrap().over_seeds);
        assert_eq!(compare(&first, &first).map(|same| (same.low, same.high)), Some((0.0, 0.0)));
    }

    #[test]
    fn other_samples_are_not_compared() {
        let first = correctness(&[true, true]);
        let other = Correctness { split: "y".into(), ..first.clone() };
        assert_eq!(one(&first, &other), None);
        assert_eq!(one(&first, &correctness(&[true])), None);
        assert_eq!(compare(&[first], &[]), None);
        assert_eq!(one(&correctness(&[]), &correctness(&[])), None);
    }
}
