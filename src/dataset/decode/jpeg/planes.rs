//! Planes of samples to pixels: libjpeg's smooth upsampling and its colours, to the bit.

use super::super::cmyk;
use crate::ops::simd::vectorized;

/// Samples of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane {
    pub width: usize,
    pub height: usize,
    /// From a row to the next; what is beyond `width` is not looked at.
    pub stride: usize,
    /// How many pixels share a sample in each direction.
    pub across: usize,
    pub down: usize,
    pub samples: Vec<u8>,
}

/// What the components of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colors {
    Grey,
    Rgb,
    YCbCr,
    /// Inverted, as Adobe's programs write it and Pillow reads it.
    Cmyk,
    Ycck,
}

impl Plane {
    #[inline(always)]
    fn row(&self, y: usize) -> &[u8] {
        &self.samples[self.stride * y..][..self.width]
    }

    /// The samples of a row of pixels, put into `line` where they are not at hand. `sums` is for values between.
    ///
    /// Doubled sides are interpolated (3/4 of the nearer sample, 1/4 of the farther one), with libjpeg's alternating rounding;
    /// others are repeated, and so are planes of 2 columns and less.
    #[inline(always)]
    fn line<'a>(&'a self, y: usize, sums: &mut Vec<u16>, line: &'a mut [u8]) -> &'a [u8] {
        let row = self.row(y / self.down);
        // The row that is second nearest; at an edge the row itself.
        let upper = y.is_multiple_of(2);
        let other = || match upper {
            true => self.row((y / 2).saturating_sub(1)),
            false => self.row((y / 2 + 1).min(self.height - 1)),
        };
        match (self.across, self.down) {
            (1, 1) => return row,
            (1, 2) => mix(row, other(), if upper { 1 } else { 2 }, line),
            (2, 1) if self.width > 2 => stretch(row.iter().map(|&value| value.into()), sums, 2, [1, 2], line),
            (2, 2) if self.width > 2 => {
                stretch(row.iter().zip(other()).map(|(&a, &b)| sum(a, b)), sums, 4, [8, 7], line);
            }
            (across, _) => {
                for (line, &sample) in line.chunks_mut(across).zip(row) {
                    line.fill(sample);
                }
            }
        }
        line
    }
}

/// Three of the near value and one of the far one.
#[inline(always)]
fn sum(near: u8, far: u8) -> u16 {
    3 * u16::from(near) + u16::from(far)
}

/// A row between two rows; 2 bits are rounded off after adding `bias`.
#[inline(always)]
fn mix(row: &[u8], other: &[u8], bias: u16, out: &mut [u8]) {
    for ((out, &near), &far) in out.iter_mut().zip(row).zip(other) {
        *out = ((sum(near, far) + bias) >> 2) as u8;
    }
}

/// Doubles a row of values: `shift` bits are rounded off after adding a bias, one for the left and one for the right of the two
/// samples of a value. `sums` becomes the values with the outermost ones once more at either end.
#[inline(always)]
fn stretch(
    values: impl ExactSizeIterator<Item = u16>,
    sums: &mut Vec<u16>,
    shift: u32,
    bias: [u16; 2],
    out: &mut [u8],
) {
    let last = values.len() + 1;
    sums.resize(last + 1, 0);
    for (sum, value) in sums[1..last].iter_mut().zip(values) {
        *sum = value;
    }
    (sums[0], sums[last]) = (sums[1], sums[last - 1]);
    let mixed = |near: u16, far: u16, bias: u16| ((3 * near + far + bias) >> shift) as u8;
    let (pairs, odd) = out.as_chunks_mut();
    for (((pair, &before), &near), &after) in pairs.iter_mut().zip(&sums[..]).zip(&sums[1..]).zip(&sums[2..]) {
        *pair = [mixed(near, before, bias[0]), mixed(near, after, bias[1])];
    }
    if let [odd] = odd {
        *odd = mixed(sums[last - 1], sums[last - 2], bias[0]);
    }
}

/// RGB of an image of this size and these components.
pub fn rgb(planes: &[Plane], colors: Colors, width: usize, height: usize) -> Vec<u8> {
    let mut out = vec![0; 3 * width * height];
    let mut lines = vec![vec![0; width]; planes.len()];
    let mut sums = Vec::new();
    vectorized(
        #[inline(always)]
        || {
            for (y, out) in out.chunks_exact_mut(3 * width).enumerate() {
                let mut rows = [&[][..]; 4];
                for ((row, plane), line) in rows.iter_mut().zip(planes).zip(&mut lines) {
                    *row = plane.line(y, &mut sums, line);
                }
                colored(rows.map(|row| &row[..row.len().min(width)]), colors, out.as_chunks_mut().0);
            }
        },
    );
    out
}

/// One row of pixels from those of its components.
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

#[inline(always)]
fn from_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    const HALF: i32 = 1 << 15;
    let red = y + ((91881 * cr + HALF) >> 16);
    let green = y + ((-22554 * cb - 46802 * cr + HALF) >> 16);
    let blue = y + ((116130 * cb + HALF) >> 16);
    [red.clamp(0, 255) as u8, green.clamp(0, 255) as u8, blue.clamp(0, 255) as u8]
}
