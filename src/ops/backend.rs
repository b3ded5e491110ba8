//! What a device must offer for heads and losses to run on it.

use dfdx::prelude::Dtype;

use super::{batch_norm::BatchNormKernel, linear::LinearKernel, normalize::NormalizeKernel};

/// A device with all of our differentiable operations.
pub trait Backend<E: Dtype>: LinearKernel<E> + BatchNormKernel<E> + NormalizeKernel<E> {}

impl<E: Dtype, D: LinearKernel<E> + BatchNormKernel<E> + NormalizeKernel<E>> Backend<E> for D {}
