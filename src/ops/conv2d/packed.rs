//! Convolutions with packed weights, tile by tile: gathers patches, packs them where factors are rounded, and multiplies.

use std::ops::Range;

use rayon::prelude::*;

use super::{BLOCK_ROWS, Conv2d, LEAST_ROWS, Size, Source, TILE, even_rows};
use crate::ops::{
    Real,
    batch_norm::TileMoments,
    matmul::{Left, Operand, Panels, Start, WithOperand, multiply, multiply_leaves},
    matrix::Matrix,
    parts::{Threads, Tiles, Work, add_tree, leaf_rows, leaves, parts, power},
    reductions::WHOLE_VECTORS,
};

/// Elements of patches that are gathered and multiplied at once (16 KiB in f32). They should stay in a core's L1 cache.
const NEAR: usize = 1 << 12;
/// Largest number of weights for which gathering [`NEAR`] elements at a time pays: weights are read again each time.
const NEAR_WEIGHTS: usize = 2 * NEAR;
/// Fewest tasks that must remain when several parts of few rows are multiplied together.
const LEAST_TASKS: usize = 4;
/// Fewest output pixels of a leaf of the weight gradient: every leaf costs a pass over the weights.
const LEAF_ROWS: usize = 512;
/// From this many weights on, all threads share each product of the weight gradient. Below it, each thread has leaves of its
/// own.
const SHARED_PRODUCT: usize = 1 << 18;
/// Most output pixels per tile when all threads share a product.
const SHARED_TILE_ROWS: usize = 1024;
/// Most output pixels of leaves that are multiplied together when all threads share a product.
const SHARED_ROWS: usize = 2048;
/// Output channels per task when all threads share a product.
const SHARED_OUTPUTS: usize = 64;
/// Fewest tasks that must remain when several leaves are multiplied together, so that up to as many threads have work.
const TASKS: usize = 8;

impl Conv2d {
    /// Output pixels per tile of a part of `pixels`, where an element holds `pack` factors.
    fn packed_rows(&self, pixels: usize, pack: usize) -> usize {
        even_rows(pixels, (TILE / (self.patch() / pack)).clamp(LEAST_ROWS, 512))
    }

    /// Output pixels whose patches are gathered and multiplied at once; None where whole tiles are better.
    fn near_rows(&self) -> Option<usize> {
        let rows = (NEAR / self.patch()).next_multiple_of(BLOCK_ROWS).max(LEAST_ROWS);
        (self.weights() <= NEAR_WEIGHTS).then_some(rows)
    }
}

/// y = conv(x, weight) + beta y, with `beta` 0 or 1.
pub struct Forward<'a, E> {
    pub conv: &'a Conv2d,
    pub x: Source<'a, E>,
    pub size: Size,
    /// [patch, output]
    pub weight: Matrix<'a, E>,
    pub beta: E,
    pub y: &'a mut [E],
    /// Channels of the statistics: all outputs, or fewer where an output row holds several pixels.
    pub channels: usize,
    pub moments: &'a mut TileMoments<E>,
}

impl<E: Real> WithOperand<E> for Forward<'_, E> {
    type Output = ();

    fn with<P: Operand<E>>(self) {
        let Self { conv, x, size, weight, beta, y, channels, moments } = self;
        let (pixels, patch, parts) = (conv.output_size(size).pixels(), conv.patch(), parts(size.n));
        let tiles = Tiles::new(pixels, parts, conv.packed_rows(pixels / parts, P::PACK));
        let row = if P::PACKS { patch.next_multiple_of(WHOLE_VECTORS) } else { patch };
        moments.reset(tiles.in_rows_of(conv.output / channels), channels);
        E::with_scratch(Panels::<E>::len::<P>([patch, conv.output]), |memory| {
            let weight = Panels::pack::<P>(weight, memory, Threads::All);
            // Every task reads the weights again, so several parts of few rows form one task.
            let few = tiles.per_part() == 1;
            let together = power(|count| few && count * tiles.part <= LEAST_ROWS && parts >= count * LEAST_TASKS);
            let tasks = if together == 1 { tiles } else { Tiles::new(pixels, parts / together, usize::MAX) };
            let y = tasks.each_mut(y, conv.output).into_par_iter().zip(moments.par_tiles().chunks(together));
            y.enumerate().for_each_init(Vec::new, |patches, (task, (y, moments))| {
                let rows = tasks.rows(task);
                let near = conv.near_rows().unwrap_or(rows.len());
                for (first, y) in rows.step_by(near).zip(y.chunks_mut(near * conv.output)) {
                    let rows = first..first + y.len() / conv.output;
                    let a = conv.patches(x, size, rows, row, patches, Threads::One);
                    let start = Start::adding(beta != E::zero());
                    Left::with_rows::<P>(a.data, row, |a| multiply::<E, P>(a, weight, y, start));
                }
                y.chunks(y.len() / together).zip(moments).for_each(|(y, mut moments)| moments.of(y));
            });
        });
    }
}

/// gx += conv^T(gy, weight), for strides above 1. (With stride 1 it is a convolution itself.)
pub struct BackwardData<'a, E> {
    pub conv: &'a Conv2d,
    pub gy: &'a [E],
    pub size: Size,
    pub weight: &'a [E],
    pub gx: &'a mut [E],
}

