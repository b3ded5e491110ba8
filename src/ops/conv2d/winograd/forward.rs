//! Forward pass, which is also the data gradient with mirrored weights.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    SHARED, blocks_at_once, by_block,
    product::{Strided, Target, product},
    tiles::{Points, TransformInput, TransformOutput, strip_len},
    tiling::{POINTS, Tiling},
    weights::Weights,
};
use crate::ops::{
    Real,
    batch_norm::TileMoments,
    conv2d::{Conv2d, Source},
};

impl Conv2d {
    /// y = conv(x, weights) + beta y with `beta` 0 or 1, where element (output, tap, input) of the weights is `weight`'s
    /// result. With `moments`, statistics of y are taken while a block is in the cache.
    pub fn winograd<E: Real>(
        &self,
        tiling: &Tiling,
        x: Source<E>,
        weight: impl Fn(usize, usize, usize) -> E + Sync,
        beta: E,
        y: &mut [E],
        moments: &mut TileMoments<E>,
    ) {
        E::with_scratch(Weights::<E>::len(self.input, self.output), |memory| {
            let weights = &Weights::of(self.input, self.output, weight, memory);
            let pixels = tiling.pixels_per_block();
            moments.reset(tiling.size.pixels(), pixels, self.output);
            let pass = Pass { conv: self, tiling, x, weights, add: beta != E::zero() };
            let blocks = y.par_chunks_mut(pixels * self.output).zip(moments.par_tiles()).enumerate();
            if self.input * self.output < SHARED {
                blocks.for_each(|(block, (y, mut moments))| {
                    pass.one_block(block, y);
                    moments.of(y);
                });
                return;
            }
            let mut blocks: Vec<_> = blocks.collect();
            for group in blocks.chunks_mut(blocks_at_once(tiling, self.input + self.output)) {
                pass.shared_blocks(group.iter_mut().map(|(block, (y, _))| (*block, &mut **y)).collect());
                group.par_iter_mut().for_each(|(_, (y, moments))| moments.of(y));
            }
        });
    }
}

/// What all blocks share.
struct Pass<'a, E> {
    conv: &'a Conv2d,
    tiling: &'a Tiling,
    x: Source<'a, E>,
    weights: &'a Weights<'a, E>,
    add: bool,
}

impl<E: Real> Pass<'_, E> {
    fn input(&self, block: usize, matrices: Vec<&mut [E]>) {
        let channels = self.conv.input;
        E::with_scratch(strip_len(self.tiling, channels), |strip| {
            let mut points = Points { matrices, row: channels };
            let (tiling, images) = (self.tiling, self.x);
            Arch::new().dispatch(TransformInput { tiling, block, images, channels, strip, points: &mut points });
        });
    }

    fn output(&self, block: usize, points: [&[E]; POINTS], pixels: &mut [E]) {
        let channels = self.conv.output;
        let (tiling, add) = (self.tiling, self.add);
        Arch::new().dispatch(TransformOutput { tiling, block, points, row: channels, channels, pixels, add });
    }

    fn multiply(&self, point: usize, tiles: &[E], products: &mut [E]) {
        let (weights, rows, input) = (self.weights, self.tiling.rows(), self.conv.input);
        Arch::new().dispatch(Multiply { weights, point, rows, input, tiles, products, output: self.conv.output });
    }

    /// Takes one block through all stages on this thread.
    fn one_block(&self, block: usize, y: &mut [E]) {
        let [input, output] = self.tiling.matrices(self.conv);
        E::with_scratch(POINTS * (input + output), |memory| {
            let (tiles, products) = memory.split_at_mut(POINTS * input);
            self.input(block, tiles.chunks_exact_mut(input).collect());
            for (point, (tiles, products)) in
                tiles.chunks_exact(input).zip(products.chunks_exact_mut(output)).enumerate()
            {
                self.multiply(point, tiles, products);
            }
            self.output(block, std::array::from_fn(|p| &products[p * output..][..output]), y);
        });
    }

    /// Takes several blocks through the stages, each stage on all threads.
    fn shared_blocks(&self, blocks: Vec<(usize, &mut [E])>) {
        let [input, output] = self.tiling.matrices(self.conv);
        let count = blocks.len();
        E::with_scratch(POINTS * count * (input + output), |memory| {
            let (tiles, products) = memory.split_at_mut(POINTS * count * input);
            let first = blocks[0].0;
            by_block(tiles, input).into_par_iter().enumerate().for_each(|(i, matrices)| {
                self.input(first + i, matrices);
            });
            // Point by point, so that its weights stay in the cache while block after block passes.
            tiles.par_chunks_exact(input).zip(products.par_chunks_exact_mut(output)).enumerate().for_each(
                |(i, (tiles, products))| {
                    self.multiply(i / count, tiles, products);
                },
            );
            let products = &*products;
            blocks.into_par_iter().enumerate().for_each(|(i, (block, y))| {
                let points = std::array::from_fn(|p| &products[(p * count + i) * output..][..output]);
                self.output(block, points, y);
            });
        });
    }
}

/// One point's product: tiles [rows, input] times weights [input, output].
struct Multiply<'a, E> {
    weights: &'a Weights<'a, E>,
    point: usize,
    rows: usize,
    input: usize,
    output: usize,
    tiles: &'a [E],
    products: &'a mut [E],
}

impl<E: Real> WithSimd for Multiply<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weights, point, rows, input, output, tiles, products } = self;
        for panel in weights.panels(point) {
            let a = Strided { data: tiles, row: input, column: 1 };
            let b = Strided { data: panel.values, row: panel.width, column: 1 };
            let c = Target { data: &mut products[panel.first..], row: output, add: false };
            product(simd, [rows, input, panel.width], a, b, c);
        }
    }
}
