//! Winograd's weight gradient.

use std::{marker::PhantomData, ops::Range};

use rayon::prelude::*;

use super::{
    SHARED,
    tiles::{TransformInput, strip_len},
    tiling::{CHANNELS, POINTS, Tiling},
    weights::{TAPS, gradient},
};
use crate::ops::{
    Real,
    conv2d::{Conv2d, Source},
    matmul::{Operand, Series, Start, Strided, Target, WithOperand, elements},
    parts::{Tiles, Work, add_tree, leaf_rows, leaves, write_tree},
};

/// Fewest tiles of a leaf: every leaf costs a transformation of the weights' gradient.
const LEAF_TILES: usize = 384;
/// Most input channels, and most output channels, whose gradients a thread sums at a time: the products of all points stay in
/// its cache.
const REGION: usize = 64;
/// Most elements of transformed tiles and gradients held at once when all threads share the stages: each region reads them
/// again.
const SHARED_TILES: usize = 1 << 21;

/// gw += the weight gradient.
pub struct BackwardWeight<'a, E> {
    pub conv: &'a Conv2d,
    /// In blocks of at most one part each.
    pub tiling: &'a Tiling,
    pub x: Source<'a, E>,
    pub gy: &'a [E],
    pub gw: &'a mut [E],
}

impl<E: Real> WithOperand<E> for BackwardWeight<'_, E> {
    type Output = ();

    fn with<P: Operand<E>>(self) {
        let Self { conv, tiling, x, gy, gw } = self;
        let Conv2d { input, output, .. } = *conv;
        let pass = WeightGradient::<E, P> { conv, tiling, x, gy, operand: PhantomData };
        if input * output >= SHARED {
            return pass.shared(gw);
        }
        // Each thread takes the blocks of a leaf through all stages.
        let (parts, blocks) = (tiling.blocks.parts, tiling.blocks.count());
        let within = leaves(tiling.blocks.part * tiling.tiles_per_strip, LEAF_TILES);
        add_tree(parts * within, gw, Work::Leaves, |leaf, gw| {
            E::with_scratch(POINTS * input * output, |sum| {
                let blocks = leaf_rows(blocks, parts, within, leaf);
                for block in blocks.clone() {
                    pass.one_block(block, sum, block > blocks.start);
                }
                gradient(sum, [output, input], gw);
            });
        });
    }
}

/// The inputs and settings that all blocks share.
struct WeightGradient<'a, E, P> {
    conv: &'a Conv2d,
    tiling: &'a Tiling,
    x: Source<'a, E>,
    gy: &'a [E],
    operand: PhantomData<P>,
}

