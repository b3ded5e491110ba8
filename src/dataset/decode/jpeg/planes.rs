//! Planes of samples to pixels: libjpeg's smooth upsampling and its colours, to the bit.

use crate::ops::simd::vectorized;

/// Samples of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane {
    pub width: usize,
    pub height: usize,
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
    fn row(&self, y: usize) -> &[u8] {
        &self.samples[self.width * y..self.width * (y + 1)]
    }

    /// The plane at `h` times its width and `v` times its height, cut to the image's size.
    ///
    /// Doubled sides are interpolated (3/4 of the nearer sample, 1/4 of the farther one), with libjpeg's alternating rounding;
    /// others are repeated, and so are planes of 2 columns and less.
    pub fn enlarged(self, h: usize, v: usize, width: usize, height: usize) -> Plane {
        if (h, v) == (1, 1) && (self.width, self.height) == (width, height) {
            return self;
        }
        let smooth = h == 2 && self.width > 2 && v <= 2 || h == 1 && v == 2;
        let mut samples = vec![0; width * height];
        // A row of sums with its outermost values once more at either end.
        let mut sums = vec![0u16; self.width + 2];
        for (y, out) in samples.chunks_exact_mut(width).enumerate() {
            let row = self.row((y / v).min(self.height - 1));
            if !smooth {
                for (x, out) in out.iter_mut().enumerate() {
                    *out = row[(x / h).min(self.width - 1)];
                }
                continue;
            }
            // The row that is second nearest; at an edge the row itself.
            let upper = y % 2 == 0;
            let other = match upper {
                true => self.row((y / v).saturating_sub(1)),
                false => self.row((y / v + 1).min(self.height - 1)),
            };
            vectorized(
                #[inline(always)]
                || match (h, v) {
                    (1, _) => mix(row, other, if upper { 1 } else { 2 }, out),
                    (_, 1) => stretch(row.iter().map(|&value| value.into()), &mut sums, 2, [1, 2], out),
                    _ => stretch(row.iter().zip(other).map(|(&a, &b)| sum(a, b)), &mut sums, 4, [8, 7], out),
                },
            );
        }
        Plane { width, height, samples }
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
/// samples of a value. `sums` has room for the values and one more at either end.
#[inline(always)]
fn stretch(values: impl Iterator<Item = u16>, sums: &mut [u16], shift: u32, bias: [u16; 2], out: &mut [u8]) {
    let last = sums.len() - 1;
    for (sum, value) in sums[1..last].iter_mut().zip(values) {
        *sum = value;
    }
    (sums[0], sums[last]) = (sums[1], sums[last - 1]);
    let mixed = |near: u16, far: u16, bias: u16| ((3 * near + far + bias) >> shift) as u8;
    let mut pairs = out.chunks_exact_mut(2);
    for (pair, sums) in (&mut pairs).zip(sums.windows(3)) {
        pair.copy_from_slice(&[mixed(sums[1], sums[0], bias[0]), mixed(sums[1], sums[2], bias[1])]);
    }
    if let [odd] = pairs.into_remainder() {
        *odd = mixed(sums[last - 1], sums[last - 2], bias[0]);
    }
}

/// RGB of planes of one size.
pub fn rgb(planes: &[Plane], colors: Colors) -> Vec<u8> {
    let mut out = vec![0; 3 * planes[0].samples.len()];
    let [first, others @ ..] = planes else { return out };
    let mut pixels = out.chunks_exact_mut(3);
    match (colors, others) {
        (Colors::YCbCr, [cb, cr]) => vectorized(
            #[inline(always)]
            || {
                let samples = first.samples.iter().zip(&cb.samples).zip(&cr.samples);
                for (pixel, ((&y, &cb), &cr)) in pixels.zip(samples) {
                    pixel.copy_from_slice(&from_ycbcr(y, cb, cr));
                }
            },
        ),
        _ => {
            for (i, pixel) in (&mut pixels).enumerate() {
                let at = |plane: usize| planes[plane].samples[i];
                pixel.copy_from_slice(&match colors {
                    Colors::Grey => [at(0); 3],
                    Colors::Rgb => [at(0), at(1), at(2)],
                    Colors::YCbCr => from_ycbcr(at(0), at(1), at(2)),
                    Colors::Cmyk => from_cmyk([at(0), at(1), at(2)], at(3)),
                    Colors::Ycck => from_cmyk(from_ycbcr(at(0), at(1), at(2)).map(|v| 255 - v), at(3)),
                });
            }
        }
    }
    out
}

#[inline(always)]
fn from_ycbcr(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (y as i32, cb as i32 - 128, cr as i32 - 128);
    const HALF: i32 = 1 << 15;
    let red = y + ((91881 * cr + HALF) >> 16);
    let green = y + ((-22554 * cb - 46802 * cr + HALF) >> 16);
    let blue = y + ((116130 * cb + HALF) >> 16);
    [red, green, blue].map(|v| v.clamp(0, 255) as u8)
}

/// Pillow's conversion of inverted CMYK.
fn from_cmyk(inks: [u8; 3], black: u8) -> [u8; 3] {
    let white = black as u32;
    inks.map(|ink| {
        let t = (255 - ink as u32) * white + 128;
        (white - ((t + (t >> 8)) >> 8)) as u8
    })
}
