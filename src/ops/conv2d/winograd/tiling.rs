//! Cuts images into tiles of 4x4 outputs, and groups tiles into blocks.

use std::ops::Range;

use super::SHARED;
use crate::ops::{
    conv2d::{BLOCK_ROWS, Conv2d, Size},
    parts::{Tiles, parts, power},
    reductions::WHOLE_VECTORS,
};

/// Outputs along a tile's edge.
pub const EDGE: usize = 4;
/// Rows and columns of a transformed tile.
pub const SIDE: usize = 6;
/// Points of a transformed tile.
pub const POINTS: usize = SIDE * SIDE;
/// Channel counts must be multiples of this: whole vectors, and whole register blocks of the products.
pub const CHANNELS: usize = WHOLE_VECTORS;
/// Elements of a block's transformed inputs and outputs together: they should stay in a core's cache.
const BLOCK: usize = 1 << 17;
/// Most tiles per block, unless a block cannot be cut further.
const MOST_TILES: usize = 64;

/// The tiles of a batch of images.
///
/// A strip is a row of tiles of an image; a block is several consecutive strips. A block is a piece of one part of the batch, or
/// several whole parts. Its pixels are contiguous in memory.
#[derive(Clone, Copy, Debug)]
pub struct Tiling {
    pub size: Size,
    /// Strips per image.
    pub strips_per_image: usize,
    /// Tiles per strip.
    pub tiles_per_strip: usize,
    /// Strips by block.
    pub blocks: Tiles,
    /// Pixels by block.
    pub pixels: Tiles,
    /// Pixels by block, or by part where a block has several parts.
    pub statistics: Tiles,
}

impl Tiling {
    /// The tiling of images of `size` for a convolution that keeps their size; None where the algorithm does not apply, or
    /// blocks would be too large.
    pub fn of(conv: &Conv2d, size: Size) -> Option<Self> {
        Self::new(conv, size, usize::MAX)
    }

    /// As [`Tiling::of`], in blocks of at most one part each.
    pub fn of_parts(conv: &Conv2d, size: Size) -> Option<Self> {
        Self::new(conv, size, 1)
    }

    fn new(conv: &Conv2d, size: Size, most_parts: usize) -> Option<Self> {
        let applies = conv.kernel == 3 && conv.stride == 1 && conv.padding == 1;
        if !applies || !conv.input.is_multiple_of(CHANNELS) || !conv.output.is_multiple_of(CHANNELS) {
            return None;
        }
        let (strips_per_image, tiles_per_strip) = (size.h.div_ceil(EDGE), size.w.div_ceil(EDGE));
        let most = match most_parts {
            // The weight gradient sums over a block's tiles: larger blocks have longer sums.
            1 if conv.input * conv.output >= SHARED => MOST_TILES,
            _ => (BLOCK / (POINTS * (conv.input + conv.output))).clamp(16, MOST_TILES),
        };
        // Images whose height leaves a ragged last strip must not be cut.
        let unit = if size.h.is_multiple_of(EDGE) { 1 } else { strips_per_image };
        if unit > 1 && unit * tiles_per_strip > 4 * MOST_TILES {
            return None;
        }
        let strips = (most / (unit * tiles_per_strip)).max(1) * unit;
        let (all, parts) = (size.n * strips_per_image, parts(size.n));
        // All blocks of a part have about the same size: slightly larger blocks are better than a small one left over.
        let units = all / parts / unit;
        let even = units.div_ceil(((units * unit + strips / 2) / strips).max(1)) * unit;
        let statistics = Tiles::new(size.pixels(), parts, even * size.h * size.w / strips_per_image);
        let blocks = Tiles::new(all, parts, even);
        let together = power(|count| count <= parts.min(most_parts) && count * blocks.part <= strips);
        let (blocks, pixels) = match together {
            1 => (blocks, statistics),
            _ => {
                let whole = |rows: usize| Tiles::new(rows, parts / together, usize::MAX);
                (whole(all), whole(size.pixels()))
            }
        };
        Some(Self { size, strips_per_image, tiles_per_strip, blocks, pixels, statistics })
    }

    /// The strips of a block.
    pub fn strips_of(&self, block: usize) -> Range<usize> {
        self.blocks.rows(block)
    }

    /// Number of tiles of a block.
    pub fn tiles_of(&self, block: usize) -> usize {
        self.strips_of(block).len() * self.tiles_per_strip
    }

    /// Rows of a matrix that holds any block's tiles.
    pub fn rows(&self) -> usize {
        (self.blocks.tile * self.tiles_per_strip).next_multiple_of(BLOCK_ROWS)
    }

    /// Elements from one point's matrix of a block to the next one's, for rows of `row` elements. That is a cache line (of f32)
    /// more than the matrix takes: with a power of two, the same place in all matrices would fall into the same set of the
    /// cache.
    pub fn matrix(&self, row: usize) -> usize {
        self.rows() * row + CHANNELS
    }

    /// Image and first output row of a strip.
    pub fn place_of(&self, strip: usize) -> (usize, usize) {
        (strip / self.strips_per_image, strip % self.strips_per_image * EDGE)
    }
}
