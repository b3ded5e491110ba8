//! The linear-probe stage: scores frozen features by a linear classifier.

use std::f64::consts::PI;

use anyhow::bail;
use arrow::array::RecordBatch;
use rand::seq::SliceRandom;
use serde::Serialize;

use super::{
    Cost, Descriptor, LinearProbeConfig, Progress, StageContext, Stopped,
    evaluation::{Evaluation, INPUTS, Scored, predictions_rows},
    features::SplitFeatures,
    labelled::Task,
    softmax::{Classifier, Prediction, sgd},
    standardize::Standardizer,
    weights::weights_batch,
};
use crate::{
    artifact::{Artifact, ArtifactWriter},
    ops::random::{Purpose, stream},
    tables::{self, column::*},
};

/// The descriptor of the stage.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "linear_probe",
    version: 3,
    inputs: &INPUTS,
    tables: &[
        tables::SCORES,
        tables::NOTES,
        tables::PREDICTIONS,
        tables::INITIAL_PREDICTIONS,
        tables::CURVE,
        tables::CLASSIFIER,
        tables::CLASSIFIER_CLASSES,
    ],
    cost: Cost { of_an_image: &[], grows: &[tables::PREDICTIONS, tables::CURVE] },
    figures: Some((tables::SCORES, "")),
};

/// The fields of a spec that the stage reads. The seed determines initial weights, order, and the shuffled labels of the control.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LinearProbeSections<'a> {
    pub seed: u64,
    pub linear_probe: &'a LinearProbeConfig,
}

/// The smallest number of classes for which top-5 is reported.
const TOP5_CLASSES: usize = 10;

/// Scores the features of the trained encoder, and the controls: other features, and shuffled labels.
///
/// Training is SGD with momentum and a cosine schedule to 0 on softmax cross-entropy. The features are those of the evaluation
/// transform, computed once. Unlike in MoCo-v3's protocol, images are not augmented while the probe trains.
///
/// Writes `scores`, `notes`, `predictions`, `curve` (for the trained features) and `classifier`. The tensors `fc.weight` and
/// `fc.bias` of `classifier` compute logits from raw features, since standardisation is folded in; class i is the i-th row of
/// `classes`. If training started from a file of weights, also writes `initial_predictions` (for the features of these weights).
/// Without labels or a test split, `scores` is empty and a note says why.
///
/// # Errors
/// When the artifacts cannot be read or written, the loss diverges, or the user interrupts.
pub fn run(
    config: &LinearProbeConfig,
    seed: u64,
    inputs: Scored<&Artifact>,
    out: &mut ArtifactWriter,
    context: &StageContext,
) -> anyhow::Result<()> {
    let go_on = || !context.interrupt.requested();
    evaluate(config, seed, inputs.features()?, context.progress, &go_on)?.write(out)
}

fn evaluate(
    config: &LinearProbeConfig,
    seed: u64,
    features: Scored<SplitFeatures>,
    progress: &dyn Progress,
    go_on: &dyn Fn() -> bool,
) -> anyhow::Result<Evaluation> {
    let (tasks, mut result) = match Evaluation::begin(DESCRIPTOR.name, features, progress)? {
        Ok(begun) => begun,
        Err(skipped) => return Ok(skipped),
    };
    Probe { config, seed, progress, go_on }.score(tasks, &mut result)?;
    Ok(result)
}

/// The settings for training classifiers, and the receiver of progress.
pub struct Probe<'a> {
    pub config: &'a LinearProbeConfig,
    pub seed: u64,
    pub progress: &'a dyn Progress,
    pub go_on: &'a dyn Fn() -> bool,
}

