//! Encoders: networks from images to features, with hand-written gradients. They know neither methods nor data sets.
//!
//! An encoder owns only its structure. Its weights and gradients are stored in flat buffers of the caller (see
//! [`crate::ops::arena`]), on the device that computes.

mod config;
mod cost;
mod resnet;
#[cfg(test)]
mod tests;
mod vit;

pub use config::*;

use crate::{
    backend::{Backend, Branch, Features, Learned, cost::Operation},
    ops::{Real, arena::Layout, conv2d::Size, matmul::MatmulPrecision},
    rule::Broken,
};

/// The structure of an encoder. The caller owns the flat buffers with its weights.
#[derive(Clone, Debug)]
pub enum Encoder {
    Resnet(resnet::ResNet),
    Vit(vit::Vit),
}

/// The results of a forward pass that the backward pass needs.
pub enum Saved<B: Backend> {
    Resnet(resnet::Saved<B>),
    Vit(vit::Saved<B>),
}

impl Encoder {
    /// The network that `config` describes. `size` is the usual height and width of its images in pixels.
    ///
    /// # Errors
    /// When the width multiplier yields a fractional number of channels, the heads do not divide the width, or the patches
    /// do not tile the images.
    pub fn new(config: &EncoderConfig, size: usize) -> Result<Self, Broken> {
        let resnet = |depths, bottleneck, config| {
            resnet::ResNet::new(resnet::Shape { depths, bottleneck }, config).map(Encoder::Resnet)
        };
        let vit = |(_, width, heads), config| {
            vit::Vit::new(vit::Shape { width, depth: 12, heads }, config, size).map(Encoder::Vit)
        };
        match config {
            EncoderConfig::Resnet18(config) => resnet([2, 2, 2, 2], false, config),
            EncoderConfig::Resnet34(config) => resnet([3, 4, 6, 3], false, config),
            EncoderConfig::Resnet50(config) => resnet([3, 4, 6, 3], true, config),
            EncoderConfig::Resnet101(config) => resnet([3, 4, 23, 3], true, config),
            EncoderConfig::VitTiny(config) => vit(VITS[0], config),
            EncoderConfig::VitSmall(config) => vit(VITS[1], config),
            EncoderConfig::VitBase(config) => vit(VITS[2], config),
        }
    }

    /// The same network with the factors of its matrix products (convolutions, linear layers) in the precision `matmul`.
    pub fn with_matmul_precision(mut self, matmul: MatmulPrecision) -> Self {
        match &mut self {
            Encoder::Resnet(net) => net.set_matmul_precision(matmul),
            Encoder::Vit(net) => net.set_matmul_precision(matmul),
        }
        self
    }

    /// Width of the features.
    pub fn feature_dim(&self) -> usize {
        match self {
            Encoder::Resnet(net) => net.feature_dim,
            Encoder::Vit(net) => net.feature_dim(),
        }
    }

    /// Trainable tensors, with torchvision's or timm's names.
    pub fn params(&self) -> &Layout {
        match self {
            Encoder::Resnet(net) => &net.params,
            Encoder::Vit(net) => &net.params,
        }
    }

    /// Tensors that are not trained, with torchvision's or timm's names: batch norm's running statistics, fixed positions.
    pub fn buffers(&self) -> &Layout {
        match self {
            Encoder::Resnet(net) => &net.buffers,
            Encoder::Vit(net) => &net.buffers,
        }
    }

    /// Whether training updates tensor `entry` of [`Encoder::params`]. If not, its gradient is zero, and the optimiser must
    /// skip the tensor, because weight decay would change it even so.
    pub fn trains(&self, entry: usize) -> bool {
        match self {
            Encoder::Resnet(_) => true,
            Encoder::Vit(net) => net.trains(entry),
        }
    }

    /// The operations of a forward pass over images of `size`, and of the backward pass after it.
    pub fn operations(&self, size: Size) -> Vec<Operation> {
        match self {
            Encoder::Resnet(net) => net.operations(size),
            Encoder::Vit(net) => net.operations(size),
        }
    }

    /// Initial parameters and buffers (torchvision's or MoCo-v3's distribution), determined by `seed`.
    pub fn init<E: Real>(&self, seed: u64) -> (Vec<E>, Vec<E>) {
        match self {
            Encoder::Resnet(net) => net.init(seed),
            Encoder::Vit(net) => net.init(seed),
        }
    }

    /// Features [n, feature_dim] of normalised images [n, h, w, 3] and, with `keep`, the results that [`Encoder::backward`]
    /// needs. The branch's statistics select training or evaluation mode.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward<B: Backend>(
        &self,
        on: &B,
        branch: &mut Branch<B>,
        images: &B::Buffer,
        size: Size,
        keep: bool,
    ) -> Features<B, Saved<B>> {
        match self {
            Encoder::Resnet(net) => {
                let (features, saved) = net.forward(on, branch, images, size, keep)?;
                Ok((features, saved.map(Saved::Resnet)))
            }
            Encoder::Vit(net) => {
                let (params, buffers) = (branch.params, branch.statistics.all());
                let (features, saved) = net.forward(on, params, buffers, images, size, keep)?;
                Ok((features, saved.map(Saved::Vit)))
            }
        }
    }

    /// The backward pass of one forward pass of `images`, from the gradient `g_features` of its features. Adds to the
    /// gradients of the parameters.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When `saved` is from another kind of network.
    pub fn backward<B: Backend>(
        &self,
        on: &B,
        learned: &mut Learned<B>,
        images: &B::Buffer,
        saved: Saved<B>,
        g_features: &B::Buffer,
    ) -> Result<(), B::Error> {
        match (self, saved) {
            (Encoder::Resnet(net), Saved::Resnet(saved)) => {
                net.backward(on, learned, images, saved, g_features, false).map(drop)
            }
            (Encoder::Vit(net), Saved::Vit(saved)) => net.backward(on, learned, images, saved, g_features),
            (Encoder::Resnet(_), Saved::Vit(_)) | (Encoder::Vit(_), Saved::Resnet(_)) => {
                panic!("saved by another kind of network")
            }
        }
    }
}