impl<E: Real, P: Operand<E>> WeightGradient<'_, E, P> {
    /// Elements of one point's matrices of a block, packed across: tiles and gradients.
    fn matrices(&self) -> [usize; 2] {
        [self.conv.input, self.conv.output].map(|channels| self.tiling.matrix(channels / P::PACK))
    }

    fn transform(&self, block: usize, tiles: &mut [E], gradients: &mut [E]) {
        let Self { conv, tiling, .. } = *self;
        E::with_scratch(strip_len(tiling, conv.input.max(conv.output)), |strip| {
            let (images, channels, points) = (self.x, conv.input, tiles);
            let part = &mut strip[..strip_len(tiling, channels)];
            P::dispatch(TransformInput { tiling, block, images, channels, strip: part, points }.across::<P>());
            let (images, channels, points) = (Source::plain(self.gy), conv.output, gradients);
            let part = &mut strip[..strip_len(tiling, channels)];
            P::dispatch(TransformInput { tiling, block, images, channels, strip: part, points }.gradient::<P>());
        });
    }

    /// Adds one block's part of the transformed weights' gradient [36, output, input] to `sum`, or overwrites `sum` with it.
    fn one_block(&self, block: usize, sum: &mut [E], add: bool) {
        let [input, output] = self.matrices();
        E::with_scratch(POINTS * (input + output), |memory| {
            let (tiles, gradients) = memory.split_at_mut(POINTS * input);
            self.transform(block, tiles, gradients);
            let Conv2d { input: columns, output: rows, .. } = *self.conv;
            let series = Series { times: POINTS, steps: [output, input, rows * columns] };
            let target = Target { data: sum, row: columns, start: Start::adding(add), leaves: None };
            self.products(block, series, [rows, columns], [gradients, tiles], target);
        });
    }

    /// The gradient where both sides have many channels: all threads transform the tiles of some leaves, then each sums regions
    /// of channels over them.
    fn shared(&self, gw: &mut [E]) {
        let Conv2d { input, output, .. } = *self.conv;
        let region =
            |channels: usize| (1..=REGION / CHANNELS).map(|n| n * CHANNELS).rfind(|n| channels.is_multiple_of(*n));
        let [rows, columns] = [output, input].map(|channels| region(channels).expect("whole vectors"));
        let (weights, Tiles { parts, .. }) = (rows * TAPS * columns, self.tiling.blocks);
        // Leaves of several parts are processed at once if they fit SHARED_TILES; otherwise a part is cut into several leaves.
        let [tiles_len, gradients_len] = self.matrices();
        let at_once = (SHARED_TILES / (POINTS * (tiles_len + gradients_len))).max(1);
        let per_part = self.tiling.blocks.per_part();
        let within = per_part.div_ceil(at_once).next_power_of_two().min(leaves(per_part, 1));
        let together = if within > 1 { 1 } else { parts.min(leaves(at_once / per_part, 1)) };
        let blocks_of = |leaf: usize| leaf_rows(self.tiling.blocks.count(), parts, within, leaf);
        E::with_scratch(output * TAPS * input, |total| {
            // `total` is stored region by region, so that one thread writes each region.
            write_tree(parts * within / together, total, Work::Within, |group, total| {
                let first = blocks_of(group * together).start;
                let count = blocks_of(group * together + together - 1).end - first;
                E::with_scratch(POINTS * count * (tiles_len + gradients_len), |memory| {
                    let (tiles, gradients) = memory.split_at_mut(POINTS * count * tiles_len);
                    let blocks = tiles
                        .par_chunks_exact_mut(POINTS * tiles_len)
                        .zip(gradients.par_chunks_exact_mut(POINTS * gradients_len));
                    blocks.enumerate().for_each(|(i, (tiles, gradients))| self.transform(first + i, tiles, gradients));
                    total.par_chunks_exact_mut(weights).enumerate().for_each(|(i, sum)| {
                        let (o, c) = (i / (input / columns) * rows, i % (input / columns) * columns);
                        write_tree(together, sum, Work::Alone, |leaf, sum| {
                            let blocks = blocks_of(group * together + leaf);
                            let blocks = blocks.start - first..blocks.end - first;
                            let region = Region { first, blocks, rows: o..o + rows, columns: c..c + columns };
                            self.region(region, tiles, gradients, sum);
                        });
                    });
                });
            });
            let regions = total.chunks_exact(weights).collect::<Vec<_>>();
            gw.par_chunks_exact_mut(TAPS * input).enumerate().for_each(|(o, gw)| {
                for (i, gw) in gw.chunks_exact_mut(columns).enumerate() {
                    let (tap, region) = (i / (input / columns), o / rows * (input / columns) + i % (input / columns));
                    let sum = &regions[region][(o % rows * TAPS + tap) * columns..][..columns];
                    gw.iter_mut().zip(sum).for_each(|(gw, sum)| *gw += *sum);
                }
            });
        });
    }

    /// The gradient of a region of the weights, [rows, taps, columns], over the blocks of a leaf.
    fn region(&self, region: Region, tiles: &[E], gradients: &[E], sum: &mut [E]) {
        let Region { first, blocks, rows, columns } = region;
        let ([tiles_len, gradients_len], shape) = (self.matrices(), [rows.len(), columns.len()]);
        let len = rows.len() * columns.len();
        // Each matrix is followed by a cache line of padding, as the tiles' matrices are.
        E::with_scratch(POINTS * (len + CHANNELS), |products| {
            for (point, products) in products.chunks_exact_mut(len + CHANNELS).enumerate() {
                for block in blocks.clone() {
                    let at = block * POINTS + point;
                    let factors =
                        [&gradients[at * gradients_len + rows.start..], &tiles[at * tiles_len + columns.start..]];
                    let target = Target {
                        data: products,
                        row: columns.len(),
                        start: Start::adding(block > blocks.start),
                        leaves: None,
                    };
                    self.products(first + block, Series::ONE, shape, factors, target);
                }
            }
            gradient(products, shape, sum);
        });
    }

    /// Products over the tiles of a block: start + gradients [tiles, rows]^T tiles [tiles, columns].
    fn products(
        &self,
        block: usize,
        series: Series,
        [rows, columns]: [usize; 2],
        [gradients, tiles]: [&[E]; 2],
        target: Target<E>,
    ) {
        let a = Strided { data: gradients, row: 1, column: self.conv.output };
        let b = Strided { data: tiles, row: self.conv.input, column: 1 };
        let depth = elements::<E, P>(self.tiling.tiles_of(block));
        P::series(series, [rows, depth, columns], a, b, target);
    }
}

/// Some of the weights, and the blocks over which their gradient is summed.
struct Region {
    /// The first block of the matrices.
    first: usize,
    /// Blocks to sum over, counted from `first`.
    blocks: Range<usize>,
    /// Output channels.
    rows: Range<usize>,
    /// Input channels.
    columns: Range<usize>,
}
