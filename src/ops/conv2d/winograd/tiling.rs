//! How an image is cut into tiles of 4x4 outputs, and tiles are grouped into blocks.

use std::ops::Range;

use crate::ops::{
    columns::WHOLE_VECTORS,
    conv2d::{Conv2d, Size},
};

/// Outputs along a tile's edge.
pub const EDGE: usize = 4;
/// Rows and columns of a transformed tile.
pub const SIDE: usize = 6;
/// Points of a transformed tile.
pub const POINTS: usize = SIDE * SIDE;
/// Channels must come in so many: whole vectors, and whole register blocks of the products.
pub const CHANNELS: usize = WHOLE_VECTORS;
/// Elements of a block's transformed inputs and outputs together: they should stay in a core's cache.
const BLOCK: usize = 1 << 17;
/// Tiles per block at most, where they may be cut freely.
const MOST_TILES: usize = 64;

/// The tiles of a batch of images.
///
/// Tiles in a row make a strip; consecutive strips make a block. Every block but the last has the same number of pixels,
/// which are neighbours in memory.
#[derive(Clone, Copy, Debug)]
pub struct Tiling {
    pub size: Size,
    /// Strips per image.
    pub strips_per_image: usize,
    /// Tiles per strip.
    pub tiles_per_strip: usize,
    /// Strips per block.
    pub strips_per_block: usize,
}

impl Tiling {
    /// The tiling of images of `size` for a convolution that keeps their size; None where the algorithm does not apply or
    /// would not pay.
    pub fn of(conv: &Conv2d, size: Size) -> Option<Self> {
        let applies = conv.kernel == 3 && conv.stride == 1 && conv.padding == 1;
        if !applies || !conv.input.is_multiple_of(CHANNELS) || !conv.output.is_multiple_of(CHANNELS) {
            return None;
        }
        let (strips_per_image, tiles_per_strip) = (size.h.div_ceil(EDGE), size.w.div_ceil(EDGE));
        let most = (BLOCK / (POINTS * (conv.input + conv.output))).clamp(16, MOST_TILES);
        // Images whose height leaves a ragged last strip must not be cut.
        let unit = if size.h.is_multiple_of(EDGE) { 1 } else { strips_per_image };
        if unit > 1 && unit * tiles_per_strip > 4 * MOST_TILES {
            return None;
        }
        let strips_per_block = (most / (unit * tiles_per_strip)).max(1) * unit;
        Some(Self { size, strips_per_image, tiles_per_strip, strips_per_block })
    }

    /// Strips of all images.
    fn strips(&self) -> usize {
        self.size.n * self.strips_per_image
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.strips().div_ceil(self.strips_per_block)
    }

    /// The strips of a block.
    pub fn strips_of(&self, block: usize) -> Range<usize> {
        let first = block * self.strips_per_block;
        first..(first + self.strips_per_block).min(self.strips())
    }

    /// Number of tiles of a block.
    pub fn tiles_of(&self, block: usize) -> usize {
        self.strips_of(block).len() * self.tiles_per_strip
    }

    /// Rows of a matrix that holds any block's tiles, and of the products with it.
    pub fn rows(&self) -> usize {
        (self.strips_per_block * self.tiles_per_strip).next_multiple_of(CHANNELS)
    }

    /// Elements from one point's matrix of a block to the next one's, for rows of `row` elements. That is a line of the
    /// cache more than the matrix takes: at powers of two the same place in all matrices would share a set of the cache.
    pub fn matrix(&self, row: usize) -> usize {
        self.rows() * row + CHANNELS
    }

    /// Image and first output row of a strip.
    pub fn place_of(&self, strip: usize) -> (usize, usize) {
        (strip / self.strips_per_image, strip % self.strips_per_image * EDGE)
    }

    /// Pixels of every block but the last.
    pub fn pixels_per_block(&self) -> usize {
        let image = self.size.h * self.size.w;
        if self.size.h.is_multiple_of(EDGE) {
            self.strips_per_block * EDGE * self.size.w
        } else {
            self.strips_per_block / self.strips_per_image * image
        }
    }
}
