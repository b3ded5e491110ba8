//! Winograd's forward pass, which with mirrored weights is also the data gradient.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::{
    SHARED, by_point,
    tiles::{TransformInput, TransformOutput, strip_len},
    tiling::{POINTS, Tiling},
    weights::{Kernels, Weights},
};
use crate::ops::{
    Real,
    batch_norm::{TileMoments, TileSlot},
    conv2d::{BLOCK_ROWS, Conv2d, Source},
    matmul::{Left, Operand, Start, Strided, WithOperand, multiply},
    simd::dispatch,
};

/// Most elements of transformed tiles and products held at once when all threads share the stages.
const SHARED_TILES: usize = 1 << 23;

/// y = conv(x, kernels) + beta y with `beta` 0 or 1.
/// Statistics of y are taken while a block is in the cache.
pub struct Forward<'a, E> {
    pub conv: &'a Conv2d,
    pub tiling: &'a Tiling,
    pub x: Source<'a, E>,
    pub kernels: Kernels<'a, E>,
    pub beta: E,
    pub y: &'a mut [E],
    pub moments: &'a mut TileMoments<E>,
}

impl<E: Real> WithOperand<E> for Forward<'_, E> {
    type Output = ();

    fn with<P: Operand<E>>(self) {
        let Self { conv, tiling, x, kernels, beta, y, moments } = self;
        let Conv2d { input, output, .. } = *conv;
        E::with_scratch(Weights::<E>::len::<P>(input, output), |memory| {
            let weights = &Weights::of::<P>(input, output, kernels, memory);
            moments.reset(tiling.statistics, output);
            let pass = Blocks::<E, P> { conv, tiling, x, weights, add: beta != E::zero(), operand: PhantomData };
            // A block has one slot for statistics, or one per part where it has several parts.
            let slots = tiling.statistics.count() / tiling.blocks.count();
            let take = |y: &[E], slots: &mut [TileSlot<E>]| {
                y.chunks(y.len() / slots.len()).zip(slots).for_each(|(y, slot)| slot.of(y));
            };
            let blocks = tiling.pixels.each_mut(y, output).into_par_iter().zip(moments.par_tiles().chunks(slots));
            if input * output < SHARED {
                blocks.enumerate().for_each(|(block, (y, mut slots))| {
                    pass.one_block(block, y);
                    take(y, &mut slots);
                });
                return;
            }
            let mut blocks: Vec<_> = blocks.enumerate().collect();
            let at_once = SHARED_TILES / (POINTS * tiling.rows() * (input + output));
            for group in blocks.chunks_mut(at_once.max(1)) {
                pass.shared_blocks(group.iter_mut().map(|(block, (y, _))| (*block, &mut **y)).collect());
                group.par_iter_mut().for_each(|(_, (y, slots))| take(y, slots));
            }
        });
    }
}

/// The inputs and settings that all blocks share.
struct Blocks<'a, E, P> {
    conv: &'a Conv2d,
    tiling: &'a Tiling,
    x: Source<'a, E>,
    weights: &'a Weights<'a, E>,
    add: bool,
    operand: PhantomData<P>,
}

impl<E: Real, P: Operand<E>> Blocks<'_, E, P> {
    /// Elements of one point's matrices of a block: tiles and products.
    fn matrices(&self) -> [usize; 2] {
        [self.conv.input / P::PACK, self.conv.output].map(|row| self.tiling.matrix(row))
    }

    fn input(&self, block: usize, points: &mut [E]) {
        let channels = self.conv.input;
        E::with_scratch(strip_len(self.tiling, channels), |strip| {
            let (tiling, images) = (self.tiling, self.x);
            P::dispatch(TransformInput { tiling, block, images, channels, strip, points }.along::<P>());
        });
    }

    fn output(&self, block: usize, points: &[E], pixels: &mut [E]) {
        let (tiling, channels, add) = (self.tiling, self.conv.output, self.add);
        dispatch(TransformOutput { tiling, block, points, channels, pixels, add });
    }

    /// The product of a point's matrix of a block.
    fn product(&self, point: usize, block: usize, tiles: &[E], products: &mut [E]) {
        let factors = Strided { data: tiles, row: self.conv.input / P::PACK, column: 1 };
        // Rows are rounded up to whole register blocks.
        let rows = self.tiling.tiles_of(block).next_multiple_of(BLOCK_ROWS);
        multiply::<E, P>(Left { factors, rows }, self.weights.point(point), products, Start::Zero);
    }

    /// Takes one block through all stages on this thread.
    fn one_block(&self, block: usize, y: &mut [E]) {
        let [input, output] = self.matrices();
        E::with_scratch(POINTS * (input + output), |memory| {
            let (tiles, products) = memory.split_at_mut(POINTS * input);
            self.input(block, tiles);
            let points = tiles.chunks_exact(input).zip(products.chunks_exact_mut(output));
            points.enumerate().for_each(|(point, (tiles, products))| self.product(point, block, tiles, products));
            self.output(block, products, y);
        });
    }

    /// Takes several blocks through the stages, each stage on all threads.
    fn shared_blocks(&self, blocks: Vec<(usize, &mut [E])>) {
        let [input, output] = self.matrices();
        let count = blocks.len();
        E::with_scratch(POINTS * count * (input + output), |memory| {
            let (tiles, products) = memory.split_at_mut(POINTS * count * input);
            let first = blocks[0].0;
            tiles.par_chunks_exact_mut(POINTS * input).enumerate().for_each(|(i, points)| {
                self.input(first + i, points);
            });
            // Go point by point, so that a point's weights stay in the cache while block after block is multiplied.
            by_point(products, output).into_par_iter().enumerate().for_each(|(i, products)| {
                let (point, block) = (i / count, i % count);
                let tiles = &tiles[(block * POINTS + point) * input..][..input];
                self.product(point, first + block, tiles, products);
            });
            let points = products.par_chunks_exact(POINTS * output);
            blocks.into_par_iter().zip(points).for_each(|((block, y), points)| self.output(block, points, y));
        });
    }
}
