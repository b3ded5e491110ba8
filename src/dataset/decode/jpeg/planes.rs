//! Converts planes of samples to pixels with libjpeg's smooth upsampling and colour conversion, bit for bit.

use std::ops::Range;

use super::super::cmyk;
use crate::{dataset::CropBox, ops::simd::vectorized};

/// Samples of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane {
    pub width: usize,
    pub height: usize,
    /// Samples from one row to the next. Samples beyond `width` are ignored.
    pub stride: usize,
    /// How many pixels share a sample in each direction.
    pub across: usize,
    pub down: usize,
    pub samples: Vec<u8>,
}

/// The colour space of an image's components.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colors {
    Grey,
    Rgb,
    YCbCr,
    /// Inverted, as Adobe's programs write it and Pillow reads it.
    Cmyk,
    Ycck,
}

/// Working memory for rows of pixels.
#[derive(Default)]
pub struct Lines {
    lines: [Vec<u8>; 4],
    sums: Vec<u16>,
}

impl Plane {
    /// Columns of samples that the pixels of a part are made of.
    pub fn columns(&self, part: CropBox) -> Range<usize> {
        read(part.left..part.left + part.width, self.across, self.width)
    }

    /// Rows of samples that the pixels of a part are made of.
    pub fn rows(&self, part: CropBox) -> Range<usize> {
        read(part.top..part.top + part.height, self.down, self.height)
    }

    #[inline(always)]
    fn row(&self, y: usize) -> &[u8] {
        &self.samples[self.stride * y..][..self.width]
    }

    /// The samples of some pixels of a row. They are computed into `line` unless the plane holds them as they are. `sums` is for
    /// intermediate values.
    ///
    /// Samples that 2 x 1, 1 x 2 or 2 x 2 pixels share are interpolated (3/4 of the nearer one, 1/4 of the farther one) with
    /// libjpeg's alternating rounding. Other samples are repeated, and so are those of a plane that is widened from at most 2
    /// columns.
    #[inline(always)]
    fn line<'a>(&'a self, y: usize, pixels: Range<usize>, sums: &mut Vec<u16>, line: &'a mut Vec<u8>) -> &'a [u8] {
        let row = self.row(y / self.down);
        // The second nearest row; at an edge, the row itself.
        let upper = y.is_multiple_of(2);
        let other = || match upper {
            true => self.row((y / 2).saturating_sub(1)),
            false => self.row((y / 2 + 1).min(self.height - 1)),
        };
        let samples = pixels.start / self.across..pixels.end.div_ceil(self.across);
        line.resize(self.across * samples.len(), 0);
        match (self.across, self.down) {
            (1, 1) => return &row[samples],
            (1, 2) => mix(&row[samples.clone()], &other()[samples], if upper { 1 } else { 2 }, line),
            (2, 1) if self.width > 2 => stretch(samples, self.width, |x| row[x].into(), sums, (2, [1, 2]), line),
            (2, 2) if self.width > 2 => {
                let other = other();
                stretch(samples, self.width, |x| sum(row[x], other[x]), sums, (4, [8, 7]), line);
            }
            (across, _) => {
                for (line, &sample) in line.chunks_exact_mut(across).zip(&row[samples]) {
                    line.fill(sample);
                }
            }
        }
        &line[pixels.start % self.across..][..pixels.len()]
    }
}

/// The range of samples that pixels depend on if `shared` pixels share a sample: their own samples and, if samples are shared,
/// one more on either side, within the `all` samples of the axis.
fn read(pixels: Range<u32>, shared: usize, all: usize) -> Range<usize> {
    let (start, end) = (pixels.start as usize / shared, (pixels.end as usize).div_ceil(shared));
    match shared {
        1 => start..end,
        _ => start.saturating_sub(1)..(end + 1).min(all),
    }
}

/// Three times the near value plus the far value.
#[inline(always)]
fn sum(near: u8, far: u8) -> u16 {
    3 * u16::from(near) + u16::from(far)
}

/// Interpolates a row between two rows: adds `bias` and drops 2 bits.
#[inline(always)]
fn mix(row: &[u8], other: &[u8], bias: u16, out: &mut [u8]) {
    for ((out, &near), &far) in out.iter_mut().zip(row).zip(other) {
        *out = ((sum(near, far) + bias) >> 2) as u8;
    }
}

