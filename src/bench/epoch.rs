//! Measures a training as it runs: images from shards are decoded and augmented ahead of the step that trains on them.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    Case, Options, Workload,
    augment::Recipe,
    images::Images,
    step::{self, Network},
};
use crate::train::{Loader, OnDevice, Sections, Trains};

pub(super) fn prepare(case: Case, network: Network, recipe: Recipe, options: &Options) -> anyhow::Result<Workload> {
    let sections = network.sections(options);
    step::on_device(case, &sections, Epoch { case, sections: &sections, network, recipe, options })
}

/// Prepares the training on any device.
struct Epoch<'a> {
    case: Case,
    sections: &'a Sections,
    network: Network,
    recipe: Recipe,
    options: &'a Options,
}

impl OnDevice for Epoch<'_> {
    type Output = anyhow::Result<Workload>;

    fn run<B: Trains>(self, on: B) -> anyhow::Result<Workload> {
        let Self { case, sections, network, recipe, options } = self;
        let (mut trainer, flops) = step::trainer(on, case, sections)?;
        let batch = sections.batch_size;
        let (encoding, side, _) = recipe.images();
        let count = options.images.unwrap_or(recipe.epoch()).max(batch);
        let images = Images::new(encoding, side, count, options.save_images.as_deref())?;
        let loader = Loader::<B>::start(
            trainer.on().ranks(),
            images.split.clone(),
            &recipe.augmentations().of_training(),
            sections.seed,
            batch,
            (count / batch) as u64,
            0..u64::MAX,
        );
        let what = format!(
            "{count} {encoding:?} images of {side}x{side} in shards, augmented on {} threads; {}",
            rayon::current_num_threads(),
            network.describe(options)
        );
        let waited = Rc::new(Cell::new(Duration::ZERO));
        let waiting = waited.clone();
        let once = move || {
            // Keep the images, and so their folder, as long as there are repetitions.
            let _ = &images;
            let begun = Instant::now();
            let batch = loader.next()?;
            waiting.set(waiting.get() + begun.elapsed());
            trainer.step(&trainer.on().load(batch)?).map(drop)
        };
        Ok(Workload::new(what, Some(batch), once).training(flops).waiting(waited))
    }
}
