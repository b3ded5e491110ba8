//! The crops of a batch, and how they come to a device.

use dfdx::prelude::Cpu;

use super::loader::{draw, make};
use crate::{
    backend::{Backend, Gpu, Host},
    dataset::{
        Split,
        augment::{Pipeline, cuda::Pieces},
    },
    ops::{conv2d::Size, cuda::Bridge, tensor::TensorDevice},
};

/// The crops of a batch on the host.
#[derive(Clone, Debug)]
pub struct Batch<E> {
    /// Index of each sample in the data set.
    pub samples: Vec<i64>,
    /// Label of each sample, -1 where there is none.
    pub labels: Vec<i64>,
    /// Both full views, then the small crops.
    pub crops: Vec<Crop<E>>,
}

/// One crop of every image of a batch.
#[derive(Clone, Debug)]
pub struct Crop<E> {
    /// Normalised images [n, size, size, 3].
    pub images: Vec<E>,
    /// Height and width in pixels.
    pub size: usize,
}

/// A batch of decoded images, their views drawn but not made.
#[derive(Clone, Debug)]
pub struct RawBatch {
    /// Index of each sample in the data set.
    pub samples: Vec<i64>,
    /// Label of each sample, -1 where there is none.
    pub labels: Vec<i64>,
    /// Both full views, then the small crops.
    pub pieces: Pieces,
}

/// A batch where a device trains on it, as often as wanted.
pub struct Loaded<B: Backend> {
    /// Index of each sample in the data set.
    pub samples: Vec<i64>,
    /// Label of each sample, -1 where there is none.
    pub labels: Vec<i64>,
    /// Both full views, then the small crops: images [n, size, size, 3] as networks read them.
    pub crops: Vec<(B::Buffer, Size)>,
}

impl<B: Backend> Loaded<B> {
    /// `batch` on a device.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(on: &B, batch: Batch<B::Real>) -> Result<Self, B::Error> {
        let Batch { samples, labels, crops } = batch;
        let n = samples.len();
        let crop = |Crop { images, size }: Crop<B::Real>| Ok((on.images(images)?, Size { n, h: size, w: size }));
        Ok(Self { crops: crops.into_iter().map(crop).collect::<Result<_, _>>()?, samples, labels })
    }
}

/// A device that images are prepared for.
pub trait Feed: Backend {
    /// What a loader makes of a batch ahead of its step.
    type Prepared: Send + 'static;

    /// Prepares the crops of `samples` in an epoch.
    ///
    /// # Errors
    /// When an image cannot be read.
    fn prepare(
        split: &Split,
        crops: &[(Pipeline, usize)],
        seed: u64,
        epoch: u64,
        samples: &[u32],
    ) -> anyhow::Result<Self::Prepared>;

    /// What was prepared, on the device.
    ///
    /// # Errors
    /// When the device fails.
    fn load(&self, prepared: Self::Prepared) -> Result<Loaded<Self>, Self::Error>;
}

/// The host trains on what it augmented.
impl Feed for Host<f32>
where
    Cpu: TensorDevice<f32>,
{
    type Prepared = Batch<f32>;

    fn prepare(
        split: &Split,
        crops: &[(Pipeline, usize)],
        seed: u64,
        epoch: u64,
        samples: &[u32],
    ) -> anyhow::Result<Batch<f32>> {
        make(split, crops, seed, epoch, samples)
    }

    fn load(&self, batch: Batch<f32>) -> Result<Loaded<Self>, Self::Error> {
        Loaded::new(self, batch)
    }
}

/// Decoded and drawn on the host: the device makes the views, and no augmented image passes through the host.
impl<D: TensorDevice<f32> + Bridge<f32>> Feed for Gpu<D> {
    type Prepared = RawBatch;

    fn prepare(
        split: &Split,
        crops: &[(Pipeline, usize)],
        seed: u64,
        epoch: u64,
        samples: &[u32],
    ) -> anyhow::Result<RawBatch> {
        draw(split, crops, seed, epoch, samples)
    }

    fn load(&self, batch: RawBatch) -> Result<Loaded<Self>, Self::Error> {
        let RawBatch { samples, labels, pieces } = batch;
        let n = samples.len();
        let size = |size: usize| Size { n, h: size, w: size };
        let views = pieces.augment(self.device(), self.math().scalar())?;
        Ok(Loaded { crops: views.into_iter().zip(pieces.sizes().map(size)).collect(), samples, labels })
    }
}
