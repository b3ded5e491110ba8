//! Convolutions with packed weights, tile by tile: patches are gathered, packed where factors are rounded, and multiplied.

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

/// Elements of patches that are gathered and multiplied at once (16 KiB in f32): they should stay in a core's first cache.
const NEAR: usize = 1 << 12;
/// Elements of weights, at most, that are so few that they may be read again for each of these.
const NEAR_WEIGHTS: usize = 2 * NEAR;
/// Tasks, at least, where parts of few rows are multiplied several at once.
const LEAST_TASKS: usize = 4;
/// Output pixels whose weight gradients are summed apart, at least: every sum costs a pass over the weights.
const LEAF_ROWS: usize = 512;
/// Weight gradients of at least so many elements are shared out among all threads, instead of what is summed apart.
const SHARED_PRODUCT: usize = 1 << 18;
/// Output pixels per tile then, at most.
const SHARED_TILE_ROWS: usize = 1024;
/// Output pixels of all leaves that are multiplied at once then, at most.
const SHARED_ROWS: usize = 2048;
/// Output channels per task then.
const SHARED_OUTPUTS: usize = 64;
/// Leaves for as many threads as there may be, where parts are multiplied several at once.
const TASKS: usize = 8;

impl Conv2d {
    /// Output pixels per tile, of the `pixels` of a part.
    fn packed_rows(&self, pixels: usize, pack: usize) -> usize {
        even_rows(pixels, (TILE / (self.patch() / pack)).clamp(LEAST_ROWS, 512))
    }

    /// Output pixels whose patches are gathered and multiplied at once, where that pays.
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
    /// Channels of the statistics: all outputs, or fewer where those of several pixels make a row of them.
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
            // Weights are read again for every task, so parts of few rows are taken together.
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

/// gx += conv^T(gy, weight), for strides that leave no convolution.
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
        // A part of many pixels is cut into leaves; several leaves of few are multiplied at once, where threads still get enough.
        let within = leaves(part, least);
        let (count, leaf) = (parts * within, part / within);
        let even = part.is_multiple_of(within) && leaf.is_multiple_of(P::PACK) && (within == 1 || !P::PACKS);
        let together = power(|together| {
            let enough = shared || count / together >= TASKS;
            even && together <= count && together * leaf <= most_together && enough
        });
        // A tile's factors, across its pixels: gradients [pixels, output] and patches [pixels, row].
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
            // The whole tree at once, without a sum of its own: factors that are packed may be multiplied faster without leaves.
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
