//! The crops of a batch on a GPU, wherever they are augmented.

use crate::{
    ops::{
        batch_norm::cuda::Rows,
        conv2d::{Size, cuda::Math},
        cuda::{Buffer, Gpu, GpuError, Scalar},
    },
    train::{Batch, RawBatch},
};

/// A batch that a GPU trains on.
pub trait GpuBatch {
    /// Index of each sample in the data set.
    fn samples(&self) -> &[i64];

    /// Label of each sample, -1 where there is none.
    fn labels(&self) -> &[i64];

    /// Both full views, then the small crops, as the encoder reads them: [n, size, size, 3] in the arithmetic's storage.
    ///
    /// # Errors
    /// When the device fails.
    fn crops(&self, gpu: &Gpu, math: Math) -> Result<Vec<(Buffer, Size)>, GpuError>;
}

/// Augmented on the CPU: the views are uploaded.
impl GpuBatch for Batch<f32> {
    fn samples(&self) -> &[i64] {
        &self.samples
    }

    fn labels(&self) -> &[i64] {
        &self.labels
    }

    fn crops(&self, gpu: &Gpu, math: Math) -> Result<Vec<(Buffer, Size)>, GpuError> {
        let n = self.samples.len();
        let crop = |images: &[f32], size: usize| {
            let wide = gpu.upload(images)?;
            let size = Size { n, h: size, w: size };
            match math.scalar() {
                Scalar::F32 => Ok((wide, size)),
                Scalar::F16 => {
                    let narrow = gpu.take(Scalar::F16, images.len())?;
                    Rows::narrow(gpu, Scalar::F16, wide.view(), narrow.view())?;
                    Ok((narrow, size))
                }
            }
        };
        self.crops.iter().map(|c| crop(&c.images, c.size)).collect()
    }
}

/// A batch whose crops lie on a GPU, to be trained on as often as wanted: no upload is part of a step on it.
pub struct KeptBatch {
    samples: Vec<i64>,
    labels: Vec<i64>,
    crops: Vec<(Buffer, Size)>,
}

impl KeptBatch {
    /// What `batch` has, as `math` stores it.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(gpu: &Gpu, math: Math, batch: &Batch<f32>) -> Result<Self, GpuError> {
        Ok(Self { samples: batch.samples.clone(), labels: batch.labels.clone(), crops: batch.crops(gpu, math)? })
    }
}

impl GpuBatch for KeptBatch {
    fn samples(&self) -> &[i64] {
        &self.samples
    }

    fn labels(&self) -> &[i64] {
        &self.labels
    }

    /// Copies, since a step does with its crops what it likes. The arithmetic is the one that they were made for.
    fn crops(&self, _gpu: &Gpu, _math: Math) -> Result<Vec<(Buffer, Size)>, GpuError> {
        self.crops.iter().map(|(images, size)| Ok((images.try_clone()?, *size))).collect()
    }
}

/// Decoded and drawn on the CPU: the device makes the views, and no augmented image passes through the host.
impl GpuBatch for RawBatch {
    fn samples(&self) -> &[i64] {
        &self.samples
    }

    fn labels(&self) -> &[i64] {
        &self.labels
    }

    fn crops(&self, gpu: &Gpu, math: Math) -> Result<Vec<(Buffer, Size)>, GpuError> {
        let n = self.samples.len();
        let size = |size: usize| Size { n, h: size, w: size };
        Ok(self.pieces.augment(gpu, math.scalar())?.into_iter().zip(self.pieces.sizes().map(size)).collect())
    }
}
