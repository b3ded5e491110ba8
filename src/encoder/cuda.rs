//! Encoders on a GPU: weights, gradients and activations stay on the device.

use super::{Encoder, resnet, vit};
use crate::ops::{
    conv2d::{Size, cuda::Math},
    cuda::{Buffer, Gpu, GpuError},
};

/// A branch's flat buffers on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Arenas<'a> {
    pub gpu: &'a Gpu,
    pub math: Math,
    /// Address of the parameters (f32).
    pub params: u64,
    /// Address of the parameters in the arithmetic's storage; `params` itself in f32.
    pub kernels: u64,
    /// Address of the running statistics (f32).
    pub buffers: u64,
}

impl Arenas<'_> {
    /// Address of a parameter.
    pub fn param(&self, index: usize) -> u64 {
        self.params + 4 * index as u64
    }

    /// Address of a parameter as convolutions read it.
    pub fn kernel(&self, index: usize) -> u64 {
        self.kernels + (self.math.scalar().bytes() * index) as u64
    }

    /// Address of a running statistic.
    pub fn buffer(&self, index: usize) -> u64 {
        self.buffers + 4 * index as u64
    }
}

/// Where batch norm's statistics come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// From the batch; running statistics move.
    Batch,
    /// From the running statistics (eval mode).
    Running,
}

/// What the backward pass needs of a forward pass.
#[derive(Debug)]
pub enum SavedGpu {
    Resnet(resnet::SavedGpu),
    Vit(vit::SavedGpu),
}

impl Encoder {
    /// Features [n, feature_dim] (f32) of images [n, h, w, 3] in the arithmetic's storage; with `keep`, what
    /// [`Encoder::backward_gpu`] needs, too.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_gpu(
        &self,
        on: &Arenas,
        statistics: Statistics,
        images: u64,
        size: Size,
        keep: bool,
    ) -> Result<(Buffer, Option<SavedGpu>), GpuError> {
        match self {
            Encoder::Resnet(net) => {
                let (features, saved) = net.forward_gpu(on, statistics, images, size, keep)?;
                Ok((features, saved.map(SavedGpu::Resnet)))
            }
            Encoder::Vit(net) => {
                let (features, saved) = net.forward_gpu(on, images, size, keep)?;
                Ok((features, saved.map(SavedGpu::Vit)))
            }
        }
    }

    /// Adds to `gradients` (address of an f32 buffer laid out like the parameters) those of one forward pass, from its
    /// features' gradient (f32).
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When `saved` is of another kind of network.
    pub fn backward_gpu(
        &self,
        on: &Arenas,
        images: u64,
        saved: SavedGpu,
        g_features: u64,
        gradients: u64,
    ) -> Result<(), GpuError> {
        match (self, saved) {
            (Encoder::Resnet(net), SavedGpu::Resnet(saved)) => {
                net.backward_gpu(on, images, saved, g_features, gradients, 0)
            }
            (Encoder::Vit(net), SavedGpu::Vit(saved)) => net.backward_gpu(on, images, saved, g_features, gradients),
            (Encoder::Resnet(_), SavedGpu::Vit(_)) | (Encoder::Vit(_), SavedGpu::Resnet(_)) => {
                panic!("saved by another kind of network")
            }
        }
    }
}
