//! Runs our kernels on a GPU: memory, launches, and the compilation of sources. This module does not know what kernels compute.
//!
//! A kernel source (`.cu`, next to the CPU code of the same operation) is compiled by NVRTC for the present GPU when it is first
//! used. Launch code uses a [`Gpu`]. Its backend is the CUDA driver or, in tests, an emulation that compiles the very same
//! sources as C++ and runs them on the CPU. A backend may have a library that computes matrix [products](Product), too.

#[cfg(any(test, feature = "cuda"))]
mod compiled;
mod driver;
#[cfg(all(test, target_arch = "x86_64"))]
pub mod emulator;
#[cfg(feature = "cuda")]
pub mod nvidia;
mod product;
mod source;
#[cfg(test)]
pub mod testing;
mod wire;

pub use driver::{Arg, Arriving, Buffer, Driver, Element, Gpu, GpuError, Kind, Traits, View};
pub use product::{Matrices, Product};
pub use source::{Scalar, Source, joined};
pub use wire::Wire;

/// Threads per block of every kernel.
pub const THREADS: usize = 256;

/// A grid with one thread for each of `n` elements.
pub fn one_each(n: usize) -> [usize; 3] {
    [n.div_ceil(THREADS).max(1), 1, 1]
}

/// Maximum number of blocks of a pass over elements.
const BLOCKS: usize = 4096;

/// A grid for `n` elements whose threads go through the elements in strides (grid-stride loop).
pub fn in_strides(n: usize) -> [usize; 3] {
    [n.div_ceil(THREADS).clamp(1, BLOCKS), 1, 1]
}
