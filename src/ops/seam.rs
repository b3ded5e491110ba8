//! Where our differentiable operations meet dfdx's tape.
//!
//! dfdx keeps the storage of tensors private but hands out gradient buffers. An operation of ours therefore copies its
//! inputs out, computes on slices, and records a closure that takes the output's gradient and adds to the inputs'.

use dfdx::prelude::*;

/// A tensor of two axes whose sizes are known at run time.
pub type Matrix<E, D, T = NoneTape> = Tensor<(usize, usize), E, D, T>;

/// A device's buffer of elements.
pub type Buffer<E, D> = <D as Storage<E>>::Vec;
