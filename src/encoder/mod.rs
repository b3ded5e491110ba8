//! Encoders: images in, features out, gradients by hand. Unaware of methods and data sets.
//!
//! An encoder is one coarse operation: it owns the structure, its weights and gradients live in flat buffers of the caller
//! (see [`crate::ops::arena`]), and only features and their gradient cross into dfdx.

mod config;
mod resnet;

pub use config::*;
pub use resnet::Saved;

use crate::ops::{Real, arena::Layout, buffers::Buffers, conv2d::Size};

/// An encoder's structure; its weights live in flat buffers that the caller owns.
#[derive(Clone, Debug)]
pub enum Encoder {
    Resnet(resnet::ResNet),
}

/// A configuration that names no network.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    #[error("encoder.width_multiplier: {0} times 64 is no whole number of channels; use a multiple of 1/64")]
    Width(f32),
}

impl Encoder {
    /// The network that `config` describes.
    ///
    /// # Errors
    /// When the width multiplier gives no whole number of channels.
    pub fn new(config: &EncoderConfig) -> Result<Self, EncoderError> {
        resnet::ResNet::new(config).map(Encoder::Resnet)
    }

    /// Width of the features.
    pub fn feature_dim(&self) -> usize {
        match self {
            Encoder::Resnet(net) => net.feature_dim,
        }
    }

    /// Trainable tensors, with torchvision's names.
    pub fn params(&self) -> &Layout {
        match self {
            Encoder::Resnet(net) => &net.params,
        }
    }

    /// Batch norm's running statistics, with torchvision's names.
    pub fn buffers(&self) -> &Layout {
        match self {
            Encoder::Resnet(net) => &net.buffers,
        }
    }

    /// Initial parameters and buffers (torchvision's distribution), determined by `seed`.
    pub fn init<E: Real>(&self, seed: u64) -> (Vec<E>, Vec<E>) {
        match self {
            Encoder::Resnet(net) => net.init(seed),
        }
    }

    /// Features [n, feature_dim] of normalised images [n, size, size, 3] in eval mode.
    pub fn forward_eval<E: Real>(&self, params: &[E], buffers: &[E], images: &[E], n: usize, size: usize) -> Vec<E> {
        let size = Size { n, h: size, w: size };
        match self {
            Encoder::Resnet(net) => net.forward_eval(params, buffers, images, size, &mut Buffers::default()),
        }
    }

    /// Features in training mode (batch statistics; running statistics move), without what a backward pass would need.
    pub fn forward_momentum<E: Real>(
        &self,
        params: &[E],
        buffers: &mut [E],
        images: &[E],
        size: Size,
        memory: &mut Buffers<E>,
    ) -> Vec<E> {
        match self {
            Encoder::Resnet(net) => net.forward_momentum(params, buffers, images, size, memory),
        }
    }

    /// Features in training mode and what [`Encoder::backward`] needs.
    pub fn forward_train<E: Real>(
        &self,
        params: &[E],
        buffers: &mut [E],
        images: &[E],
        size: Size,
        memory: &mut Buffers<E>,
    ) -> (Vec<E>, Saved<E>) {
        match self {
            Encoder::Resnet(net) => net.forward_train(params, buffers, images, size, memory),
        }
    }

    /// Adds to `gradients` (laid out like the parameters) those of one forward pass, from its features' gradient.
    pub fn backward<E: Real>(
        &self,
        params: &[E],
        images: &[E],
        saved: Saved<E>,
        g_features: &[E],
        gradients: &mut [E],
        memory: &mut Buffers<E>,
    ) {
        match self {
            Encoder::Resnet(net) => {
                net.backward(params, images, saved, g_features, gradients, memory, resnet::ImageGradient::Skip);
            }
        }
    }
}
