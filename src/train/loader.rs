//! Prepares batches of augmented views on rayon's threads, ahead of the step that trains on them.

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

use super::{
    feed::Feed,
    views::{Wanted, crops},
};
use crate::{
    dataset::{Split, augment::TrainingSection},
    ops::random::{Purpose, stream},
    ranks::Ranks,
};

/// Number of batches to prepare in advance.
const AHEAD: usize = 2;

/// Yields the batches of a training in order, from any step on.
pub struct Loader<B: Feed> {
    batches: Receiver<anyhow::Result<B::Prepared>>,
}

impl<B: Feed> Loader<B> {
    /// Starts preparing this rank's share of the batches of `steps`. A batch depends only on `seed` and its step.
    pub fn start(
        ranks: &Ranks,
        split: Arc<Split>,
        augmentations: &TrainingSection,
        seed: u64,
        batch_size: usize,
        steps_per_epoch: u64,
        steps: Range<u64>,
    ) -> Self {
        let (sender, batches) = sync_channel(AHEAD);
        let (crops, share) = (crops(augmentations), ranks.share(batch_size));
        thread::spawn(move || {
            let mut order = (u64::MAX, Vec::new());
            for step in steps {
                let (epoch, position) = (step / steps_per_epoch, (step % steps_per_epoch) as usize);
                if order.0 != epoch {
                    order = (epoch, epoch_order(split.len(), seed, epoch));
                }
                let samples = &order.1[position * batch_size..(position + 1) * batch_size];
                let own = &samples[share.clone()];
                let batch = B::prepare(Wanted { split: &split, crops: &crops, seed, epoch, samples, own });
                // Sending fails once training has stopped.
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
