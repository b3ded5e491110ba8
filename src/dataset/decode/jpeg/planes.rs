//! Planes of samples to pixels: libjpeg's smooth upsampling and its colours, to the bit.

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
        let smooth = h == 2 && self.width > 2 && v <= 2 || h == 1 && v == 2;
        let mut samples = Vec::with_capacity(width * height);
        for y in 0..height {
            let row = self.row((y / v).min(self.height - 1));
            if !smooth {
                samples.extend((0..width).map(|x| row[(x / h).min(self.width - 1)]));
                continue;
            }
            // The row that is second nearest; at an edge the row itself.
            let upper = y % 2 == 0;
            let other = match upper {
                true => self.row((y / v).saturating_sub(1)),
                false => self.row((y / v + 1).min(self.height - 1)),
            };
            match (h, v) {
                (1, _) => {
                    let bias = if upper { 1 } else { 2 };
                    let mix = |x: usize| ((3 * row[x] as u32 + other[x] as u32 + bias) >> 2) as u8;
                    samples.extend((0..width).map(|x| mix(x.min(self.width - 1))));
                }
                (_, 1) => stretch(self.width, width, |x| row[x] as u32, 2, [1, 2], &mut samples),
                _ => {
                    let sum = |x: usize| 3 * row[x] as u32 + other[x] as u32;
                    stretch(self.width, width, sum, 4, [8, 7], &mut samples);
                }
            }
        }
        Plane { width, height, samples }
    }
}

/// Doubles a row of `from` values to `to` samples: `shift` bits are rounded off after adding a bias, one for the left and one for
/// the right of the two samples of a value.
fn stretch(from: usize, to: usize, value: impl Fn(usize) -> u32, shift: u32, bias: [u32; 2], out: &mut Vec<u8>) {
    let scale = 4;
    let one = |x: usize| {
        let (near, right) = (x / 2, x % 2);
        let far = if right == 1 { near + 1 } else { near.wrapping_sub(1) };
        let mixed = match far < from {
            true => 3 * value(near) + value(far),
            false => scale * value(near),
        };
        ((mixed + bias[right]) >> shift) as u8
    };
    out.extend((0..to).map(|x| one(x.min(2 * from - 1))));
}

/// RGB of planes of one size.
pub fn rgb(planes: &[Plane], colors: Colors) -> Vec<u8> {
    let pixels = planes[0].samples.len();
    let mut out = Vec::with_capacity(3 * pixels);
    for i in 0..pixels {
        let at = |plane: usize| planes[plane].samples[i];
        out.extend(match colors {
            Colors::Grey => [at(0); 3],
            Colors::Rgb => [at(0), at(1), at(2)],
            Colors::YCbCr => from_ycbcr(at(0), at(1), at(2)),
            Colors::Cmyk => from_cmyk([at(0), at(1), at(2)], at(3)),
            Colors::Ycck => from_cmyk(from_ycbcr(at(0), at(1), at(2)).map(|v| 255 - v), at(3)),
        });
    }
    out
}

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
