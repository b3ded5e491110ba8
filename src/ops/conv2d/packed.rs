//! Convolutions with packed weights, tile by tile: patches are gathered, packed where factors are rounded, and multiplied.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Conv2d, LEAST_ROWS, Size, Source, TILE,
    backward::{add_in_order, weight_parts},
    even_rows,
};
use crate::ops::{
    Real,
    batch_norm::TileMoments,
    columns::WHOLE_VECTORS,
    gemm::{Matrix, Threads},
    product::{Left, Operand, Panels, WithOperand, elements, multiply},
};

/// Weight gradients of at least so many elements are not summed apart: all threads share each product.
const SHARED_PRODUCT: usize = 1 << 18;
/// Output pixels per tile then.
const SHARED_TILE_ROWS: usize = 1024;
/// Output channels per task then.
const SHARED_OUTPUTS: usize = 64;

impl Conv2d {
    /// Whether weights can be packed: output channels come in whole vectors.
    pub(super) fn is_packed(&self) -> bool {
        self.output.is_multiple_of(WHOLE_VECTORS)
    }

    /// Output pixels per tile, of `pixels`.
    fn packed_rows(&self, pixels: usize, pack: usize) -> usize {
        even_rows(pixels, (TILE / (self.patch() / pack)).clamp(LEAST_ROWS, 512))
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
    pub moments: &'a mut TileMoments<E>,
}

impl<E: Real> WithOperand<E> for Forward<'_, E> {
    type Output = ();

    fn with<P: Operand<E>>(self) {
        let Self { conv, x, size, weight, beta, y, moments } = self;
        let (pixels, patch) = (conv.output_size(size).pixels(), conv.patch());
        let rows = conv.packed_rows(pixels, P::PACK);
        let row = if P::PACKS { patch.next_multiple_of(WHOLE_VECTORS) } else { patch };
        moments.reset(pixels, rows, conv.output);
        E::with_scratch(elements::<E, P>(patch) * conv.output, |memory| {
            let weight = Panels::pack::<P>(weight, memory);
            y.par_chunks_mut(rows * conv.output).zip(moments.par_tiles()).enumerate().for_each_init(
                Vec::new,
                |patches, (tile, (y, mut moments))| {
                    let range = tile * rows..tile * rows + y.len() / conv.output;
                    let a = conv.patches(x, size, range, row, patches, Threads::One);
                    Left::with_rows::<P>(a.data, row, |a| multiply::<E, P>(a, weight, y, beta != E::zero()));
                    moments.of(y);
                },
            );
        });
    }
}

/// gx += conv^T(gy, weight), for strides that leave no convolution and patches of whole vectors.
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
        E::with_scratch(elements::<E, P>(conv.output) * patch, |memory| {
            let weight = Panels::pack::<P>(Matrix::new(weight, conv.output, patch), memory);
            let images = gx.par_chunks_mut(size.h * size.w * conv.input).zip(gy.par_chunks(pixels * conv.output));
            images.for_each(|(gx, gy)| {
                E::with_scratch(rows * patch, |patches| {
                    for (tile, gy) in gy.chunks(rows * conv.output).enumerate() {
                        let range = tile * rows..tile * rows + gy.len() / conv.output;
                        let patches = &mut patches[..range.len() * patch];
                        Left::with_rows::<P>(gy, conv.output, |gy| multiply::<E, P>(gy, weight, patches, false));
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
        let (pixels, patch) = (conv.output_size(size).pixels(), conv.patch());
        let row = patch.next_multiple_of(WHOLE_VECTORS);
        // A tile's factors, packed across its pixels: gradients [pixels, output] and patches [pixels, row].
        let with_tile =
            |range: Range<usize>, threads, patches: &mut Vec<E>, work: &mut dyn FnMut(Left<E>, Panels<E>)| {
                let depth = elements::<E, P>(range.len());
                E::with_scratch(depth * (conv.output + row), |memory| {
                    let (left, right) = memory.split_at_mut(depth * conv.output);
                    let gy = Matrix::new(&gy[range.start * conv.output..], range.len(), conv.output);
                    let patches = conv.patches(x, size, range, row, patches, threads);
                    work(Left::transposed::<P>(gy, left, threads), Panels::pack::<P>(patches, right));
                });
            };
        if conv.weights() >= SHARED_PRODUCT && row == patch {
            let mut patches = Vec::new();
            for first in (0..pixels).step_by(SHARED_TILE_ROWS) {
                let range = first..(first + SHARED_TILE_ROWS).min(pixels);
                with_tile(range, Threads::All, &mut patches, &mut |left, right| {
                    gw.par_chunks_mut(SHARED_OUTPUTS * patch).enumerate().for_each(|(i, gw)| {
                        let outputs = i * SHARED_OUTPUTS..i * SHARED_OUTPUTS + gw.len() / patch;
                        multiply::<E, P>(left.part(outputs), right, gw, true);
                    });
                });
            }
            return;
        }
        let [part, rows] = weight_parts(pixels, conv.packed_rows(pixels, 1));
        let mut sums = vec![E::zero(); pixels.div_ceil(part) * conv.output * row];
        sums.par_chunks_mut(conv.output * row).enumerate().for_each_init(Vec::new, |patches, (i, sum)| {
            let end = ((i + 1) * part).min(pixels);
            for first in (i * part..end).step_by(rows) {
                let range = first..(first + rows).min(end);
                with_tile(range, Threads::One, patches, &mut |left, right| multiply::<E, P>(left, right, sum, true));
            }
        });
        if row == patch {
            return add_in_order(&sums, gw);
        }
        let (sum, others) = sums.split_at_mut(conv.output * row);
        add_in_order(others, sum);
        for (gw, sum) in gw.chunks_exact_mut(patch).zip(sum.chunks_exact(row)) {
            add_in_order(&sum[..patch], gw);
        }
    }
}
