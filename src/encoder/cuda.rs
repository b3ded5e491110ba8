//! Encoders on a GPU: weights, gradients and activations stay on the device.

use std::ops::Range;

use super::{Encoder, resnet, vit};
use crate::ops::{
    conv2d::{Size, cuda::Math},
    cuda::{Buffer, Gpu, GpuError, View},
};

/// A branch's flat buffers on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Arenas<'a> {
    pub gpu: &'a Gpu,
    pub math: Math,
    /// The parameters (f32).
    pub params: View<'a>,
    /// The parameters in the arithmetic's storage; `params` themselves in f32.
    pub kernels: View<'a>,
    /// The running statistics (f32).
    pub buffers: View<'a>,
}

impl<'a> Arenas<'a> {
    /// Some parameters.
    pub fn param(&self, range: &Range<usize>) -> View<'a> {
        self.params.part(range.clone())
    }

    /// Some parameters as convolutions read them.
    pub fn kernel(&self, range: &Range<usize>) -> View<'a> {
        self.kernels.part(range.clone())
    }

    /// Some running statistics.
    pub fn buffer(&self, range: &Range<usize>) -> View<'a> {
        self.buffers.part(range.clone())
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
        images: View,
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

    /// Adds to `gradients` (f32, laid out like the parameters) those of one forward pass, from its features' gradient (f32).
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When `saved` is of another kind of network.
    pub fn backward_gpu(
        &self,
        on: &Arenas,
        images: View,
        saved: SavedGpu,
        g_features: View,
        gradients: View,
    ) -> Result<(), GpuError> {
        match (self, saved) {
            (Encoder::Resnet(net), SavedGpu::Resnet(saved)) => {
                net.backward_gpu(on, images, saved, g_features, gradients, None)
            }
            (Encoder::Vit(net), SavedGpu::Vit(saved)) => net.backward_gpu(on, images, saved, g_features, gradients),
            (Encoder::Resnet(_), SavedGpu::Vit(_)) | (Encoder::Vit(_), SavedGpu::Resnet(_)) => {
                panic!("saved by another kind of network")
            }
        }
    }
}