impl<E: Real> WithOperand<E> for BackwardData<'_, E> {
    type Output = ();

    fn with<P: Operand<E>>(self) {
        let Self { conv, gy, size, weight, gx } = self;
        let (out, patch) = (conv.output_size(size), conv.patch());
        let (one, pixels) = (Size { n: 1, ..size }, out.h * out.w);
        let rows = conv.packed_rows(pixels, P::PACK);
        E::with_scratch(Panels::<E>::len::<P>([conv.output, patch]), |memory| {
            let weight = Panels::pack::<P>(Matrix::new(weight, conv.output, patch), memory, Threads::All);
            let images = gx.par_chunks_mut(size.h * size.w * conv.input).zip(gy.par_chunks(pixels * conv.output));
            images.for_each(|(gx, gy)| {
                E::with_scratch(rows * patch, |patches| {
                    for (tile, gy) in gy.chunks(rows * conv.output).enumerate() {
                        let range = tile * rows..tile * rows + gy.len() / conv.output;
                        let patches = &mut patches[..range.len() * patch];
                        Left::with_rows::<P>(gy, conv.output, |gy| multiply::<E, P>(gy, weight, patches, Start::Zero));
                        conv.scatter(patches, one, range, gx);
                    }
                });
            });
        });
    }
}

/// gw += the weight gradient.
pub struct BackwardWeight<'a, E> {
    pub conv: &'a Conv2d,
    pub x: Source<'a, E>,
    pub size: Size,
    pub gy: &'a [E],
    pub gw: &'a mut [E],
}

impl<E: Real> WithOperand<E> for BackwardWeight<'_, E> {
    type Output = ();

    fn with<P: Operand<E>>(self) {
        let Self { conv, x, size, gy, gw } = self;
        let (pixels, patch, parts) = (conv.output_size(size).pixels(), conv.patch(), parts(size.n));
        let (row, part) = (patch.next_multiple_of(WHOLE_VECTORS), pixels / parts);
        let shared = conv.weights() >= SHARED_PRODUCT;
        let [least, most, most_together] = match shared {
            true => [SHARED_TILE_ROWS / 2, SHARED_TILE_ROWS, SHARED_ROWS],
            false => [LEAF_ROWS, conv.packed_rows(part, 1), conv.packed_rows(part, 1)],
        };
        // A part of many pixels is cut into leaves. Several leaves of few pixels are multiplied together while enough tasks
        // remain.
        let within = leaves(part, least);
        let (count, leaf) = (parts * within, part / within);
        let even = part.is_multiple_of(within) && leaf.is_multiple_of(P::PACK) && (within == 1 || !P::PACKS);
        let together = power(|together| {
            let enough = shared || count / together >= TASKS;
            P::sums_in_order() && even && together <= count && together * leaf <= most_together && enough
        });
        // Calls `work` with a tile's factors, packed across its pixels: gradients [pixels, output] and patches [pixels, row].
        let with_tile =
            |rows: Range<usize>, threads, patches: &mut Vec<E>, work: &mut dyn FnMut(Left<E>, Panels<E>)| {
                let gy = Matrix::new(&gy[rows.start * conv.output..rows.end * conv.output], rows.len(), conv.output);
                let patches = conv.patches(x, size, rows, row, patches, threads);
                E::with_scratch(Panels::<E>::len::<P>([patches.rows, row]), |memory| {
                    let right = Panels::pack::<P>(patches, memory, threads).first(patch);
                    Left::with_transposed::<P>(gy, threads, |left| work(left, right));
                });
            };
        let (work, threads) = if shared { (Work::Within, Threads::All) } else { (Work::Leaves, Threads::One) };
        let product = |left: Left<E>, right: Panels<E>, sum: &mut [E], start: Start<E>, leaves| match shared {
            false => multiply_leaves::<E, P>(left, right, sum, start, leaves),
            true => sum.par_chunks_mut(SHARED_OUTPUTS * patch).enumerate().for_each(|(i, sum)| {
                let outputs = i * SHARED_OUTPUTS..i * SHARED_OUTPUTS + sum.len() / patch;
                multiply_leaves::<E, P>(left.part(outputs), right, sum, start, leaves);
            }),
        };
        if together == count && pixels <= most_together && !P::PACKS {
            // Multiply the whole tree at once and add it to gw without an intermediate sum. Packed factors are excluded: they
            // may be multiplied faster without leaves.
            return with_tile(0..pixels, threads, &mut Vec::new(), &mut |left, right| {
                product(left, right, gw, Start::Target, Some(count));
            });
        }
        add_tree(count / together, gw, work, |i, sum| {
            let [first, last] =
                [i * together, (i + 1) * together - 1].map(|leaf| leaf_rows(pixels, parts, within, leaf));
            let (rows, mut patches) = (first.start..last.end, Vec::new());
            let tile = match together {
                1 => conv.near_rows().unwrap_or_else(|| even_rows(rows.len(), most)),
                _ => rows.len(),
            };
            for first in rows.clone().step_by(tile) {
                let (range, start) = (first..(first + tile).min(rows.end), Start::adding(first > rows.start));
                with_tile(range, threads, &mut patches, &mut |left, right| {
                    product(left, right, sum, start, (together > 1).then_some(together));
                });
            }
        });
    }
}
