//! Batches of augmented views, made on rayon's workers ahead of the step that trains on them.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

use anyhow::Context;
use rand::seq::SliceRandom;
use rayon::prelude::*;

use super::Batch;
use crate::{
    dataset::{
        Split,
        augment::{AugmentationsConfig, Pipeline},
    },
    ops::random::{Purpose, stream},
};

/// Batches made in advance.
const AHEAD: usize = 2;

/// Yields the batches of a training run in order, from any step on.
pub struct Loader {
    batches: Receiver<anyhow::Result<Batch<f32>>>,
}

impl Loader {
    /// Starts making batches of the steps `first..last`. What a batch holds depends on `seed` and its step alone.
    pub fn start(
        split: Arc<Split>,
        augmentations: &AugmentationsConfig,
        seed: u64,
        batch_size: usize,
        first: u64,
        last: u64,
    ) -> Self {
        let (sender, batches) = sync_channel(AHEAD);
        let pipelines = [&augmentations.view1, &augmentations.view2].map(|view| Pipeline::new(view, augmentations));
        let size = augmentations.size as usize;
        let steps_per_epoch = (split.len() / batch_size) as u64;
        thread::spawn(move || {
            let mut order = (u64::MAX, Vec::new());
            for step in first..last {
                let (epoch, position) = (step / steps_per_epoch, (step % steps_per_epoch) as usize);
                if order.0 != epoch {
                    order = (epoch, epoch_order(split.len(), seed, epoch));
                }
                let samples = &order.1[position * batch_size..(position + 1) * batch_size];
                let batch = make(&split, &pipelines, size, seed, epoch, samples);
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
    pub fn next(&self) -> anyhow::Result<Batch<f32>> {
        self.batches.recv().context("the loader has ended")?
    }
}

/// The order in which an epoch visits the samples.
fn epoch_order(len: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    order.shuffle(&mut stream(seed, Purpose::Shuffle, epoch, 0, 0));
    order
}

/// Augments both views of `samples`.
fn make(
    split: &Split,
    pipelines: &[Pipeline; 2],
    size: usize,
    seed: u64,
    epoch: u64,
    samples: &[u32],
) -> anyhow::Result<Batch<f32>> {
    let len = size * size * 3;
    let mut views = [(); 2].map(|()| vec![0.0; samples.len() * len]);
    let [view1, view2] = &mut views;
    let targets = view1.par_chunks_mut(len).zip(view2.par_chunks_mut(len));
    samples.par_iter().zip(targets).try_for_each(|(sample, (view1, view2))| {
        let image = split.image(*sample as usize)?;
        for (view, (pipeline, target)) in pipelines.iter().zip([view1, view2]).enumerate() {
            let mut random = stream(seed, Purpose::Augment, epoch, *sample as u64, view as u32);
            pipeline.apply(&image, &mut random, target);
        }
        anyhow::Ok(())
    })?;
    let labels = samples.iter().map(|s| split.label(*s as usize).unwrap_or(-1)).collect();
    Ok(Batch { samples: samples.iter().map(|s| *s as i64).collect(), labels, views, size })
}
