//! Transforms images to tiles, and products of tiles back to images.
//!
//! A block of tiles is 36 matrices [tiles, channels], one per point of the transformed tile, packed as factors of products. They
//! are packed along the channels where products sum over channels, and across the tiles where they sum over tiles.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};

use super::{
    tiling::{EDGE, POINTS, SIDE, Tiling},
    transform,
};
use crate::ops::{
    Real,
    conv2d::Source,
    matmul::Operand,
    vector::{Vector, lanes},
};

/// Elements of working memory that [`TransformInput`] needs.
pub fn strip_len(tiling: &Tiling, channels: usize) -> usize {
    let row = (tiling.tiles_per_strip * EDGE + 2) * channels;
    // SIDE transformed rows, SIDE rows of pixels and one of zeros
    (2 * SIDE + 1) * row
}

/// B^T d B of every tile of a block, where d is the tile's 4x4 pixels and a border of one pixel, zero outside the image.
pub struct TransformInput<'a, E> {
    pub tiling: &'a Tiling,
    pub block: usize,
    /// All images [n, h, w, channels].
    pub images: Source<'a, E>,
    pub channels: usize,
    pub strip: &'a mut [E],
    /// The block's matrices, [`Tiling::matrix`] elements apart.
    pub points: &'a mut [E],
}

impl<'a, E: Real> TransformInput<'a, E> {
    /// The transformation with results packed along the channels.
    pub fn along<P: Operand<E>>(self) -> impl WithSimd<Output = ()> {
        Transform::<E, P, Input, 6, false> { of: self, kinds: PhantomData }
    }

    /// The transformation with results packed across the tiles.
    pub fn across<P: Operand<E>>(self) -> impl WithSimd<Output = ()> {
        Transform::<E, P, Input, 6, true> { of: self, kinds: PhantomData }
    }

    /// The transformation of a gradient, packed across the tiles: A g A^T of every tile, where g is the gradient of its 4x4
    /// outputs, zero outside the image.
    pub fn gradient<P: Operand<E>>(self) -> impl WithSimd<Output = ()> {
        Transform::<E, P, Gradient, 4, true> { of: self, kinds: PhantomData }
    }
}

/// Transforms `IN` rows of pixels down the columns, then `IN` columns along the rows. If `IN` exceeds a tile's edge, tiles
/// overlap and reach beyond their 4x4 pixels by half of the excess on each side.
struct Transform<'a, E, P, M, const IN: usize, const ACROSS: bool> {
    of: TransformInput<'a, E>,
    kinds: PhantomData<(P, M)>,
}

/// A map along one axis of a tile. It is a trait because a closure would not be compiled for the vector unit.
trait Map<E: Real, const IN: usize> {
    fn map<S: Simd>(values: [Vector<E, S>; IN]) -> [Vector<E, S>; SIDE];
}

struct Input;

impl<E: Real> Map<E, 6> for Input {
    #[inline(always)]
    fn map<S: Simd>(values: [Vector<E, S>; 6]) -> [Vector<E, S>; SIDE] {
        transform::input(values)
    }
}

struct Gradient;

impl<E: Real> Map<E, 4> for Gradient {
    #[inline(always)]
    fn map<S: Simd>(values: [Vector<E, S>; 4]) -> [Vector<E, S>; SIDE] {
        transform::output_gradient(values)
    }
}

