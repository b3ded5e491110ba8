//! Winograd's minimal filtering F(4x4, 3x3) for 3x3 convolutions of stride 1 and padding 1.
//!
//! A tile of 4x4 outputs takes 36 multiplications per pair of channels instead of 144 (Winograd 1980; Lavin and Gray 2015, "Fast
//! Algorithms for Convolutional Neural Networks"). Tiles and weights are transformed, multiplied point by point as 36 matrices
//! [tiles, input] x [input, output], and transformed back; the weight gradient is the transposed algorithm. In f32 the error is
//! about twice that of summing by the definition (see [`transform`]).
//!
//! With few channels the transformed weights fit a core's cache, and each thread takes blocks of tiles through all three stages.
//! With many channels, all threads share each stage. Blocks and the order of every sum are fixed by the shapes alone.

#![allow(
    clippy::needless_range_loop,
    reason = "indices over register blocks; adapters with closures are not vectorised"
)]

mod backward;
mod forward;
mod tiles;
mod tiling;
mod transform;
mod weights;

pub use backward::BackwardWeight;
pub use forward::Forward;
pub use tiling::Tiling;
pub use weights::Kernels;

use tiling::POINTS;

/// From this many pairs of channels on, all threads share each stage.
const SHARED: usize = 96 * 96;
/// Reorders the matrices of several blocks. `values` has all points of the first block, then all of the second, and so on; the
/// result has all blocks of the first point, then all of the second.
fn by_point<E>(values: &mut [E], matrix: usize) -> Vec<&mut [E]> {
    let mut matrices: Vec<_> = values.chunks_exact_mut(matrix).enumerate().collect();
    matrices.sort_by_key(|(i, _)| (i % POINTS, i / POINTS));
    matrices.into_iter().map(|(_, matrix)| matrix).collect()
}
