//! Weights of antialiased bilinear resizing along one axis, in the fixed point of the crate fast_image_resize, so that a GPU
//! gives the very bytes that [`super::resize::crop_resize`] gives.

/// Most bits of a weight's fraction, and the bits that a weight fits, sign included.
const MOST_BITS: u32 = 22;
const WEIGHT_BITS: u32 = 16;

/// Resizing of an axis: for each target pixel its first source pixel, how many there are, and their weights, of which there
/// is room for `window`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Taps {
    pub window: usize,
    /// Bits of the weights' fraction.
    pub bits: u32,
    /// [to, 2 + window].
    pub values: Vec<i32>,
}

impl Taps {
    /// From `from` to `to` pixels; pixels beyond the ends have no share.
    pub fn new(from: u32, to: u32) -> Taps {
        if from == to {
            let values = (0..to as i32).flat_map(|i| [i, 1, 1]).collect();
            return Taps { window: 1, bits: 0, values };
        }
        let scale = f64::from(from) / f64::from(to);
        // The triangle is as wide as a target pixel, and no narrower than a source pixel.
        let radius = scale.max(1.0);
        let window = radius.ceil() as usize * 2 + 1;
        let axis: Vec<(u32, Vec<f64>)> = (0..to).map(|i| weights((f64::from(i) + 0.5) * scale, radius, from)).collect();
        let largest = axis.iter().flat_map(|(_, weights)| weights).fold(0.0, |most: f64, w| most.max(*w));
        // As many bits as the largest weight leaves room for.
        let fits = |bits: u32| (largest * f64::from(1u32 << bits)).round() < f64::from(1u32 << (WEIGHT_BITS - 1));
        let bits = (0..MOST_BITS - 1).take_while(|bits| fits(bits + 1)).last().map_or(0, |bits| bits + 1);
        let mut values = Vec::with_capacity(to as usize * (2 + window));
        for (first, weights) in axis {
            values.extend([first as i32, weights.len() as i32]);
            values.extend(weights.iter().map(|w| (w * f64::from(1u32 << bits)).round() as i32));
            values.resize(values.len() + window - weights.len(), 0);
        }
        Taps { window, bits, values }
    }
}

/// The first source pixel around `centre`, and the weights from it on, which add up to 1; none is 0 at either end.
fn weights(centre: f64, radius: f64, from: u32) -> (u32, Vec<f64>) {
    let mut first = (centre - radius).floor().max(0.0) as u32;
    let last = (centre + radius).ceil().min(f64::from(from)) as u32;
    let (per_pixel, middle) = (1.0 / radius, centre - 0.5);
    let weight = |x: u32| (1.0 - ((f64::from(x) - middle) * per_pixel).abs()).max(0.0);
    while first + 1 < last && weight(first) == 0.0 {
        first += 1;
    }
    let mut weights: Vec<f64> = (first..last).map(weight).collect();
    while weights.len() > 1 && weights.last() == Some(&0.0) {
        weights.pop();
    }
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= total);
    (first, weights)
}

#[cfg(test)]
mod tests {
    use fast_image_resize::{CpuExtensions, Resizer};
    use image::RgbImage;

    use super::*;
    use crate::dataset::augment::{crop::CropBox, resize::crop_resize};

    /// Resizing by these weights: columns of pixels first, then rows, rounded to bytes after each.
    fn resize(image: &RgbImage, part: CropBox, side: u32) -> Vec<u8> {
        let (down, along) = (Taps::new(part.height, side), Taps::new(part.width, side));
        let sum = |taps: &Taps, i: u32, at: &dyn Fn(u32) -> u8| -> u8 {
            let of = &taps.values[i as usize * (2 + taps.window)..][..2 + taps.window];
            let half = (1i32 << taps.bits) >> 1;
            let products = of[2..][..of[1] as usize].iter().enumerate();
            let sum = products.fold(half, |sum, (k, w)| sum + w * i32::from(at(of[0] as u32 + k as u32)));
            (sum >> taps.bits).clamp(0, 255) as u8
        };
        let mut out = Vec::new();
        let middle: Vec<u8> = (0..side * part.width * 3)
            .map(|i| {
                let (y, x, c) = (i / 3 / part.width, i / 3 % part.width, i % 3);
                sum(&down, y, &|row| image.get_pixel(part.left + x, part.top + row).0[c as usize])
            })
            .collect();
        for i in 0..side * side * 3 {
            let (y, x, c) = (i / 3 / side, i / 3 % side, i % 3);
            out.push(sum(&along, x, &|column| middle[((y * part.width + column) * 3 + c) as usize]));
        }
        out
    }

    /// A resizer for each vector unit that the CPU has, and one without.
    fn resizers() -> impl Iterator<Item = Resizer> {
        let mut units = vec![CpuExtensions::None];
        #[cfg(target_arch = "x86_64")]
        units.extend([CpuExtensions::Sse4_1, CpuExtensions::Avx2]);
        #[cfg(target_arch = "aarch64")]
        units.push(CpuExtensions::Neon);
        units.into_iter().filter(CpuExtensions::is_supported).map(|unit| {
            let mut resizer = Resizer::new();
            // SAFETY: the CPU has it.
            unsafe { resizer.set_cpu_extensions(unit) };
            resizer
        })
    }

    #[test]
    fn resizing_gives_the_very_bytes_on_every_vector_unit() {
        let image = RgbImage::from_fn(300, 280, |x, y| {
            let noise = (x * 7919 + y * 104_729) % 65_537;
            image::Rgb([noise as u8, (noise >> 3) as u8, (x * 3 + y) as u8])
        });
        let mut expected = Vec::new();
        for (left, top, width, height) in [
            (0, 0, 300, 280),
            (3, 5, 32, 32),
            (10, 20, 32, 101),
            (7, 0, 45, 32),
            (40, 40, 1, 1),
            (100, 90, 17, 5),
            (250, 270, 50, 10),
            (1, 2, 64, 96),
            (0, 1, 33, 31),
            (20, 3, 160, 224),
        ] {
            for side in [8, 32, 45] {
                let part = CropBox { left, top, width, height };
                let found = resize(&image, part, side);
                for mut resizer in resizers() {
                    crop_resize(&image, part, (side, side), &mut resizer, &mut expected);
                    assert!(found == expected, "{part:?} to {side} on {:?}", resizer.cpu_extensions());
                }
            }
        }
    }
}
