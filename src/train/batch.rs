//! The crops of a batch, on the host and on a device.

use crate::{backend::Backend, dataset::augment::cuda::Pieces, ops::conv2d::Size};

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
