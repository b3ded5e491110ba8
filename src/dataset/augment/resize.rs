//! Bilinear resizing with antialiasing: the bytes of Pillow's `Image.resize(…, BILINEAR)` of a crop.

use image::RgbImage;

use super::{
    crop::CropBox,
    taps::{BITS, Taps, columns_first},
};
use crate::ops::simd::vectorized;

/// Rows that are resized side by side.
const GROUP: usize = 4;
/// Bytes of a pixel of a group: red, green, blue and one that counts for nothing.
const PIXEL: usize = 4;
/// Bytes of one column of a group.
const COLUMN: usize = GROUP * PIXEL;
/// Bytes of a row that are mixed at once.
const CHUNK: usize = 64;

/// Resizes parts of images, with buffers that grow to the largest and stay.
#[derive(Default)]
pub(super) struct Resizer {
    /// A group of source rows, column by column.
    group: Vec<[u8; COLUMN]>,
    /// What the first of the two passes makes.
    between: Vec<u8>,
}

/// Rows of interleaved RGB pixels.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// From the first pixel on.
    bytes: &'a [u8],
    /// Bytes from row to row.
    stride: usize,
    width: usize,
    height: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn row(self, y: usize) -> &'a [u8] {
        &self.bytes[self.stride * y..][..3 * self.width]
    }
}

impl Resizer {
    /// Resizes a part of `image` to `width` x `height` interleaved RGB pixels in `out`. Pixels beyond the box have no share
    /// in the result: torchvision crops first.
    pub fn crop_resize(&mut self, image: &RgbImage, part: CropBox, (width, height): (u32, u32), out: &mut Vec<u8>) {
        let (along, down) = (Taps::new(part.width, width), Taps::new(part.height, height));
        let stride = 3 * image.width() as usize;
        let start = stride * part.top as usize + 3 * part.left as usize;
        let (part_width, part_height) = (part.width as usize, part.height as usize);
        let source = Rows { bytes: &image.as_raw()[start..], stride, width: part_width, height: part_height };
        let (width, height) = (width as usize, height as usize);
        out.resize(3 * width * height, 0);
        self.group.resize(part_width, [0; COLUMN]);
        let Resizer { group, between } = self;
        if columns_first(part, (width as u32, height as u32)) {
            between.resize(3 * part_width * height, 0);
            vectorized(
                #[inline(always)]
                || resize_columns(source, &down, between),
            );
            let between = Rows { bytes: between, stride: 3 * part_width, width: part_width, height };
            vectorized(
                #[inline(always)]
                || resize_rows(between, &along, group, out),
            );
        } else {
            between.resize(3 * width * part_height, 0);
            vectorized(
                #[inline(always)]
                || resize_rows(source, &along, group, between),
            );
            let between = Rows { bytes: between, stride: 3 * width, width, height: part_height };
            vectorized(
                #[inline(always)]
                || resize_columns(between, &down, out),
            );
        }
    }
}

/// Rows at their new width, without gaps.
#[inline(always)]
fn resize_rows(source: Rows, taps: &Taps, group: &mut [[u8; COLUMN]], out: &mut [u8]) {
    let row = 3 * taps.iter().len();
    for (start, out) in (0..).step_by(GROUP).zip(out.chunks_mut(GROUP * row)) {
        // Beyond the end the last row is repeated; what comes of it is not kept.
        side_by_side(std::array::from_fn(|i| source.row((start + i).min(source.height - 1))), group);
        for (x, (first, weights)) in taps.iter().enumerate() {
            let mut sums = [HALF; COLUMN];
            for (column, &weight) in group[first..].iter().zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(column) {
                    *sum += weight * i32::from(value);
                }
            }
            let mut bytes = [0; COLUMN];
            round(&sums, &mut bytes);
            for (out, pixel) in out.chunks_exact_mut(row).zip(bytes.chunks_exact(PIXEL)) {
                // The fourth byte is overwritten by the next pixel, where there is one.
                match out[3 * x..].first_chunk_mut::<PIXEL>() {
                    Some(four) => four.copy_from_slice(pixel),
                    None => out[3 * x..].copy_from_slice(&pixel[..3]),
                }
            }
        }
    }
}

/// The same pixel of every row beside each other.
#[inline(always)]
fn side_by_side(rows: [&[u8]; GROUP], group: &mut [[u8; COLUMN]]) {
    for (i, row) in rows.into_iter().enumerate() {
        let last = group.len() - 1;
        for (x, column) in group[..last].iter_mut().enumerate() {
            column[PIXEL * i..][..PIXEL].copy_from_slice(&row[3 * x..][..PIXEL]);
        }
        group[last][PIXEL * i..][..3].copy_from_slice(&row[3 * last..]);
    }
}

/// Columns at their new height, without gaps between rows.
#[inline(always)]
fn resize_columns(source: Rows, taps: &Taps, out: &mut [u8]) {
    for ((first, weights), out) in taps.iter().zip(out.chunks_exact_mut(3 * source.width)) {
        let mut chunks = out.chunks_exact_mut(CHUNK);
        let mut start = 0;
        for out in &mut chunks {
            out.copy_from_slice(&mix::<CHUNK>(source, first, weights, start));
            start += CHUNK;
        }
        for out in chunks.into_remainder() {
            *out = mix::<1>(source, first, weights, start)[0];
            start += 1;
        }
    }
}

/// Weighted sums of `N` bytes of every row from `first` on.
#[inline(always)]
fn mix<const N: usize>(source: Rows, first: usize, weights: &[i32], start: usize) -> [u8; N] {
    let mut sums = [HALF; N];
    for (y, &weight) in (first..).zip(weights) {
        for (sum, &value) in sums.iter_mut().zip(&source.row(y)[start..][..N]) {
            *sum += weight * i32::from(value);
        }
    }
    let mut bytes = [0; N];
    round(&sums, &mut bytes);
    bytes
}

/// Added to a sum before its fraction is dropped.
const HALF: i32 = 1 << (BITS - 1);

/// Sums without their fractions. Weights that were rounded up may add up to more than 1.
#[inline(always)]
fn round(sums: &[i32], out: &mut [u8]) {
    for (out, &sum) in out.iter_mut().zip(sums) {
        *out = (sum >> BITS).clamp(0, 255) as u8;
    }
}

/// `width` x `height` interleaved RGB pixels of the whole of `image`, whatever its shape.
pub fn shrink(image: &RgbImage, width: u32, height: u32) -> Vec<u8> {
    let whole = CropBox { left: 0, top: 0, width: image.width(), height: image.height() };
    let mut out = Vec::new();
    Resizer::default().crop_resize(image, whole, (width, height), &mut out);
    out
}