impl Probe<'_> {
    fn score(&self, mut tasks: Scored<Task>, result: &mut Evaluation) -> anyhow::Result<()> {
        let standardizer = self.standardize(&mut tasks.trained);
        for control in std::iter::once(&mut tasks.random_init).chain(&mut tasks.initial) {
            self.standardize(control);
        }
        let Scored { trained, random_init, initial } = tasks;

        let probes = 3 + u64::from(initial.is_some());
        self.progress.start(Some(probes * self.config.epochs as u64), "epochs");
        let (classifier, curve) = self.fit("trained", &trained, &trained.targets)?;
        let (untrained, _) = self.fit("random-init", &random_init, &random_init.targets)?;
        let (shuffled, _) = self.fit("shuffled-label", &trained, &trained.shuffled_targets(self.seed))?;

        let predictions = predict(&classifier, &trained);
        result.score("linear/top1", top(1, &predictions));
        if trained.classes.len() >= TOP5_CLASSES {
            result.score("linear/top5", top(5, &predictions));
        }
        result.score("linear/top1_random_init", top(1, &predict(&untrained, &random_init)));
        if let Some(initial) = &initial {
            let (classifier, _) = self.fit("initial-weights", initial, &initial.targets)?;
            let predictions = predict(&classifier, initial);
            result.score("linear/top1_initial", top(1, &predictions));
            let elected = predictions.iter().map(|p| (p.class, p.probability)).collect();
            result.tables.push(predictions_rows(tables::INITIAL_PREDICTIONS, initial, &[(None, &elected)]));
        }
        result.score("linear/top1_shuffled_labels", top(1, &predict(&shuffled, &trained)));

        let (weight, bias) = standardizer.fold(&classifier);
        let shape = vec![classifier.classes, classifier.dim];
        let fc = [("fc.weight".to_owned(), shape, weight), ("fc.bias".to_owned(), vec![classifier.classes], bias)];
        let elected = predictions.iter().map(|p| (p.class, p.probability)).collect();
        result.tables.push(predictions_rows(tables::PREDICTIONS, &trained, &[(None, &elected)]));
        result.tables.push((tables::CURVE, curve_rows(&curve)));
        result.tables.push((tables::CLASSIFIER, weights_batch(&fc)));
        let labels = LABEL.of(trained.classes.iter().copied());
        result.tables.push((tables::CLASSIFIER_CLASSES, tables::CLASSIFIER_CLASSES.rows([labels])));
        Ok(())
    }

    /// Standardises the features of a task by its training split, if the spec asks for it.
    pub fn standardize(&self, task: &mut Task) -> Standardizer {
        let standardizer = match self.config.standardize {
            true => Standardizer::fit(&task.train.rows, task.dim),
            false => Standardizer::identity(task.dim),
        };
        standardizer.apply(&mut task.train.rows);
        standardizer.apply(&mut task.test.rows);
        standardizer
    }

    /// Trains a classifier for `targets` on the training features; `what` names the features in messages.
    ///
    /// # Errors
    /// When the loss diverges, or `go_on` returns false.
    pub fn fit(&self, what: &str, task: &Task, targets: &[usize]) -> anyhow::Result<(Classifier<f32>, Vec<Epoch>)> {
        let Self { config, seed, progress, go_on } = *self;
        let n = targets.len();
        let batch_size = config.batch_size.min(n);
        let base = config.base_lr * batch_size as f64 / 256.0;
        let steps = config.epochs * n.div_ceil(batch_size);
        let mut classifier = Classifier::<f32>::new(task.dim, task.classes.len(), seed);
        let mut velocity = vec![0.0; classifier.params.len()];
        let mut curve = Vec::with_capacity(config.epochs);
        let mut step = 0;
        for epoch in 0..config.epochs {
            if !go_on() {
                return Err(Stopped::InterruptedAt { stage: "linear_probe" }.into());
            }
            let mut order: Vec<usize> = (0..n).collect();
            order.shuffle(&mut stream(seed, Purpose::ProbeShuffle, epoch as u64, 0, 0));
            let (mut loss, mut correct) = (0.0, 0);
            for batch in order.chunks(batch_size) {
                let rate = base * 0.5 * (1.0 + libm::cos(PI * step as f64 / steps as f64));
                let gradient = classifier.gradient(&task.train.rows, targets, batch);
                sgd(
                    &mut classifier.params,
                    &mut velocity,
                    &gradient.params,
                    rate,
                    config.momentum,
                    config.weight_decay,
                );
                loss += gradient.loss * batch.len() as f64;
                correct += gradient.correct;
                step += 1;
            }
            let epoch = Epoch { loss: loss / n as f64, top1: correct as f64 / n as f64 };
            if !epoch.loss.is_finite() || classifier.params.iter().any(|w| !w.is_finite()) {
                bail!(
                    "linear probe on {what} features: the loss became {} in epoch {} at learning rate {base} (linear_probe.base_lr {} * batch size {batch_size} / 256); lower linear_probe.base_lr",
                    epoch.loss,
                    curve.len() + 1,
                    config.base_lr,
                );
            }
            progress.message(&format!("{what}: loss {:.3}, top-1 {:.1} %", epoch.loss, epoch.top1 * 100.0));
            progress.advance(1);
            curve.push(epoch);
        }
        Ok((classifier, curve))
    }
}

