//! The crops of a batch, on the host and on a device.

use crate::{backend::Backend, dataset::augment::cuda::Pieces, ops::conv2d::Size};

/// The crops of a batch on the host.
#[derive(Clone, Debug)]
pub struct Batch<E> {
    /// Index of each sample in the data set.
    pub samples: Vec<i64>,
    /// Label of each sample, -1 if it has none.
    pub labels: Vec<i64>,
    /// Both full views, then the small crops, for this rank's share of the samples.
    pub crops: Vec<Crop<E>>,
}

/// One crop of every image of a batch, or of a rank's share of it.
#[derive(Clone, Debug)]
pub struct Crop<E> {
    /// Normalised images [n, size, size, 3].
    pub images: Vec<E>,
    /// Height and width in pixels.
    pub size: usize,
}

/// A batch of decoded images. Their views are drawn at random, but not computed yet.
#[derive(Clone, Debug)]
pub struct RawBatch {
    /// Index of each sample in the data set.
    pub samples: Vec<i64>,
    /// Label of each sample, -1 if it has none.
    pub labels: Vec<i64>,
    /// Both full views, then the small crops, for this rank's share of the samples.
    pub pieces: Pieces,
}

/// A batch in the memory of the device. Several steps may train on it.
pub struct Loaded<B: Backend> {
    /// Index of each sample in the data set.
    pub samples: Vec<i64>,
    /// Label of each sample, -1 if it has none.
    pub labels: Vec<i64>,
    /// Both full views, then the small crops, for this rank's share of the samples: images [n, size, size, 3] as networks read
    /// them.
    pub crops: Vec<(B::Buffer, Size)>,
}

impl<B: Backend> Loaded<B> {
    /// Copies `batch` to the device.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(on: &B, batch: Batch<B::Real>) -> Result<Self, B::Error> {
        let Batch { samples, labels, crops } = batch;
        let crop = |Crop { images, size }: Crop<B::Real>| {
            let size = Size { n: images.len() / (size * size * 3), h: size, w: size };
            Ok((on.images(images)?, size))
        };
        Ok(Self { crops: crops.into_iter().map(crop).collect::<Result<_, _>>()?, samples, labels })
    }
}
