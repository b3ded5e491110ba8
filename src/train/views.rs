//! Computes the crops of images in an epoch of training.

use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::batch::{Batch, Crop, RawBatch};
use crate::{
    dataset::{
        CropBox, Part, Split,
        augment::{
            Drawn, Pipeline, TrainingSection,
            cuda::{Piece, Pieces},
            draw_all,
        },
    },
    ops::random::{Purpose, stream},
};

/// The pipeline of each crop and its size in pixels: both full views, then the small crops.
pub(super) fn crops(config: &TrainingSection) -> Vec<(Pipeline, usize)> {
    let crop = |view, size: u32| (Pipeline::new(view, size, [&config.mean, &config.std]), size as usize);
    let mut crops = vec![crop(config.view1, config.size), crop(config.view2, config.size)];
    if let Some(local) = config.local_crops {
        crops.extend((0..local.count).map(|_| crop(&local.view, local.size)));
    }
    crops
}

/// A request for the crops of some samples in an epoch.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub split: &'a Split,
    /// The result of [`crops`].
    pub crops: &'a [(Pipeline, usize)],
    pub seed: u64,
    pub epoch: u64,
    /// The samples of a batch.
    pub samples: &'a [u32],
    /// The samples whose crops to compute: a rank's share.
    pub own: &'a [u32],
}

/// All crops of `samples` in an epoch of training, as the network sees them.
///
/// # Errors
/// When an image cannot be read.
pub fn augment(
    split: &Split,
    augmentations: &TrainingSection,
    seed: u64,
    epoch: u64,
    samples: &[u32],
) -> anyhow::Result<Batch<f32>> {
    make(Wanted { split, crops: &crops(augmentations), seed, epoch, samples, own: samples })
}

/// Augments every crop.
pub(super) fn make(wanted: Wanted) -> anyhow::Result<Batch<f32>> {
    let Wanted { split, crops, samples, own, .. } = wanted;
    let mut images: Vec<Vec<f32>> = crops.iter().map(|(_, size)| vec![0.0; own.len() * size * size * 3]).collect();
    // The places of each sample's crops.
    let mut places: Vec<Vec<&mut [f32]>> = own.iter().map(|_| Vec::with_capacity(crops.len())).collect();
    for (images, (_, size)) in images.iter_mut().zip(crops) {
        places.iter_mut().zip(images.chunks_exact_mut(size * size * 3)).for_each(|(all, place)| all.push(place));
    }
    own.par_iter().zip(places).try_for_each(|(sample, places)| {
        let (image, views, _) = drawn(wanted, *sample)?;
        for (((pipeline, _), view), place) in crops.iter().zip(&views).zip(places) {
            pipeline.make(view, &image, place);
        }
        anyhow::Ok(())
    })?;
    let crops = images.into_iter().zip(crops).map(|(images, (_, size))| Crop { images, size: *size }).collect();
    let (samples, labels) = indices_and_labels(split, samples);
    Ok(Batch { samples, labels, crops })
}

/// Decodes the samples, and draws all their crops at random.
pub(super) fn draw(wanted: Wanted) -> anyhow::Result<RawBatch> {
    let Wanted { split, crops, samples, .. } = wanted;
    let pipelines: Vec<Pipeline> = crops.iter().map(|(pipeline, _)| pipeline.clone()).collect();
    let piece = |sample: &u32| {
        let (image, views, around) = drawn(wanted, *sample)?;
        anyhow::Ok(Piece::new(&image, views, around))
    };
    let pieces: Vec<Piece> = wanted.own.par_iter().map(piece).collect::<anyhow::Result<_>>()?;
    let (samples, labels) = indices_and_labels(split, samples);
    Ok(RawBatch { samples, labels, pieces: Pieces::new(&pipelines, &pieces) })
}

/// The crops drawn for a sample, the box around them, and the part of the image in that box.
fn drawn(wanted: Wanted, sample: u32) -> anyhow::Result<(Part, Vec<Drawn>, CropBox)> {
    let Wanted { split, crops, seed, epoch, .. } = wanted;
    let pipelines = crops.iter().map(|(pipeline, _)| pipeline);
    let random = |view| view_stream(seed, epoch, sample, view);
    let (image, (views, around)) = split.part(sample as usize, |size| {
        let (views, around) = draw_all(pipelines, size, random);
        (around, (views, around))
    })?;
    Ok((image, views, around))
}

/// The random numbers for one view of a sample in an epoch.
fn view_stream(seed: u64, epoch: u64, sample: u32, view: usize) -> ChaCha8Rng {
    stream(seed, Purpose::Augment, epoch, sample as u64, view as u32)
}

/// Index and label of each sample; -1 if it has no label.
fn indices_and_labels(split: &Split, samples: &[u32]) -> (Vec<i64>, Vec<i64>) {
    let label = |sample: &u32| split.label(*sample as usize).unwrap_or(-1);
    (samples.iter().map(|s| *s as i64).collect(), samples.iter().map(label).collect())
}
