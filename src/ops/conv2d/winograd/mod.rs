//! Winograd's minimal filtering F(4x4, 3x3) for 3x3 convolutions of stride 1 and padding 1.
//!
//! A tile of 4x4 outputs takes 36 multiplications per pair of channels instead of 144 (Winograd 1980; Lavin and Gray 2015,
//! "Fast Algorithms for Convolutional Neural Networks"). Tiles and weights are transformed, multiplied point by point as
//! 36 matrices [tiles, input] x [input, output], and transformed back; the weight gradient is the transposed algorithm.
//! In f32 the result is about twice as far from the exact one as that of the definition's sum (see [`transform`]).
//!
//! Where the transformed weights fit a core's cache, each thread takes blocks of tiles through all three stages; where they
//! do not, all threads share each stage. Blocks and the order of every sum are fixed by the shapes alone.

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

/// Pairs of channels from which on all threads share each stage.
const SHARED: usize = 96 * 96;
/// The matrices of several blocks, each of which has its points one behind the other, point by point instead.
fn by_point<E>(values: &mut [E], matrix: usize) -> Vec<&mut [E]> {
    let mut matrices: Vec<_> = values.chunks_exact_mut(matrix).enumerate().collect();
    matrices.sort_by_key(|(i, _)| (i % POINTS, i / POINTS));
    matrices.into_iter().map(|(_, matrix)| matrix).collect()
}
