//! What a device must offer for heads and losses to run on it.

use dfdx::prelude::Dtype;

#[cfg(any(test, feature = "cuda"))]
use super::cuda::Bridge;
use super::{
    batch_norm::BatchNormKernel, contrast::ContrastKernel, group_dots::GroupDotsKernel, later::ReadLater,
    normalize::NormalizeKernel, over_batch::BatchKernel, sinkhorn::SinkhornKernel, softmax::SoftmaxKernel,
    weight::Weights,
};

/// A build that knows no GPU needs no bridge to one.
#[cfg(not(any(test, feature = "cuda")))]
pub trait Bridge<E> {}
#[cfg(not(any(test, feature = "cuda")))]
impl<E, D> Bridge<E> for D {}

/// A device with all of our differentiable operations.
pub trait Backend<E: Dtype>:
    Weights<E>
    + BatchNormKernel<E>
    + NormalizeKernel<E>
    + ContrastKernel<E>
    + GroupDotsKernel<E>
    + SinkhornKernel<E>
    + SoftmaxKernel<E>
    + BatchKernel<E>
    + ReadLater<E>
    + Bridge<E>
{
}

impl<E: Dtype, D> Backend<E> for D where
    D: Weights<E>
        + BatchNormKernel<E>
        + NormalizeKernel<E>
        + ContrastKernel<E>
        + GroupDotsKernel<E>
        + SinkhornKernel<E>
        + SoftmaxKernel<E>
        + BatchKernel<E>
        + ReadLater<E>
        + Bridge<E>
{
}
