//! 2-D convolution of channels-last images: forward, data gradient, weight gradient.
//!
//! Images are [n, height, width, channels], weights [out, height, width, in]. Patches are gathered for one tile of output pixels
//! at a time, small enough for the cache, and multiplied by the weights. No patch matrix of the whole batch exists. Tiles and
//! the order of every sum are fixed by the shapes alone, so results have the same bits for any number of threads and on any CPU.
//! Sums over the batch (weight gradients and batch norm's statistics) are binary trees over its parts (see
//! [`parts`](super::parts)).

mod backward;
pub mod cuda;
mod forward;
mod gather;
mod packed;
mod source;
#[cfg(test)]
mod tests;
mod whole;
mod winograd;

pub use source::Source;

use super::matmul::MatmulPrecision;

/// Number of images and their height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub n: usize,
    pub h: usize,
    pub w: usize,
}

impl Size {
    /// Number of pixels of all images.
    pub fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }
}

/// A convolution: square kernel, equal stride and zero padding on both axes, no bias, one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    /// Input channels.
    pub input: usize,
    /// Output channels.
    pub output: usize,
    /// Precision of the factors in matrix products.
    pub matmul: MatmulPrecision,
}

/// Elements of a tile's patches as they are multiplied, packed where factors are packed (256 KiB in f32). They should stay in a
/// core's cache.
const TILE: usize = 1 << 16;
/// Fewest output pixels per tile.
const LEAST_ROWS: usize = 32;
/// Rows of the products' register blocks.
const BLOCK_ROWS: usize = 4;

impl Conv2d {
    /// Number of images and height and width of the output.
    pub fn output_size(&self, size: Size) -> Size {
        let out = |x: usize| (x + 2 * self.padding - self.kernel) / self.stride + 1;
        Size { n: size.n, h: out(size.h), w: out(size.w) }
    }

    /// Elements of one gathered patch.
    pub fn patch(&self) -> usize {
        self.kernel * self.kernel * self.input
    }

    /// Elements of the weights.
    pub fn weights(&self) -> usize {
        self.output * self.patch()
    }

    /// Whether the kernel is 1x1 with stride 1 and no padding, so that each pixel of the input is a patch.
    fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == 0
    }
}

/// Rows per tile, at most `most`, such that the tiles of `rows` rows share out evenly among 2, 4 or 8 threads.
fn even_rows(rows: usize, most: usize) -> usize {
    let tiles = rows.div_ceil(most);
    let even = [8, 4, 2].map(|threads| tiles.next_multiple_of(threads));
    let tiles = even.into_iter().find(|tiles| rows >= tiles * LEAST_ROWS).unwrap_or(tiles);
    rows.div_ceil(tiles).next_multiple_of(BLOCK_ROWS).min(most)
}
