//! Checks whether an evaluation can be trusted: the encoder did not change, and the controls score as controls should.

use super::{
    Run, artifacts,
    duplicates::{Twice, duplicates},
    grid::difference,
    paired::{self, Paired},
};
use crate::{
    artifact::Store,
    tables::{AUDIT, NOTES},
};

/// The audit of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Audit {
    /// The audit table of each embed stage: the stage, then keys and values.
    pub encoders: Vec<(String, Vec<(String, String)>)>,
    /// Score and controls of each evaluation, as fractions.
    pub scores: Vec<(&'static str, Scores)>,
    pub checks: Vec<Check>,
    /// Notes of the data stage about the images.
    pub notes: Vec<String>,
    /// Duplicate images that cast doubt on scores, by name.
    pub duplicates: Vec<Twice>,
}

/// A score and its controls, as fractions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    pub trained: f64,
    /// Score with the weights of `encoder.init`; None if training started from random weights.
    pub initial: Option<f64>,
    pub untrained: Option<f64>,
    pub shuffled: Option<f64>,
    /// Gain of the trained encoder over the weights of `encoder.init`, on the same test samples.
    pub gain: Option<Paired>,
}

/// A condition that must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub what: String,
    /// Why it does not hold; None if it holds.
    pub problem: Option<String>,
}

impl Audit {
    /// Audits a run whose artifacts are in `store`.
    ///
    /// # Errors
    /// When an artifact cannot be read. A missing artifact fails its check instead.
    pub fn new(store: &Store, run: &Run) -> anyhow::Result<Audit> {
        let mut audit = Audit::default();
        for stage in run.record.stages.iter().filter(|stage| stage.stage.starts_with("embed")) {
            let rows = match store.artifact(&stage.stage, &stage.key) {
                Some(artifact) => artifact.texts(&AUDIT)?,
                None => Vec::new(),
            };
            audit.check_encoder(&stage.stage, &rows);
            audit.encoders.push((stage.stage.clone(), rows));
        }
        audit.scores = scores(store, run)?;
        for (label, scores) in &audit.scores {
            for (control, name) in [(scores.untrained, "untrained encoder"), (scores.shuffled, "shuffled labels")] {
                let problem = match control {
                    None => Some("was not scored".to_owned()),
                    Some(control) if control >= scores.trained => Some("scores no worse".to_owned()),
                    Some(_) => None,
                };
                audit.checks.push(Check { what: format!("{label}: above the control with {name}"), problem });
            }
            if scores.initial.is_some() {
                let what = format!("{label}: not below the weights that training started from");
                audit.checks.push(Check { what, problem: below(scores.gain.as_ref()) });
            }
        }
        // A missing data artifact is no reason to doubt the results that were computed from it.
        if let Some(data) = artifacts::find(store, run, "data") {
            audit.notes = data.texts(&NOTES)?.into_iter().map(|(_, text)| text).collect();
            audit.duplicates = duplicates(&data)?;
        }
        Ok(audit)
    }

    /// Whether all checks hold.
    pub fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.problem.is_none())
    }

    fn check_encoder(&mut self, stage: &str, rows: &[(String, String)]) {
        let value = |key: &str| rows.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        let mut check = |what: &str, problem: Option<String>| {
            self.checks.push(Check { what: format!("{stage}: {what}"), problem });
        };
        if rows.is_empty() {
            return check("there is an audit", Some("the artifact is missing".to_owned()));
        }
        let digests = value("encoder_sha256_before").zip(value("encoder_sha256_after"));
        check(
            "the encoder is the same after the last image as before the first",
            match digests {
                Some((before, after)) if before == after => None,
                Some(_) => Some("its digests differ".to_owned()),
                None => Some("its digests were not recorded".to_owned()),
            },
        );
        let mode = value("mode").unwrap_or("not written down");
        check("eval mode", (!mode.starts_with("eval")).then(|| mode.to_owned()));
        let coverage = value("key_coverage").unwrap_or("not written down");
        let numbers: Vec<&str> = coverage.split_whitespace().take(4).collect();
        let complete = matches!(numbers[..], [n, "tensors", "of", of] if of.trim_end_matches(',') == n);
        check("every tensor of the encoder was loaded", (!complete).then(|| coverage.to_owned()));
    }
}

