//! Convolutions with batch norm, and pooling: the building blocks of convolutional networks.

use super::{
    Branch, Learned, Memory,
    layers::{BatchNorm, ConvNorm},
};
use crate::ops::conv2d::Size;

/// The input of a convolution.
pub enum Source<'a, B: Convolutions> {
    Plain(&'a B::Buffer),
    Inner(&'a B::Inner),
}

/// The tensor that is added to a normalised tensor before the ReLU.
pub enum Residual<'a, B: Convolutions> {
    None,
    Plain(&'a B::Buffer),
    /// A convolution's output (the shortcut's) whose batch norm is not applied yet.
    Normed(&'a B::Normed),
}

/// Convolutions with batch norm, and pooling. Images are [n, h, w, channels].
pub trait Convolutions: Memory {
    /// A convolution's output and the batch norm after it, which is not applied yet.
    type Normed;
    /// The output of a convolution, its batch norm and its ReLU: the input of the next convolution. The host applies batch norm
    /// and ReLU only when the next convolution reads it.
    type Inner;
    /// The position of each maximum in its window.
    type Argmax;

    /// A convolution, and the statistics of the batch norm after it.
    fn conv_norm(
        &self,
        layer: &ConvNorm,
        branch: &mut Branch<Self>,
        x: Source<Self>,
        size: Size,
    ) -> Result<Self::Normed, Self::Error>;

    /// relu(norm(x)) for the next convolution of the same block. With `keep`, the result also serves the backward pass.
    fn inner(&self, x: Self::Normed, keep: bool) -> Result<Self::Inner, Self::Error>;

    /// relu(norm(x) + residual).
    fn output(&self, x: &Self::Normed, residual: Residual<Self>) -> Result<Self::Buffer, Self::Error>;

    /// The gradient of the input of a batch norm, from the gradient `g` of its output. With `output`, the output of a ReLU after
    /// the norm, `g` is the gradient of `output` instead. Adds to the gradients of the norm's parameters.
    fn norm_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Self::Normed,
        output: Option<&Self::Buffer>,
        g: Self::Buffer,
    ) -> Result<Self::Buffer, Self::Error>;

    /// [`Convolutions::norm_backward`] of a norm whose output passes through an addition and a ReLU. Returns the gradient of the
    /// norm's input, then the gradient of the sum.
    fn output_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Self::Normed,
        output: Self::Buffer,
        g: Self::Buffer,
    ) -> Result<[Self::Buffer; 2], Self::Error>;

    /// [`Convolutions::norm_backward`] of the norm and ReLU of [`Convolutions::inner`].
    fn inner_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Self::Inner,
        g: Self::Buffer,
    ) -> Result<Self::Buffer, Self::Error>;

    /// The gradient of a convolution's input, from the gradient `g` of its output; added to `onto` if given. Adds to the
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

    /// Adds to the gradient of a convolution's weights, without computing that of its input.
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

    /// The gradient of the input of the max-pooling.
    fn max_pool_backward(
        &self,
        g: &Self::Buffer,
        argmax: &Self::Argmax,
        size: Size,
        channels: usize,
    ) -> Result<Self::Buffer, Self::Error>;

    /// The mean over each image's pixels: [n, channels], in reals.
    fn average_pool(&self, x: &Self::Buffer, size: Size, channels: usize) -> Result<Self::Buffer, Self::Error>;

    /// The gradient of the input of the average pooling.
    fn average_pool_backward(&self, g: &Self::Buffer, size: Size, channels: usize)
    -> Result<Self::Buffer, Self::Error>;
}
