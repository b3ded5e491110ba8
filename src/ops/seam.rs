//! Where our differentiable operations meet dfdx's tape.
//!
//! dfdx keeps the storage of tensors private but hands out gradient buffers. An operation of ours therefore copies its
//! inputs out, computes on slices, and records a closure that takes the output's gradient and adds to the inputs'.

use dfdx::prelude::*;

/// A tensor of two axes whose sizes are known at run time.
pub type Matrix<E, D, T = NoneTape> = Tensor<(usize, usize), E, D, T>;

/// A matrix on a tape.
pub type Traced<E, D> = Matrix<E, D, OwnedTape<E, D>>;

/// A scalar on a tape.
pub type TracedScalar<E, D> = Tensor<Rank0, E, D, OwnedTape<E, D>>;

/// `x` on a tape of its own. Gradients go by the tensor, so that tapes of one tensor may be merged later.
pub fn traced<E: Dtype, D: Storage<E>>(x: Matrix<E, D>) -> Traced<E, D> {
    x.put_tape(OwnedTape::default())
}

/// A device's buffer of elements.
pub type Buffer<E, D> = <D as Storage<E>>::Vec;
