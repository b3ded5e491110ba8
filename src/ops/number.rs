//! The scalar types that kernels compute in: f32 for work, f64 for checking.

use dfdx::prelude::Dtype;

use super::{math::MathFunctions, scratch::Scratch, vector::VectorElement};

/// A real scalar that dfdx tensors can hold.
pub trait Number:
    Dtype
    + MathFunctions
    + VectorElement
    + Scratch
    + bytemuck::Pod
    + num_traits::Float
    + num_traits::FromPrimitive
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::iter::Sum
    + Send
    + Sync
    + 'static
{
    /// Nearest value to `x`.
    fn of(x: f64) -> Self;
    /// As f64.
    fn as_f64(self) -> f64;
}

impl Number for f32 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn as_f64(self) -> f64 {
        self as f64
    }
}

impl Number for f64 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn as_f64(self) -> f64 {
        self
    }
}
