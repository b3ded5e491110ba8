//! Brings images to the device. Either the host or the GPU augments them.

use super::{
    batch::{Batch, Loaded, RawBatch},
    views::{Wanted, draw, make},
};
use crate::{
    backend::{Backend, Gpu, Host},
    ops::{conv2d::Size, tensor::GpuTensors},
};

/// A device that can receive batches.
pub trait Feed: Backend {
    /// The form in which a loader prepares a batch ahead of its step.
    type Prepared: Send + 'static;

    /// Prepares the crops on the host.
    ///
    /// # Errors
    /// When an image cannot be read.
    fn prepare(wanted: Wanted) -> anyhow::Result<Self::Prepared>;

    /// Moves prepared crops to the device.
    ///
    /// # Errors
    /// When the device fails.
    fn load(&self, prepared: Self::Prepared) -> Result<Loaded<Self>, Self::Error>;
}

/// The host augments, and trains on the result.
impl Feed for Host<f32> {
    type Prepared = Batch<f32>;

    fn prepare(wanted: Wanted) -> anyhow::Result<Batch<f32>> {
        make(wanted)
    }

    fn load(&self, batch: Batch<f32>) -> Result<Loaded<Self>, Self::Error> {
        Loaded::new(self, batch)
    }
}

/// The host decodes images and draws random numbers. The GPU computes the views, so no augmented image passes through the host.
impl<D: GpuTensors> Feed for Gpu<D> {
    type Prepared = RawBatch;

    fn prepare(wanted: Wanted) -> anyhow::Result<RawBatch> {
        draw(wanted)
    }

    fn load(&self, batch: RawBatch) -> Result<Loaded<Self>, Self::Error> {
        let RawBatch { samples, labels, pieces } = batch;
        let n = pieces.count();
        let size = |size: usize| Size { n, h: size, w: size };
        let views = pieces.augment(self.device(), self.math().scalar())?;
        Ok(Loaded { crops: views.into_iter().zip(pieces.sizes().map(size)).collect(), samples, labels })
    }
}