/// Result of one pass over the training features: mean loss, and the share of samples classified correctly before their step.
pub struct Epoch {
    loss: f64,
    top1: f64,
}

/// The predictions of a classifier for the test split.
pub fn predict(classifier: &Classifier<f32>, task: &Task) -> Vec<Prediction> {
    classifier.predict(&task.test.rows, |i| task.classes.binary_search(&task.test.labels[i]).ok())
}

/// Share of the samples whose true class is among the `k` most likely classes.
pub fn top(k: usize, predictions: &[Prediction]) -> f64 {
    predictions.iter().filter(|p| p.rank.is_some_and(|rank| rank < k)).count() as f64 / predictions.len() as f64
}

fn curve_rows(curve: &[Epoch]) -> RecordBatch {
    tables::CURVE.rows([
        EPOCH.of(1..=curve.len() as i64),
        LOSS.of(curve.iter().map(|epoch| epoch.loss)),
        TRAIN_TOP1.of(curve.iter().map(|epoch| epoch.top1)),
    ])
}

#[cfg(test)]
mod tests {
    use arrow::{array::AsArray, datatypes::Float64Type};

    use super::*;
    use crate::stage::{
        probe_data::{Heard, blobs, noise, unlabelled},
        weights::read_weights,
    };

    fn config() -> LinearProbeConfig {
        LinearProbeConfig { epochs: 20, batch_size: 96, ..LinearProbeConfig::default() }
    }

    fn scored(trained: SplitFeatures, random_init: SplitFeatures) -> Scored<SplitFeatures> {
        Scored { trained, random_init, initial: None }
    }

    #[test]
    fn initial_weights_are_scored_beside_the_others() {
        let features = scored(blobs(4, 400, 100), noise(4, 400, 100));
        let with = Scored { initial: Some(blobs(4, 400, 100)), ..features };
        let with = super::evaluate(&config(), 3, with, &Heard::default(), &|| true).unwrap();
        let without = evaluate(&config(), blobs(4, 400, 100), noise(4, 400, 100));
        assert_eq!(with.get("linear/top1_initial"), with.get("linear/top1"));
        for (metric, value) in &without.scores {
            assert_eq!(with.get(metric), Some(*value), "{metric}");
        }
        let table = |name: &str| with.tables.iter().find(|(table, _)| table.name == name).map(|(_, batch)| batch);
        assert_eq!(table("initial_predictions"), table("predictions"));
        assert!(table("predictions").is_some());
    }

    fn evaluate(config: &LinearProbeConfig, trained: SplitFeatures, control: SplitFeatures) -> Evaluation {
        super::evaluate(config, 3, scored(trained, control), &Heard::default(), &|| true).unwrap()
    }

    #[test]
    fn separable_features_score_and_both_controls_are_near_chance() {
        let result = evaluate(&config(), blobs(4, 400, 100), noise(4, 400, 100));
        assert!(result.get("linear/top1").unwrap() > 0.97);
        assert!((0.1..0.45).contains(&result.get("linear/top1_random_init").unwrap()), "{:?}", result.scores);
        assert_eq!(result.scores.len(), 3);
        let table = |name| &result.tables.iter().find(|(table, _)| table.name == name).unwrap().1;
        let loss = table("curve").column(1).as_primitive::<Float64Type>().values().to_vec();
        assert_eq!(loss.len(), 20);
        assert!(loss[0] < 2.0 && loss[19] < 0.5 * loss[0]);
        assert_eq!(table("predictions").num_rows(), 100);
    }

