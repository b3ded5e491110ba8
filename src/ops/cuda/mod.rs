//! Our kernels on a GPU: memory, launches, and how their sources are compiled. Unaware of what they compute.
//!
//! A kernel source (`.cu`, beside the CPU's code for the same operation) is compiled by NVRTC for the GPU at hand when it is
//! first used. What launches kernels sees a [`Gpu`], behind which is the CUDA driver or, in tests, an emulation that
//! compiles the very same sources as C++ and runs them on the CPU.

#[cfg(any(test, feature = "cuda"))]
mod compiled;
mod driver;
#[cfg(all(test, target_arch = "x86_64"))]
pub mod emulator;
#[cfg(feature = "cuda")]
pub mod nvidia;
mod source;
#[cfg(test)]
pub mod testing;
mod wire;

pub use driver::{Arg, Arriving, Buffer, Driver, Element, Gpu, GpuError, Kind, Traits, View};
pub use source::{Scalar, Source, joined};
pub use wire::Wire;

/// Threads per block of every kernel.
pub const THREADS: usize = 256;

/// A grid that gives each of `n` elements a thread.
pub fn one_each(n: usize) -> [usize; 3] {
    [n.div_ceil(THREADS).max(1), 1, 1]
}

/// Most blocks of a pass over elements.
const BLOCKS: usize = 4096;

/// A grid whose threads go through `n` elements in strides.
pub fn in_strides(n: usize) -> [usize; 3] {
    [n.div_ceil(THREADS).clamp(1, BLOCKS), 1, 1]
}
