//! `PIL.ImageFilter.GaussianBlur`: three box blurs of fractional width along each axis, rounded to bytes after each.

#[cfg(target_arch = "x86_64")]
use pulp::{bytemuck::cast, x86::V3};

use super::planes::{BlurBuffers, Planes};
#[cfg(target_arch = "x86_64")]
use crate::ops::simd::avx2;
use crate::ops::simd::vectorized;

/// Number of successive box blurs, which together approximate a Gaussian.
const PASSES: usize = 3;

/// Blurs with standard deviation `sigma` in pixels; pixels beyond the edge repeat the outermost.
pub(super) fn gaussian_blur(planes: &mut Planes, sigma: f32, buffers: &mut BlurBuffers) {
    let side = planes.width;
    let Some(kernel) = BoxBlur::of(sigma) else { return };
    let BlurBuffers { turned, other, sums } = buffers;
    for buffer in [&mut *turned, &mut *other] {
        buffer.resize(side * side, 0);
    }
    sums.resize(side, 0);
    let plane = side * side;
    for bytes in planes.bytes.chunks_exact_mut(plane) {
        // Rows are blurred as columns of the transposed plane, so that the loops run along memory in both directions.
        transpose(bytes, turned, side);
        for _ in 0..PASSES {
            box_blur(turned, other, side, kernel, sums);
            std::mem::swap(turned, other);
        }
        transpose(turned, bytes, side);
        other.copy_from_slice(bytes);
        for _ in 0..PASSES {
            box_blur(other, turned, side, kernel, sums);
            std::mem::swap(turned, other);
        }
        bytes.copy_from_slice(other);
    }
}

/// One of the box blurs: the pixels to either side that count in full, and, in 24-bit fixed point, the weight of each and
/// that of the two pixels beyond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct BoxBlur {
    pub whole: u32,
    pub weight: u32,
    pub far_weight: u32,
}

impl BoxBlur {
    /// For a blur of standard deviation `sigma` in pixels; None where it changes nothing.
    pub fn of(sigma: f32) -> Option<BoxBlur> {
        let radius = box_radius(sigma);
        let whole = radius as u32;
        let weight = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        let far_weight = ((1u32 << 24) - (2 * whole + 1) * weight) / 2;
        (radius != 0.0).then_some(BoxBlur { whole, weight, far_weight })
    }
}

/// Radius of the boxes (Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering",
/// equations 7, 11 and 14), in single precision as Pillow computes it.
fn box_radius(sigma: f32) -> f32 {
    let variance = sigma * sigma / PASSES as f32;
    let length = (12.0 * variance as f64 + 1.0).sqrt() as f32;
    let whole = ((length as f64 - 1.0) / 2.0).floor() as f32;
    let mut part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    part /= 6.0 * (variance - (whole + 1.0) * (whole + 1.0));
    whole + part
}

/// One box blur down the columns of a `side` x `side` plane.
fn box_blur(from: &[u8], to: &mut [u8], side: usize, kernel: BoxBlur, sums: &mut [u32]) {
    let BoxBlur { whole, weight, far_weight } = kernel;
    let row = |y: isize| &from[y.clamp(0, side as isize - 1) as usize * side..][..side];
    let reach = whole as isize;
    sums.fill(0);
    for y in -reach..=reach {
        add_row(sums, row(y));
    }
    for (y, out) in (0..).zip(to.chunks_exact_mut(side)) {
        let (before, first, next) = (row(y - reach - 1), row(y - reach), row(y + reach + 1));
        blur_row(sums, Rows { before, first, next, out }, weight, far_weight);
    }
}

/// Adds a row to the sums.
fn add_row(sums: &mut [u32], row: &[u8]) {
    vectorized(
        #[inline(always)]
        || {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += value as u32;
            }
        },
    );
}

/// The row before a box, the box's first row, the row behind the box, and the output row.
struct Rows<'a> {
    before: &'a [u8],
    first: &'a [u8],
    next: &'a [u8],
    out: &'a mut [u8],
}

/// A row of the result from the sums of the box, which then moves on by a row.
fn blur_row(sums: &mut [u32], rows: Rows, weight: u32, far_weight: u32) {
    vectorized(
        #[inline(always)]
        || {
            let n = sums.len();
            let Rows { before, first, next, out } = rows;
            let (before, first, next, out) = (&before[..n], &first[..n], &next[..n], &mut out[..n]);
            for x in 0..n {
                let far = before[x] as u32 + next[x] as u32;
                out[x] = ((sums[x] * weight + far * far_weight + (1 << 23)) >> 24) as u8;
                // The sum contains the row that leaves it, so it never becomes negative.
                sums[x] = sums[x].wrapping_add(next[x] as u32).wrapping_sub(first[x] as u32);
            }
        },
    );
}

/// Side in pixels of a tile that is transposed at once.
const TILE: usize = 8;

/// Transposes a plane.
fn transpose(from: &[u8], to: &mut [u8], side: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = avx2() {
        return simd.vectorize(
            #[inline(always)]
            || transpose_by(|tile| turned(simd, tile), from, to, side),
        );
    }
    transpose_by(|tile| std::array::from_fn(|x| tile.map(|row| row[x])), from, to, side);
}

#[inline(always)]
fn transpose_by(turned: impl Fn([[u8; TILE]; TILE]) -> [[u8; TILE]; TILE], from: &[u8], to: &mut [u8], side: usize) {
    let whole = side - side % TILE;
    for top in (0..whole).step_by(TILE) {
        for left in (0..whole).step_by(TILE) {
            let mut tile = [[0; TILE]; TILE];
            for (y, row) in tile.iter_mut().enumerate() {
                row.copy_from_slice(&from[side * (top + y) + left..][..TILE]);
            }
            for (x, column) in turned(tile).iter().enumerate() {
                to[side * (left + x) + top..][..TILE].copy_from_slice(column);
            }
        }
    }
    for y in 0..side {
        for x in if y < whole { whole } else { 0 }..side {
            to[side * x + y] = from[side * y + x];
        }
    }
}

/// Transposes a tile by instructions that interleave bytes, then pairs of bytes, then groups of four.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turned(simd: V3, tile: [[u8; TILE]; TILE]) -> [[u8; TILE]; TILE] {
    let sse2 = simd.sse2;
    let pair = |a: [u8; TILE], b: [u8; TILE]| sse2._mm_unpacklo_epi8(cast([a, [0; TILE]]), cast([b, [0; TILE]]));
    let [a, b, c, d, e, f, g, h] = tile;
    let (ab, cd, ef, gh) = (pair(a, b), pair(c, d), pair(e, f), pair(g, h));
    let (abcd, efgh) = (sse2._mm_unpacklo_epi16(ab, cd), sse2._mm_unpacklo_epi16(ef, gh));
    let (abcd_right, efgh_right) = (sse2._mm_unpackhi_epi16(ab, cd), sse2._mm_unpackhi_epi16(ef, gh));
    cast([
        sse2._mm_unpacklo_epi32(abcd, efgh),
        sse2._mm_unpackhi_epi32(abcd, efgh),
        sse2._mm_unpacklo_epi32(abcd_right, efgh_right),
        sse2._mm_unpackhi_epi32(abcd_right, efgh_right),
    ])
}
