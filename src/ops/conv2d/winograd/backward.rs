//! Weight gradient.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    SHARED, blocks_at_once,
    tiles::{TransformInput, strip_len},
    tiling::{CHANNELS, POINTS, Tiling},
    weights::add_gradient,
};
use crate::ops::{
    Real,
    conv2d::{Conv2d, Source, backward::add_in_order},
    product::{Operand, Strided, Target, WithOperand, elements},
};

/// Parts of the batch whose gradients are summed apart, then in order.
const PARTS: usize = 16;

/// gw += the weight gradient.
pub struct BackwardWeight<'a, E> {
    pub conv: &'a Conv2d,
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
        let pass = Pass::<E, P> { conv, tiling, x, gy, operand: PhantomData };
        let (blocks, weights) = (tiling.blocks(), POINTS * input * output);
        let shared = input * output >= SHARED;
        let part = if shared { blocks } else { blocks.div_ceil(PARTS) };
        E::with_scratch(blocks.div_ceil(part) * weights, |sums| {
            if shared {
                let at_once = blocks_at_once(tiling, input + output);
                for first in (0..blocks).step_by(at_once) {
                    pass.shared_blocks(first, at_once.min(blocks - first), sums);
                }
            } else {
                sums.par_chunks_exact_mut(weights).enumerate().for_each(|(i, sum)| {
                    let first = i * part;
                    for block in first..(first + part).min(blocks) {
                        pass.one_block(block, sum, block > first);
                    }
                });
            }
            let (sum, others) = sums.split_at_mut(weights);
            add_in_order(others, sum);
            add_gradient(sum, input, gw);
        });
    }
}

/// What all blocks share.
struct Pass<'a, E, P> {
    conv: &'a Conv2d,
    tiling: &'a Tiling,
    x: Source<'a, E>,
    gy: &'a [E],
    operand: PhantomData<P>,
}

impl<E: Real, P: Operand<E>> Pass<'_, E, P> {
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

    /// One block's part of the transformed weights' gradient [36, output, input], added to `sum` or in its place.
    fn one_block(&self, block: usize, sum: &mut [E], add: bool) {
        let [input, output] = self.matrices();
        E::with_scratch(POINTS * (input + output), |memory| {
            let (tiles, gradients) = memory.split_at_mut(POINTS * input);
            self.transform(block, tiles, gradients);
            P::dispatch(AllPoints { pass: self, count: self.tiling.tiles_of(block), tiles, gradients, sum, add });
        });
    }

    /// The part of `count` blocks from `first` on, each stage on all threads; added to `sum`, the first in its place.
    fn shared_blocks(&self, first: usize, count: usize, sum: &mut [E]) {
        let [input, output] = self.matrices();
        let conv = *self.conv;
        E::with_scratch(POINTS * count * (input + output), |memory| {
            let (tiles, gradients) = memory.split_at_mut(POINTS * count * input);
            let points =
                tiles.par_chunks_exact_mut(POINTS * input).zip(gradients.par_chunks_exact_mut(POINTS * output));
            points.enumerate().for_each(|(i, (tiles, gradients))| self.transform(first + i, tiles, gradients));
            let rows = (conv.output / CHANNELS).div_ceil(4) * CHANNELS;
            let per_point = conv.output.div_ceil(rows);
            let point = conv.output * conv.input;
            let parts = sum.chunks_exact_mut(point).flat_map(|point| point.chunks_mut(rows * conv.input));
            let parts: Vec<_> = parts.collect();
            parts.into_par_iter().enumerate().for_each(|(i, sum)| {
                let (p, from) = (i / per_point, i % per_point * rows);
                for block in 0..count {
                    let at = block * POINTS + p;
                    let tiles = &tiles[at * input..][..input];
                    let gradients = &gradients[at * output + from..(at + 1) * output];
                    let (count, add) = (self.tiling.tiles_of(first + block), first + block > 0);
                    P::dispatch(Multiply::<E, P> { conv, count, tiles, gradients, sum, add, operand: PhantomData });
                }
            });
        });
    }
}

/// The products of all points of a block.
struct AllPoints<'a, E, P> {
    pass: &'a Pass<'a, E, P>,
    count: usize,
    tiles: &'a [E],
    gradients: &'a [E],
    sum: &'a mut [E],
    add: bool,
}

impl<E: Real, P: Operand<E>> WithSimd for AllPoints<'_, E, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pass, count, tiles, gradients, sum, add } = self;
        let ([input, output], conv) = (pass.matrices(), *pass.conv);
        let points = tiles.chunks_exact(input).zip(gradients.chunks_exact(output));
        for ((tiles, gradients), sum) in points.zip(sum.chunks_exact_mut(conv.output * conv.input)) {
            Multiply::<E, P> { conv, count, tiles, gradients, sum, add, operand: PhantomData }.with_simd(simd);
        }
    }
}

/// sum [rows, input] (+)= gradients [tiles, output]^T tiles [tiles, input], for as many outputs as `sum` has rows, the first
/// of which `gradients` begins with.
struct Multiply<'a, E, P> {
    conv: Conv2d,
    /// Number of tiles.
    count: usize,
    tiles: &'a [E],
    gradients: &'a [E],
    sum: &'a mut [E],
    add: bool,
    operand: PhantomData<P>,
}

impl<E: Real, P: Operand<E>> WithSimd for Multiply<'_, E, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { conv: Conv2d { input, output, .. }, count, tiles, gradients, sum, add, .. } = self;
        let a = Strided { data: gradients, row: 1, column: output };
        let b = Strided { data: tiles, row: input, column: 1 };
        let (rows, depth) = (sum.len() / input, elements::<E, P>(count));
        P::product(simd, [rows, depth, input], a, b, Target { data: sum, row: input, add });
    }
}