/// Doubles some samples of a row that has `all` samples, given by `value`. Adds a bias, one for the left and one for the right
/// pixel of a sample, and drops `shift` bits. `sums` receives the values and their neighbours; beyond an end, the outermost value
/// is repeated.
#[inline(always)]
fn stretch(
    samples: Range<usize>,
    all: usize,
    value: impl Fn(usize) -> u16,
    sums: &mut Vec<u16>,
    (shift, bias): (u32, [u16; 2]),
    out: &mut [u8],
) {
    let last = samples.len() + 1;
    sums.resize(last + 1, 0);
    sums[0] = value(samples.start.saturating_sub(1));
    sums[last] = value(samples.end.min(all - 1));
    for (sum, x) in sums[1..last].iter_mut().zip(samples) {
        *sum = value(x);
    }
    let mixed = |near: u16, far: u16, bias: u16| ((3 * near + far + bias) >> shift) as u8;
    let pairs = out.as_chunks_mut().0.iter_mut();
    for (((pair, &before), &near), &after) in pairs.zip(&sums[..]).zip(&sums[1..]).zip(&sums[2..]) {
        *pair = [mixed(near, before, bias[0]), mixed(near, after, bias[1])];
    }
}

/// Converts a part of an image to RGB. `planes` are its components.
pub fn rgb<'a>(
    planes: impl Iterator<Item = &'a Plane> + Clone,
    colors: Colors,
    part: CropBox,
    Lines { lines, sums }: &mut Lines,
    out: &mut Vec<u8>,
) {
    let (width, height) = (part.width as usize, part.height as usize);
    let (left, top) = (part.left as usize, part.top as usize);
    out.resize(3 * width * height, 0);
    vectorized(
        #[inline(always)]
        || {
            for (y, out) in (top..).zip(out.chunks_exact_mut(3 * width)) {
                let mut rows = [&[][..]; 4];
                for ((row, plane), line) in rows.iter_mut().zip(planes.clone()).zip(&mut *lines) {
                    *row = plane.line(y, left..left + width, sums, line);
                }
                colored(rows, colors, out.as_chunks_mut().0);
            }
        },
    );
}

/// Converts one row of pixels from the rows of its components.
#[inline(always)]
fn colored([a, b, c, d]: [&[u8]; 4], colors: Colors, out: &mut [[u8; 3]]) {
    let three = a.iter().zip(b).zip(c).map(|((&a, &b), &c)| [a, b, c]);
    let put = |(pixel, color): (&mut [u8; 3], [u8; 3])| *pixel = color;
    match colors {
        Colors::Grey => out.iter_mut().zip(a.iter().map(|&grey| [grey; 3])).for_each(put),
        Colors::Rgb => out.iter_mut().zip(three).for_each(put),
        Colors::YCbCr => out.iter_mut().zip(three.map(from_ycbcr)).for_each(put),
        Colors::Cmyk => {
            let inks = three.map(|[c, m, y]| [255 - c, 255 - m, 255 - y]);
            out.iter_mut().zip(inks.zip(d).map(|(inks, &white)| cmyk::rgb(inks, 255 - white))).for_each(put);
        }
        Colors::Ycck => {
            let inks = three.map(from_ycbcr);
            out.iter_mut().zip(inks.zip(d).map(|(inks, &white)| cmyk::rgb(inks, 255 - white))).for_each(put);
        }
    }
}

/// libjpeg's fixed-point conversion, which keeps the upper 16 bits of 32-bit sums. Each factor is reduced by a whole number, so
/// that all products but those for green fit in 16 bits: `(2 x factor >> 16) + 1 >> 1` equals `x factor + half >> 16`.
#[inline(always)]
fn from_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (i16::from(y), i16::from(cb) - 128, i16::from(cr) - 128);
    let times = |x: i16, factor: i16| (((i32::from(2 * x) * i32::from(factor)) >> 16) as i16 + 1) >> 1;
    let red = y + cr + times(cr, 26345);
    let half = 1 << 15;
    let less = (-22554 * i32::from(cb) + 18734 * i32::from(cr) + half) >> 16;
    let green = y - cr + less as i16;
    let blue = y + 2 * cb + times(cb, -14942);
    [red, green, blue].map(|value| value.clamp(0, 255) as u8)
}
