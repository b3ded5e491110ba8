//! A training as it runs: images from shards, decoded and augmented ahead of the step that trains on them.

use super::{
    Case, Options, Workload,
    augment::Recipe,
    images::{Encoding, Images},
    step::{self, Network},
};
use crate::train::Loader;

/// Images unless another number is asked for.
const IMAGES: usize = 10_000;

pub(super) fn prepare(case: Case, options: &Options) -> anyhow::Result<Workload> {
    let network = Network::Small;
    let experiment = network.experiment(options);
    let mut trainer = step::trainer(case, &experiment)?;
    let batch = experiment.batch_size;
    let count = options.images.unwrap_or(IMAGES).max(batch);
    let images = Images::new(Encoding::Png, experiment.augmentations.size, count, options.save_images.as_deref())?;
    let steps_per_epoch = (count / batch) as u64;
    let loader = Loader::start(
        images.split.clone(),
        &Recipe::Cifar.augmentations(),
        experiment.seed,
        batch,
        steps_per_epoch,
        0..u64::MAX,
    );
    let what = format!("{count} images in shards, augmented; {}", network.describe(options));
    Ok(Workload::new(what, Some(batch), move || {
        // The folder stays as long as there are repetitions.
        let _ = &images;
        trainer.step(&loader.next()?).map(drop)
    }))
}
