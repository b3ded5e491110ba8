//! Transformed tiles: from images, and back to images.
//!
//! A block of tiles is 36 matrices [tiles, channels], one per point of the transformed tile.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{
    tiling::{EDGE, POINTS, SIDE, Tiling},
    transform,
};
use crate::ops::{Real, conv2d::Source, lanes::Vector};

/// The matrices of a block, each with rows of `row` elements.
pub struct Points<'a, E> {
    pub matrices: Vec<&'a mut [E]>,
    pub row: usize,
}

/// Elements of working memory that [`TransformInput`] and [`TransformGradient`] need.
pub fn strip_len(tiling: &Tiling, channels: usize) -> usize {
    let row = (tiling.tiles_per_strip * EDGE + 2) * channels;
    // as many lines of pixels, and a line of zeros
    (2 * SIDE + 1) * row
}

/// B^T d B of every tile of a block: d are the tile's 4x4 pixels and a border of one, zero outside the image.
pub struct TransformInput<'a, 'b, E> {
    pub tiling: &'a Tiling,
    pub block: usize,
    /// All images [n, h, w, channels].
    pub images: Source<'a, E>,
    pub channels: usize,
    pub strip: &'a mut [E],
    pub points: &'a mut Points<'b, E>,
}

impl<E: Real> WithSimd for TransformInput<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { tiling, block, images, channels, strip, points } = self;
        let strips = tiling.strips_of(block);
        transform_strips::<E, S, Input, 6>(simd, tiling, strips, (images, channels), 1, strip, points);
    }
}

/// A g A^T of every tile of a block: g is the gradient of the tile's 4x4 outputs, zero outside the image.
pub struct TransformGradient<'a, 'b, E>(pub TransformInput<'a, 'b, E>);

impl<E: Real> WithSimd for TransformGradient<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let TransformInput { tiling, block, images, channels, strip, points } = self.0;
        let strips = tiling.strips_of(block);
        transform_strips::<E, S, Gradient, 4>(simd, tiling, strips, (images, channels), 0, strip, points);
    }
}

/// A map along one axis of a tile. A trait rather than a closure: only so is it compiled for the vector unit.
trait Map<E: Real, S: Simd, const IN: usize> {
    fn map(values: [Vector<E, S>; IN]) -> [Vector<E, S>; SIDE];
}

struct Input;

impl<E: Real, S: Simd> Map<E, S, 6> for Input {
    #[inline(always)]
    fn map(values: [Vector<E, S>; 6]) -> [Vector<E, S>; SIDE] {
        transform::input(values)
    }
}

struct Gradient;

impl<E: Real, S: Simd> Map<E, S, 4> for Gradient {
    #[inline(always)]
    fn map(values: [Vector<E, S>; 4]) -> [Vector<E, S>; SIDE] {
        transform::output_gradient(values)
    }
}

fn lanes<E: Real, S: Simd>() -> usize {
    size_of::<E::Vector<S>>() / size_of::<E>()
}

/// Transforms `IN` rows of pixels down the columns, then `IN` columns along the rows; tiles overlap where `IN` is more
/// than a tile's edge, and reach `border` pixels beyond it.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn transform_strips<E: Real, S: Simd, M, const IN: usize>(
    simd: S,
    tiling: &Tiling,
    strips: Range<usize>,
    (images, channels): (Source<E>, usize),
    border: usize,
    strip: &mut [E],
    points: &mut Points<E>,
) where
    M: Map<E, S, IN>,
{
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
    let mut tile = 0;
    for s in strips {
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
        for x in 0..line {
            let mut pixels = [Vector::splat(simd, E::zero()); IN];
            for i in 0..IN {
                pixels[i] = Vector::new(simd, lines[i][x]);
            }
            let values = M::map(pixels);
            for i in 0..SIDE {
                rows[i * row + border * channels + x] = values[i].lanes;
            }
        }
        for (i, matrices) in points.matrices.chunks_exact_mut(SIDE).enumerate() {
            let line = &rows[i * row..][..row];
            for t in 0..tiling.tiles_per_strip {
                let at = (tile + t) * points.row;
                let pixels = &line[t * EDGE * channels..][..IN * channels];
                let mut targets: [&mut [E::Vector<S>]; SIDE] = Default::default();
                for (target, m) in targets.iter_mut().zip(&mut *matrices) {
                    *target = &mut E::vectors_mut::<S>(&mut m[at..][..channels * lanes::<E, S>()])[..channels];
                }
                for v in 0..channels {
                    let mut values = [Vector::splat(simd, E::zero()); IN];
                    for j in 0..IN {
                        values[j] = Vector::new(simd, pixels[j * channels + v]);
                    }
                    let values = M::map(values);
                    for j in 0..SIDE {
                        targets[j][v] = values[j].lanes;
                    }
                }
            }
        }
        tile += tiling.tiles_per_strip;
    }
}

/// A^T m A of every tile of a block, written to the block's pixels.
pub struct TransformOutput<'a, E> {
    pub tiling: &'a Tiling,
    pub block: usize,
    /// The block's matrices, and the elements of their rows.
    pub points: [&'a [E]; POINTS],
    pub row: usize,
    pub channels: usize,
    /// The block's pixels; what they hold is kept and added to where `add` says so.
    pub pixels: &'a mut [E],
    pub add: bool,
}

impl<E: Real> WithSimd for TransformOutput<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { tiling, block, points, row, channels, pixels, add } = self;
        let (height, width) = (tiling.size.h, tiling.size.w);
        let pixels = E::vectors_mut::<S>(pixels);
        let vectors = channels / lanes::<E, S>();
        let first = block * tiling.pixels_per_block();
        let mut tile = 0;
        for strip in tiling.strips_of(block) {
            let (n, y) = tiling.place_of(strip);
            let start = (n * height + y) * width - first;
            let lines = EDGE.min(height - y);
            for x in (0..width).step_by(EDGE) {
                let columns = EDGE.min(width - x);
                let mut sources = [&[] as &[E::Vector<S>]; POINTS];
                for (source, m) in sources.iter_mut().zip(points) {
                    *source = &E::vectors::<S>(&m[tile * row..][..channels])[..vectors];
                }
                for v in 0..vectors {
                    let zero = Vector::splat(simd, E::zero());
                    let mut rows = [[zero; SIDE]; EDGE];
                    for i in 0..SIDE {
                        let mut products = [zero; SIDE];
                        for j in 0..SIDE {
                            products[j] = Vector::new(simd, sources[i * SIDE + j][v]);
                        }
                        let values = transform::output(products);
                        for column in 0..EDGE {
                            rows[column][i] = values[column];
                        }
                    }
                    for column in 0..columns {
                        let values = transform::output(rows[column]);
                        for line in 0..lines {
                            let pixel = &mut pixels[(start + line * width + x + column) * vectors + v];
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
