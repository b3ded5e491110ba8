//! Encoders: images in, features out, gradients by hand. Unaware of methods and data sets.

mod config;

pub use config::*;

use crate::ops::{Real, arena::Layout};

/// An encoder's structure; its weights live in flat buffers that the caller owns.
pub struct Encoder {}

/// A configuration that names no network.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    #[error("encoder.width_multiplier {0} does not give a whole number of channels")]
    Width(f32),
}

impl Encoder {
    /// The network that `config` describes.
    pub fn new(_config: &EncoderConfig) -> Result<Self, EncoderError> {
        todo!()
    }
    /// Width of the features.
    pub fn feature_dim(&self) -> usize {
        todo!()
    }
    /// Trainable tensors.
    pub fn params(&self) -> &Layout {
        todo!()
    }
    /// Batch norm's running statistics.
    pub fn buffers(&self) -> &Layout {
        todo!()
    }
    /// Initial parameters and buffers.
    pub fn init<E: Real>(&self, _seed: u64) -> (Vec<E>, Vec<E>) {
        todo!()
    }
    /// Features [n, feature_dim] of normalised images [n, size, size, 3] in eval mode.
    pub fn forward_eval<E: Real>(
        &self,
        _params: &[E],
        _buffers: &[E],
        _images: &[E],
        _n: usize,
        _size: usize,
    ) -> Vec<E> {
        todo!()
    }
}
