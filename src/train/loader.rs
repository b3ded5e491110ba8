//! Batches of augmented views, made on rayon's workers ahead of the step that trains on them.

use std::{
    ops::Range,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

use anyhow::Context;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{
    Feed,
    batch::{Batch, Crop, RawBatch},
};
use crate::{
    dataset::{
        Split,
        augment::{
            AugmentationsConfig, Pipeline,
            cuda::{Piece, Pieces},
        },
    },
    ops::random::{Purpose, stream},
};

/// Batches made in advance.
const AHEAD: usize = 2;

/// Yields the batches of a training run in order, from any step on.
pub struct Loader<B: Feed> {
    batches: Receiver<anyhow::Result<B::Prepared>>,
}

impl<B: Feed> Loader<B> {
    /// Starts preparing the batches of `steps`. What a batch shows depends on `seed` and its step alone.
    pub fn start(
        split: Arc<Split>,
        augmentations: &AugmentationsConfig,
        seed: u64,
        batch_size: usize,
        steps_per_epoch: u64,
        steps: Range<u64>,
    ) -> Self {
        let (sender, batches) = sync_channel(AHEAD);
        let crops = crops(augmentations);
        thread::spawn(move || {
            let mut order = (u64::MAX, Vec::new());
            for step in steps {
                let (epoch, position) = (step / steps_per_epoch, (step % steps_per_epoch) as usize);
                if order.0 != epoch {
                    order = (epoch, epoch_order(split.len(), seed, epoch));
                }
                let samples = &order.1[position * batch_size..(position + 1) * batch_size];
                let batch = B::prepare(&split, &crops, seed, epoch, samples);
                // The receiver is gone when training has stopped.
                if sender.send(batch).is_err() {
                    return;
                }
            }
        });
        Self { batches }
    }

    /// The next batch.
    ///
    /// # Errors
    /// When an image cannot be read.
    pub fn next(&self) -> anyhow::Result<B::Prepared> {
        self.batches.recv().context("the loader has ended")?
    }
}

/// The order in which an epoch visits the samples.
fn epoch_order(len: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    order.shuffle(&mut stream(seed, Purpose::Shuffle, epoch, 0, 0));
    order
}

/// The pipeline of each crop and its size in pixels: both full views, then the small crops.
fn crops(config: &AugmentationsConfig) -> Vec<(Pipeline, usize)> {
    let crop = |view, size: u32| (Pipeline::new(view, size, config), size as usize);
    let mut crops = vec![crop(&config.view1, config.size), crop(&config.view2, config.size)];
    if let Some(local) = &config.local_crops {
        crops.extend((0..local.count).map(|_| crop(&local.view, local.size)));
    }
    crops
}

/// The crops that `samples` have in an epoch of training, in full: what the network sees of them.
///
/// # Errors
/// When an image cannot be read.
pub fn augment(
    split: &Split,
    augmentations: &AugmentationsConfig,
    seed: u64,
    epoch: u64,
    samples: &[u32],
) -> anyhow::Result<Batch<f32>> {
    make(split, &crops(augmentations), seed, epoch, samples)
}

/// Augments every crop of `samples`.
pub(super) fn make(
    split: &Split,
    crops: &[(Pipeline, usize)],
    seed: u64,
    epoch: u64,
    samples: &[u32],
) -> anyhow::Result<Batch<f32>> {
    let mut images: Vec<Vec<f32>> = crops.iter().map(|(_, size)| vec![0.0; samples.len() * size * size * 3]).collect();
    // The places of each sample's crops.
    let mut places: Vec<Vec<&mut [f32]>> = samples.iter().map(|_| Vec::with_capacity(crops.len())).collect();
    for (images, (_, size)) in images.iter_mut().zip(crops) {
        places.iter_mut().zip(images.chunks_exact_mut(size * size * 3)).for_each(|(all, place)| all.push(place));
    }
    samples.par_iter().zip(places).try_for_each(|(sample, places)| {
        let image = split.image(*sample as usize)?;
        for (view, ((pipeline, _), place)) in crops.iter().zip(places).enumerate() {
            pipeline.apply(&image, &mut view_stream(seed, epoch, *sample, view), place);
        }
        anyhow::Ok(())
    })?;
    let crops = images.into_iter().zip(crops).map(|(images, (_, size))| Crop { images, size: *size }).collect();
    let (samples, labels) = numbers(split, samples);
    Ok(Batch { samples, labels, crops })
}

/// Decodes `samples` and draws every crop of them.
pub(super) fn draw(
    split: &Split,
    crops: &[(Pipeline, usize)],
    seed: u64,
    epoch: u64,
    samples: &[u32],
) -> anyhow::Result<RawBatch> {
    let pipelines: Vec<Pipeline> = crops.iter().map(|(pipeline, _)| pipeline.clone()).collect();
    let piece = |sample: &u32| {
        let image = split.image(*sample as usize)?;
        anyhow::Ok(Piece::new(&image, &pipelines, |view| view_stream(seed, epoch, *sample, view)))
    };
    let pieces: Vec<Piece> = samples.par_iter().map(piece).collect::<anyhow::Result<_>>()?;
    let (samples, labels) = numbers(split, samples);
    Ok(RawBatch { samples, labels, pieces: Pieces::new(&pipelines, &pieces) })
}

/// What is random of one view of a sample in an epoch.
fn view_stream(seed: u64, epoch: u64, sample: u32, view: usize) -> ChaCha8Rng {
    stream(seed, Purpose::Augment, epoch, sample as u64, view as u32)
}

/// Index and label of each sample; -1 where there is none.
fn numbers(split: &Split, samples: &[u32]) -> (Vec<i64>, Vec<i64>) {
    let label = |sample: &u32| split.label(*sample as usize).unwrap_or(-1);
    (samples.iter().map(|s| *s as i64).collect(), samples.iter().map(label).collect())
}
