//! What a device must offer for heads and losses to run on it.

use dfdx::prelude::Dtype;

use super::{
    batch_norm::BatchNormKernel, contrast::ContrastKernel, group_dots::GroupDotsKernel, linear::LinearKernel,
    normalize::NormalizeKernel,
};

/// A device with all of our differentiable operations.
pub trait Backend<E: Dtype>:
    LinearKernel<E> + BatchNormKernel<E> + NormalizeKernel<E> + ContrastKernel<E> + GroupDotsKernel<E>
{
}

impl<E: Dtype, D> Backend<E> for D where
    D: LinearKernel<E> + BatchNormKernel<E> + NormalizeKernel<E> + ContrastKernel<E> + GroupDotsKernel<E>
{
}
