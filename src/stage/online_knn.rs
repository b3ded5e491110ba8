//! Measures kNN accuracy during training, on a fixed part of both splits. It is a diagnostic, and does not affect training.

use std::sync::Arc;

use rayon::prelude::*;

use super::{nearest::Bank, votes::Vote};
use crate::{
    artifact::Artifact,
    dataset::{Split, augment::EvalTransform},
    ops::normalize::normalize_rows,
    tables,
    train::{PretrainConfig, Trainer, Trains},
};

/// The most images of the training split and of the test split to use, evenly spaced.
const TRAIN: usize = 2048;
const TEST: usize = 512;
/// Number of voting neighbours, and the temperature of their votes (DINO's protocol).
const K: usize = 20;
const TEMPERATURE: f64 = 0.07;
/// Images per forward pass.
const BATCH: usize = 64;

/// A kNN measurement, with the images that it uses.
pub struct OnlineKnn {
    /// Steps between two scores.
    every: u64,
    train: Part,
    test: Part,
    transform: EvalTransform,
    size: usize,
}

/// Labelled images of a split.
struct Part {
    split: Arc<Split>,
    samples: Vec<usize>,
    labels: Vec<usize>,
}

impl Part {
    fn new(split: Arc<Split>, most: usize) -> Self {
        let stride = split.len().div_ceil(most).max(1);
        let labelled = (0..split.len()).step_by(stride).filter_map(|sample| {
            let label = split.label(sample)?;
            Some((sample, usize::try_from(label).ok()?))
        });
        let (samples, labels) = labelled.unzip();
        Self { split, samples, labels }
    }
}

impl OnlineKnn {
    /// The measurement that the spec requests. None if it requests none, there is no test split, or a split has no labelled
    /// images.
    ///
    /// # Errors
    /// When the test split cannot be opened.
    pub fn new(
        config: &PretrainConfig,
        train: &Arc<Split>,
        data: &Artifact,
        steps_per_epoch: u64,
    ) -> anyhow::Result<Option<Self>> {
        let shards = data.files_of(&tables::TEST);
        if config.health.knn_every_epochs == 0 || shards.is_empty() {
            return Ok(None);
        }
        let train = Part::new(train.clone(), TRAIN);
        let test = Part::new(Arc::new(Split::open(&shards)?), TEST);
        let augmentations = config.augmentations.of_scores();
        let every = config.health.knn_every_epochs as u64 * steps_per_epoch;
        let (transform, size) = (EvalTransform::new(&augmentations), augmentations.size as usize);
        let any = !train.samples.is_empty() && !test.samples.is_empty();
        Ok(any.then_some(Self { every, train, test, transform, size }))
    }

    /// Whether to measure after this many steps.
    pub fn is_due(&self, steps: u64) -> bool {
        steps.is_multiple_of(self.every)
    }

    /// Top-1 accuracy of the online encoder in eval mode.
    ///
    /// # Errors
    /// When an image cannot be read.
    pub fn top1<B: Trains>(&self, trainer: &Trainer<B>) -> anyhow::Result<f64> {
        let (train, test) = (self.embed(&self.train, trainer)?, self.embed(&self.test, trainer)?);
        let labels = self.train.labels.iter().chain(&self.test.labels);
        let ks = [K.min(self.train.samples.len())];
        let vote = Vote { ks: &ks, temperature: TEMPERATURE, classes: labels.max().map_or(0, |most| most + 1) };
        let dim = trainer.model().encoder.feature_dim();
        // So few that a GPU would save nothing.
        let bank = Bank::new(None, &train, dim, K)?;
        let nearest = |queries: &[f32], k| bank.top_k(queries, k);
        let predicted = vote.classify(nearest, &[&self.train.labels], &test, dim, |_| true)?.expect("nothing stops it");
        let right = predicted[0][0].iter().zip(&self.test.labels).filter(|((class, _), label)| class == *label).count();
        Ok(right as f64 / self.test.labels.len() as f64)
    }

    /// Features of unit length.
    fn embed<B: Trains>(&self, part: &Part, trainer: &Trainer<B>) -> anyhow::Result<Vec<f32>> {
        let image = self.size * self.size * 3;
        let mut features = Vec::new();
        for samples in part.samples.chunks(BATCH) {
            let mut images = vec![0.0; samples.len() * image];
            images.par_chunks_mut(image).zip(samples).try_for_each(|(out, sample)| {
                let wanted = |size| (self.transform.reads(size), ());
                self.transform.apply(&part.split.part(*sample, wanted)?.0, out);
                anyhow::Ok(())
            })?;
            features.extend(trainer.features(images, samples.len(), self.size)?);
        }
        normalize_rows(&mut features, trainer.model().encoder.feature_dim());
        Ok(features)
    }
}