    #[test]
    fn shuffled_labels_leave_chance() {
        // Chance decides which class wins a cluster, with one draw per cluster. The mean over many seeds is a quarter.
        let seeds = 12;
        let top1 = |seed| {
            let config = LinearProbeConfig { epochs: 5, ..config() };
            let result = super::evaluate(
                &config,
                seed,
                scored(blobs(4, 200, 40), noise(4, 200, 40)),
                &Heard::default(),
                &|| true,
            );
            result.unwrap().get("linear/top1_shuffled_labels").unwrap()
        };
        let mean = (0..seeds).map(top1).sum::<f64>() / seeds as f64;
        assert!((0.1..0.4).contains(&mean), "{mean}");
    }

    #[test]
    fn top5_is_reported_from_ten_classes_on() {
        let result = evaluate(&config(), blobs(10, 400, 100), noise(10, 400, 100));
        assert!(result.get("linear/top5").unwrap() >= result.get("linear/top1").unwrap());
    }

    #[test]
    fn the_kept_classifier_gives_the_predictions_from_features_as_they_are() {
        for standardize in [true, false] {
            let features = blobs(4, 100, 50);
            let result = evaluate(&LinearProbeConfig { standardize, ..config() }, features.clone(), noise(4, 100, 50));
            let table = |name| &result.tables.iter().find(|(table, _)| table.name == name).unwrap().1;
            let fc = read_weights([Ok(table("classifier").clone())]).unwrap();
            assert_eq!((fc[0].0.as_str(), fc[0].1.as_slice()), ("fc.weight", &[4, 8][..]));
            let predicted = table("predictions").column(2).as_primitive::<arrow::datatypes::Int64Type>();
            let score = table("predictions").column(3).as_primitive::<Float64Type>();
            for (i, x) in features.test.rows.chunks(8).enumerate() {
                let logit = |c: usize| fc[1].2[c] + x.iter().zip(&fc[0].2[c * 8..]).map(|(x, w)| x * w).sum::<f32>();
                let best = (0..4).max_by(|&a, &b| logit(a).total_cmp(&logit(b))).unwrap();
                let share = logit(best).exp() / (0..4).map(|c| logit(c).exp()).sum::<f32>();
                assert_eq!(best as i64, predicted.value(i));
                assert!((share as f64 - score.value(i)).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let config = LinearProbeConfig { epochs: 3, batch_size: 300, ..config() };
            pool.install(|| evaluate(&config, blobs(7, 700, 90), noise(7, 700, 90)))
        };
        let one = with(1);
        assert_eq!(one, with(2));
        assert_eq!(one, with(5));
    }

    #[test]
    fn a_batch_larger_than_the_training_set_is_the_training_set() {
        let at = |batch_size| {
            let config = LinearProbeConfig { epochs: 2, batch_size, ..config() };
            evaluate(&config, blobs(2, 60, 20), noise(2, 60, 20))
        };
        assert_eq!(at(60), at(4096));
        // With 59 the last batch of an epoch has a single sample, which counts.
        assert_ne!(at(60).tables, at(59).tables);
    }

    #[test]
    fn divergence_names_the_key_to_change() {
        let config = LinearProbeConfig { epochs: 50, batch_size: 64, base_lr: 1e30, weight_decay: 1.0, ..config() };
        let error = super::evaluate(&config, 3, scored(blobs(2, 64, 8), noise(2, 64, 8)), &Heard::default(), &|| true);
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("linear probe on trained features: the loss became"), "{text}");
        assert!(text.ends_with("lower linear_probe.base_lr"), "{text}");
    }

    #[test]
    fn without_labels_there_are_no_scores_but_a_reason() {
        let progress = Heard::default();
        let features = unlabelled(blobs(2, 20, 10));
        let result = super::evaluate(&config(), 3, scored(features, noise(2, 20, 10)), &progress, &|| true).unwrap();
        assert_eq!(result, Evaluation::skipped("the train split has no labels".into()));
        assert_eq!(progress.lines(), ["linear_probe: skipped, the train split has no labels"]);
    }
}
