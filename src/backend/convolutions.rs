//! What convolutional networks are made of.

use super::{
    Branch, Learned, Memory,
    layers::{BatchNorm, ConvNorm},
};
use crate::ops::conv2d::Size;

/// What a convolution reads.
pub enum Source<'a, B: Convolutions> {
    Plain(&'a B::Buffer),
    Inner(&'a B::Inner),
}

/// What is added to a normalised tensor before its ReLU.
pub enum Residual<'a, B: Convolutions> {
    None,
    Plain(&'a B::Buffer),
    /// A convolution's output that is itself still to be normalised (the shortcut's).
    Normed(&'a B::Normed),
}

/// Convolutions with batch norms, and pooling; images are [n, h, w, channels].
pub trait Convolutions: Memory {
    /// A convolution's output and the batch norm behind it, which is still to be applied.
    type Normed;
    /// The same behind its ReLU, as the next convolution reads it. The host applies both where it is read.
    type Inner;
    /// Where each maximum was found.
    type Argmax;

    /// A convolution, and the statistics of the batch norm behind it.
    fn conv_norm(
        &self,
        layer: &ConvNorm,
        branch: &mut Branch<Self>,
        x: Source<Self>,
        size: Size,
    ) -> Result<Self::Normed, Self::Error>;

    /// relu(norm(x)) for a convolution of the same block; with `keep`, for its backward pass too.
    fn inner(&self, x: Self::Normed, keep: bool) -> Result<Self::Inner, Self::Error>;

    /// relu(norm(x) + residual).
    fn output(&self, x: &Self::Normed, residual: Residual<Self>) -> Result<Self::Buffer, Self::Error>;

    /// The gradient of a convolution's output from `g`, that of its batch norm's output or, where `output` is that of a ReLU
    /// behind it, of the ReLU's. Adds to the gradients of the norm's parameters.
    fn norm_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Self::Normed,
        output: Option<&Self::Buffer>,
        g: Self::Buffer,
    ) -> Result<Self::Buffer, Self::Error>;

    /// The same of a norm whose ReLU is behind an addition; also gives the gradient of the sum.
    fn output_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Self::Normed,
        output: Self::Buffer,
        g: Self::Buffer,
    ) -> Result<[Self::Buffer; 2], Self::Error>;

    /// The same of [`Convolutions::inner`].
    fn inner_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Self::Inner,
        g: Self::Buffer,
    ) -> Result<Self::Buffer, Self::Error>;

    /// The gradient of a convolution's input from that of its output, added to `onto` where there is one. Adds to the
    /// gradient of the weights.
    fn conv_backward(
        &self,
        layer: &ConvNorm,
        learned: &mut Learned<Self>,
        x: Source<Self>,
        size: Size,
        g: &Self::Buffer,
        onto: Option<Self::Buffer>,
    ) -> Result<Self::Buffer, Self::Error>;

    /// Adds to the gradient of a convolution's weights alone.
    fn conv_backward_weight(
        &self,
        layer: &ConvNorm,
        learned: &mut Learned<Self>,
        x: &Self::Buffer,
        size: Size,
        g: &Self::Buffer,
    ) -> Result<(), Self::Error>;

    /// 3x3 max-pooling of stride 2.
    fn max_pool(
        &self,
        x: &Self::Buffer,
        size: Size,
        channels: usize,
    ) -> Result<(Self::Buffer, Self::Argmax), Self::Error>;

    /// The gradient of its input.
    fn max_pool_backward(
        &self,
        g: &Self::Buffer,
        argmax: &Self::Argmax,
        size: Size,
        channels: usize,
    ) -> Result<Self::Buffer, Self::Error>;

    /// The mean over each image's pixels [n, channels], in reals.
    fn average_pool(&self, x: &Self::Buffer, size: Size, channels: usize) -> Result<Self::Buffer, Self::Error>;

    /// The gradient of its input.
    fn average_pool_backward(&self, g: &Self::Buffer, size: Size, channels: usize)
    -> Result<Self::Buffer, Self::Error>;
}