/// The top-1 score of each evaluation of a run, with its controls. Skipped evaluations have no entry.
///
/// # Errors
/// When an artifact exists and cannot be read.
pub fn scores(store: &Store, run: &Run) -> anyhow::Result<Vec<(&'static str, Scores)>> {
    let mut rows = Vec::new();
    for (label, metric) in [("linear probe", "linear/top1"), ("kNN", "knn/top1")] {
        let score = |suffix: &str| run.record.metrics.get(&format!("{metric}{suffix}")).copied().flatten();
        let Some(trained) = score("") else { continue };
        let [untrained, shuffled, initial] = ["_random_init", "_shuffled_labels", "_initial"].map(score);
        let gain = paired::gain(store, &[run], metric)?;
        rows.push((label, Scores { trained, initial, untrained, shuffled, gain }));
    }
    Ok(rows)
}

/// The problem with a gain over the weights that training started from: missing predictions, or an interval that is wholly below
/// 0.
fn below(gain: Option<&Paired>) -> Option<String> {
    match gain {
        None => Some("their predictions are missing".to_owned()),
        Some(gain) if gain.high < 0.0 => Some(format!("in points, the difference to them is {}", difference(gain))),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(change: Option<(&str, &str)>) -> Vec<(String, String)> {
        let rows = [
            ("key_coverage", "122 tensors of 122, none unexpected"),
            ("mode", "eval: batch norm uses its running statistics"),
            ("encoder_sha256_before", "aa"),
            ("encoder_sha256_after", "aa"),
        ];
        let value = |key: &str, value: &str| match change {
            Some((changed, new)) if changed == key => new.to_owned(),
            _ => value.to_owned(),
        };
        rows.iter().map(|(k, v)| (k.to_string(), value(k, v))).collect()
    }

    #[test]
    fn every_departure_is_noticed() {
        let problems = |rows: &[(String, String)]| {
            let mut audit = Audit::default();
            audit.check_encoder("embed", rows);
            audit.checks.into_iter().filter_map(|check| check.problem).collect::<Vec<_>>()
        };
        assert_eq!(problems(&rows(None)), [] as [&str; 0]);
        assert_eq!(problems(&rows(Some(("encoder_sha256_after", "ab")))), ["its digests differ"]);
        assert_eq!(problems(&rows(Some(("mode", "train")))), ["train"]);
        assert_eq!(problems(&rows(Some(("key_coverage", "121 tensors of 122, x")))), ["121 tensors of 122, x"]);
        assert_eq!(problems(&[]), ["the artifact is missing"]);
    }

    #[test]
    fn a_training_must_not_fall_wholly_below_the_weights_it_started_from() {
        let gain = |low, high| Paired {
            samples: 40,
            difference: (low + high) / 2.0,
            low,
            high,
            over_seeds: false,
            p: Some(0.25),
        };
        assert_eq!(below(Some(&gain(-0.1, 0.0))), None);
        assert_eq!(below(Some(&gain(0.1, 0.2))), None);
        let told = "in points, the difference to them is -15.00 [-20.00, -10.00], p 0.250";
        assert_eq!(below(Some(&gain(-0.2, -0.1))).as_deref(), Some(told));
        let run = crate::report::samples::run("a", "seed: 1", &[("knn/top1", 0.5), ("knn/top1_initial", 0.4)]);
        let audit = Audit::new(&Store::open(std::path::Path::new("nowhere")), &run).unwrap();
        let last = audit.checks.last().unwrap();
        assert_eq!(last.what, "kNN: not below the weights that training started from");
        assert_eq!(last.problem.as_deref(), Some("their predictions are missing"));
    }

    #[test]
    fn controls_must_score_less() {
        let metrics = [("knn/top1", 0.5), ("knn/top1_random_init", 0.5), ("knn/top1_shuffled_labels", 0.1)];
        let run = crate::report::samples::run("a", "seed: 1", &metrics);
        let audit = Audit::new(&Store::open(std::path::Path::new("nowhere")), &run).unwrap();
        let scores = Scores { trained: 0.5, untrained: Some(0.5), shuffled: Some(0.1), ..Scores::default() };
        assert_eq!(audit.scores, [("kNN", scores)]);
        let problems: Vec<_> = audit.checks.iter().map(|check| check.problem.as_deref()).collect();
        assert_eq!(problems, [Some("scores no worse"), None]);
        assert!(!audit.holds());
    }
}
