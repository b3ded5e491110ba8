//! The scalar types that our operations compute in: f32 for work, f64 for checking.

use dfdx::prelude::Dtype;

use super::{elementary::Elementary, lanes::Lanes, product, scratch::Scratch};

/// A real scalar that dfdx tensors can hold.
pub trait Real:
    Dtype
    + Elementary
    + Lanes
    + Scratch
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
    /// How two factors of bf16 share an element, where [`Real::multiplies_pairs`].
    type Pairs: product::Operand<Self>;
    /// Whether the running CPU multiplies pairs of bf16 and adds them to this type.
    fn multiplies_pairs() -> bool;
    /// Nearest value to `x`.
    fn of(x: f64) -> Self;
    /// As f64.
    fn as_f64(self) -> f64;
}

impl Real for f32 {
    #[cfg(target_arch = "x86_64")]
    type Pairs = product::Pairs;
    #[cfg(not(target_arch = "x86_64"))]
    type Pairs = product::Rounded;

    fn multiplies_pairs() -> bool {
        #[cfg(target_arch = "x86_64")]
        return product::pairs_available();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn as_f64(self) -> f64 {
        self as f64
    }
}

impl Real for f64 {
    type Pairs = product::Rounded;

    fn multiplies_pairs() -> bool {
        false
    }
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn as_f64(self) -> f64 {
        self
    }
}