impl<E: Real, P: Operand<E>, M: Map<E, IN>, const IN: usize, const ACROSS: bool> WithSimd
    for Transform<'_, E, P, M, IN, ACROSS>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let TransformInput { tiling, block, images, channels, strip, points } = self.of;
        let (border, matrix) = ((IN - EDGE) / 2, tiling.matrix(channels / P::PACK));
        // Elements of a result's vector, tiles per row of a matrix, and elements of such a row.
        let (step, tiles_per_row, points_row) = if ACROSS {
            (lanes::<E, S>(), P::PACK, channels)
        } else {
            (lanes::<E, S>() / P::PACK, 1, channels / P::PACK)
        };
        let (height, width, elements) = (tiling.size.h, tiling.size.w, channels);
        let channels = channels / lanes::<E, S>();
        let line = width * channels;
        let row = (tiling.tiles_per_strip * EDGE + 2 * border) * channels;
        let (rows, pixels) = strip.split_at_mut(SIDE * row * lanes::<E, S>());
        let rows = E::vectors_mut::<S>(rows);
        let (pixels, zeros) = pixels.split_at_mut(SIDE * width * elements);
        zeros[..width * elements].fill(E::zero());
        let zeros = &zeros[..width * elements];
        let zero = E::splat(simd, E::zero());
        for row in rows.chunks_exact_mut(row) {
            row[..border * channels].fill(zero);
            row[border * channels + line..].fill(zero);
        }
        let tiles = tiling.tiles_per_strip;
        assert!(points.len() >= POINTS * matrix && channels * step <= points_row);
        assert!(
            rows.len() == SIDE * row && ((tiles - 1) * EDGE + IN) * channels <= row && border * channels + line <= row
        );
        let mut tile = 0;
        for s in tiling.strips_of(block) {
            let (n, y) = tiling.place_of(s);
            let mut lines: [&[E::Vector<S>]; IN] = [&[]; IN];
            for (i, pixels) in pixels.chunks_exact_mut(width * elements).take(IN).enumerate() {
                let y = (y + i).wrapping_sub(border);
                let first = (n * height + y.min(height)) * width * elements;
                lines[i] = E::vectors::<S>(if y >= height {
                    zeros
                } else if images.relu_of.is_none() {
                    &images.images[first..][..width * elements]
                } else {
                    images.copy_to(first, pixels);
                    pixels
                });
            }
            assert!(lines.iter().all(|pixels| pixels.len() == line));
            for x in 0..line {
                let mut pixels = [Vector::splat(simd, E::zero()); IN];
                for i in 0..IN {
                    // SAFETY: every line has `line` vectors, by the assertion.
                    pixels[i] = Vector::new(simd, unsafe { *lines[i].get_unchecked(x) });
                }
                let values = M::map(pixels);
                for i in 0..SIDE {
                    // SAFETY: there are SIDE rows, each with room for its border and a line, by the first assertions.
                    unsafe { *rows.get_unchecked_mut(i * row + border * channels + x) = values[i].lanes };
                }
            }
            for i in 0..SIDE {
                let line = &rows[i * row..][..row];
                let mut t = 0;
                while t < tiles {
                    let (at, part) = ((tile + t) / tiles_per_row * points_row, (tile + t) % tiles_per_row);
                    let together = if tiles_per_row == 2 && part == 0 && t + 1 < tiles { 2 } else { 1 };
                    // SAFETY: `points` has room for all tiles of all points, by the assertion.
                    let target = unsafe { points.as_mut_ptr().add(i * SIDE * matrix + at) };
                    for v in 0..channels {
                        let first = t * EDGE * channels + v;
                        // SAFETY: the last tile's pixels end within their row, by the first assertions.
                        let values = unsafe { along::<E, S, M, IN>(simd, line, first, channels) };
                        let next = match together {
                            // SAFETY: as above.
                            2 => unsafe { along::<E, S, M, IN>(simd, line, first + EDGE * channels, channels) },
                            _ => values,
                        };
                        for j in 0..SIDE {
                            // SAFETY: as above.
                            unsafe {
                                let target = target.add(j * matrix + v * step);
                                if !ACROSS {
                                    P::store_along(simd, values[j].lanes, target);
                                } else if together == 2 {
                                    P::store_both_across(simd, [values[j].lanes, next[j].lanes], target);
                                } else {
                                    P::store_across(simd, values[j].lanes, part, target);
                                }
                            }
                        }
                    }
                    t += together;
                }
            }
            tile += tiles;
        }
    }
}

/// Maps `IN` pixels of a line: those at vector `first` and at every `channels`-th vector after it.
///
/// # Safety
/// The line must contain these `IN` vectors.
#[inline(always)]
unsafe fn along<E: Real, S: Simd, M: Map<E, IN>, const IN: usize>(
    simd: S,
    line: &[E::Vector<S>],
    first: usize,
    channels: usize,
) -> [Vector<E, S>; SIDE] {
    let mut values = [Vector::splat(simd, E::zero()); IN];
    for j in 0..IN {
        // SAFETY: as the caller promises.
        values[j] = Vector::new(simd, unsafe { *line.get_unchecked(first + j * channels) });
    }
    M::map(values)
}

/// A^T m A of every tile of a block, written to the block's pixels.
pub struct TransformOutput<'a, E> {
    pub tiling: &'a Tiling,
    pub block: usize,
    /// The block's matrices, [`Tiling::matrix`] elements apart.
    pub points: &'a [E],
    pub channels: usize,
    /// The block's pixels: the result is added to them if `add` is set, otherwise it overwrites them.
    pub pixels: &'a mut [E],
    pub add: bool,
}

impl<E: Real> WithSimd for TransformOutput<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { tiling, block, points, channels, pixels, add } = self;
        let (height, width) = (tiling.size.h, tiling.size.w);
        let pixels = E::vectors_mut::<S>(pixels);
        let vectors = channels / lanes::<E, S>();
        let (points, matrix) = (E::vectors::<S>(points), tiling.matrix(channels) / lanes::<E, S>());
        assert!(points.len() >= POINTS * matrix);
        let first = tiling.pixels.rows(block).start;
        let row = width * vectors;
        let mut tile = 0;
        for strip in tiling.strips_of(block) {
            let (n, y) = tiling.place_of(strip);
            let start = (n * height + y) * width - first;
            let lines = EDGE.min(height - y);
            let pixels = &mut pixels[start * vectors..][..lines * row];
            for x in (0..width).step_by(EDGE) {
                let columns = EDGE.min(width - x);
                for v in 0..vectors {
                    let zero = Vector::splat(simd, E::zero());
                    let mut rows = [[zero; SIDE]; EDGE];
                    for i in 0..SIDE {
                        let mut products = [zero; SIDE];
                        for j in 0..SIDE {
                            let at = (i * SIDE + j) * matrix + tile * vectors + v;
                            // SAFETY: `points` has room for all tiles of all points, by the assertion.
                            products[j] = Vector::new(simd, unsafe { *points.get_unchecked(at) });
                        }
                        let values = transform::output(products);
                        for column in 0..EDGE {
                            rows[column][i] = values[column];
                        }
                    }
                    for column in 0..columns {
                        let values = transform::output(rows[column]);
                        for line in 0..lines {
                            let at = line * row + (x + column) * vectors + v;
                            // SAFETY: `line` is below `lines`, and the column below `width`.
                            let pixel = unsafe { pixels.get_unchecked_mut(at) };
                            let value = values[line];
                            *pixel = if add { (Vector::new(simd, *pixel) + value).lanes } else { value.lanes };
                        }
                    }
                }
                tile += 1;
            }
        }
    }
}
