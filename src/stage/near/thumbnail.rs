//! Thumbnails: small copies of images. Hashes of their grey values find near duplicates; grey values and colours confirm them.

use std::{f32::consts::PI, sync::LazyLock};

use crate::dataset::{Part, augment::shrink};

/// Side of the grey plane, and of each of the two colour planes that follow it.
const SIDE: usize = 32;
const COLOUR_SIDE: usize = SIDE / 2;
/// Bytes in a thumbnail.
pub const BYTES: usize = SIDE * SIDE + 2 * COLOUR_SIDE * COLOUR_SIDE;
/// Samples per side from which a hash is computed, and frequencies per side that it keeps.
const SAMPLES: usize = 16;
const FREQUENCIES: usize = 8;
/// Samples per side for comparing colours.
const COLOURS: usize = 8;
/// Colours weaker than this (difference of channels, out of 255) are ignored: JPEG alone may cause them.
const FAINT: f32 = 16.0;
/// Images with a smaller standard deviation of grey values (out of 255) have too little contrast to compare.
const PLAIN: f32 = 2.0;
/// Sides of the small crops, as shares of the image's sides.
const PARTS: [f32; 2] = [0.95, 0.89];

/// A part of a thumbnail: left, top, width and height as shares of its sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window([f32; 4]);

impl Window {
    pub const WHOLE: Window = Window([0.0, 0.0, 1.0, 1.0]);

    /// The whole image, and the small crops to try.
    pub fn all() -> impl Iterator<Item = Window> {
        let crops = PARTS.into_iter().flat_map(|part| {
            let (rest, centre) = (1.0 - part, (1.0 - part) / 2.0);
            let corners = [(0.0, 0.0), (rest, 0.0), (0.0, rest), (rest, rest)];
            let edges = [(centre, 0.0), (centre, rest), (0.0, centre), (rest, centre), (centre, centre)];
            corners.into_iter().chain(edges).map(move |(left, top)| Window([left, top, part, part]))
        });
        std::iter::once(Window::WHOLE).chain(crops)
    }

    /// The windows that are a small step away from this one.
    fn around(self, step: f32) -> impl Iterator<Item = Window> {
        let moves = (0..4).flat_map(move |at| [-step, step].map(|by| (at, by)));
        moves.filter_map(move |(at, by)| {
            let mut window = self.0;
            window[at] += by;
            let [left, top, width, height] = window;
            let inside = left >= 0.0 && top >= 0.0 && left + width <= 1.0 && top + height <= 1.0;
            (inside && width.min(height) > 0.8).then_some(Window(window))
        })
    }
}

/// A grey plane and two colour planes. The colours are half of red minus green and half of blue minus green, plus 128.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail(Box<[u8; BYTES]>);

/// A square plane of bytes.
#[derive(Clone, Copy)]
struct Plane<'a>(&'a [u8], usize);

impl Thumbnail {
    /// The thumbnail of an image of any shape.
    pub fn of(image: &Part) -> Thumbnail {
        let shrunk = |side: usize| shrink(image, side as u32, side as u32);
        let (small, colours) = (shrunk(SIDE), shrunk(COLOUR_SIDE));
        let grey = |p: &[u8]| ((299 * p[0] as u32 + 587 * p[1] as u32 + 114 * p[2] as u32 + 500) / 1000) as u8;
        let less_green =
            |channel: usize| colours.chunks_exact(3).map(move |p| ((p[channel] as i32 - p[1] as i32) / 2 + 128) as u8);
        let values = small.chunks_exact(3).map(grey).chain(less_green(0)).chain(less_green(2));
        let mut thumbnail = Box::new([0; BYTES]);
        thumbnail.iter_mut().zip(values).for_each(|(to, value)| *to = value);
        Thumbnail(thumbnail)
    }

    /// The thumbnail from the bytes of [`Thumbnail::bytes`].
    pub fn from_bytes(bytes: &[u8; BYTES]) -> Thumbnail {
        Thumbnail(Box::new(*bytes))
    }

    pub fn bytes(&self) -> &[u8; BYTES] {
        &self.0
    }

    fn grey(&self) -> Plane<'_> {
        Plane(&self.0[..SIDE * SIDE], SIDE)
    }

    /// The samples of both colour planes within a window.
    fn colours(&self, window: Window) -> impl Iterator<Item = f32> {
        let planes = self.0[SIDE * SIDE..].chunks_exact(COLOUR_SIDE * COLOUR_SIDE);
        let samples = planes.flat_map(move |plane| Plane(plane, COLOUR_SIDE).sample::<COLOURS>(window));
        samples.flatten().map(|value| 2.0 * (value - 128.0))
    }

    /// Whether the image has too little contrast to compare.
    pub fn is_plain(&self) -> bool {
        let Plane(values, _) = self.grey();
        let sum: u32 = values.iter().map(|v| *v as u32).sum();
        let squares: u32 = values.iter().map(|v| *v as u32 * *v as u32).sum();
        let mean = sum as f32 / values.len() as f32;
        squares as f32 / values.len() as f32 - mean * mean < PLAIN * PLAIN
    }

    /// The perceptual hash of a window: the signs of its lowest frequencies without the mean. It does not depend on brightness
    /// and contrast.
    pub fn hash(&self, window: Window) -> u64 {
        static COSINES: LazyLock<[[f32; SAMPLES]; FREQUENCIES]> = LazyLock::new(|| {
            let cosine = |k: usize, i: usize| libm::cosf(PI * k as f32 * (i as f32 + 0.5) / SAMPLES as f32);
            std::array::from_fn(|k| std::array::from_fn(|i| cosine(k, i)))
        });
        let samples = self.grey().sample::<SAMPLES>(window);
        let dot = |a: &[f32; SAMPLES], b: &[f32; SAMPLES]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let rows: [[f32; SAMPLES]; FREQUENCIES] =
            std::array::from_fn(|u| std::array::from_fn(|y| dot(&samples[y], &COSINES[u])));
        let mut hash = 0;
        for (u, row) in rows.iter().enumerate() {
            for (v, cosines) in COSINES.iter().enumerate() {
                hash = hash << 1 | (u + v > 0 && dot(row, cosines) > 0.0) as u64;
            }
        }
        hash
    }

    /// The likeness of a window, or of the best window near it, to the whole of another image: the smallest of the correlation of
    /// grey values, the correlation of details, and the cosine of colours. 1 for equal images.
    pub fn likeness(&self, window: Window, other: &Thumbnail) -> f32 {
        let whole = other.grey().sample::<SAMPLES>(Window::WHOLE);
        let score = |window: Window| correlation(&self.grey().sample::<SAMPLES>(window), &whole);
        let (mut best, mut found) = (window, score(window));
        for step in [0.03, 0.015, 0.0075] {
            for _ in 0..4 {
                let next = best.around(step).map(|window| (score(window), window)).max_by(|a, b| a.0.total_cmp(&b.0));
                match next {
                    Some((better, window)) if better > found => (best, found) = (window, better),
                    _ => break,
                }
            }
        }
        let (own, whole) = (self.grey().sample::<SIDE>(best), other.grey().sample::<SIDE>(Window::WHOLE));
        let grey = correlation(&own, &whole).min(correlation(&details(&own), &details(&whole)));
        grey.min(cosine(self.colours(best), other.colours(Window::WHOLE)))
    }
}

impl Plane<'_> {
    /// `N` x `N` samples of a window, interpolated.
    fn sample<const N: usize>(self, Window([left, top, width, height]): Window) -> [[f32; N]; N] {
        let Plane(values, side) = self;
        let places = |from: f32, length: f32| {
            std::array::from_fn::<(usize, f32), N, _>(|i| {
                let at =
                    ((from + length * (i as f32 + 0.5) / N as f32) * side as f32 - 0.5).clamp(0.0, side as f32 - 1.0);
                let first = (at as usize).min(side - 2);
                (first, at - first as f32)
            })
        };
        let (columns, rows) = (places(left, width), places(top, height));
        let at = |x: usize, y: usize| values[y * side + x] as f32;
        rows.map(|(y, below)| {
            columns.map(|(x, right)| {
                let upper = at(x, y) * (1.0 - right) + at(x + 1, y) * right;
                let lower = at(x, y + 1) * (1.0 - right) + at(x + 1, y + 1) * right;
                upper * (1.0 - below) + lower * below
            })
        })
    }
}

/// Cosine of the colours of two images; close to 1 if both are faint.
fn cosine(a: impl Iterator<Item = f32>, b: impl Iterator<Item = f32>) -> f32 {
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.zip(b) {
        let faint = FAINT * FAINT;
        (ab, aa, bb) = (ab + a * b + faint, aa + a * a + faint, bb + b * b + faint);
    }
    ab / (aa * bb).sqrt()
}

/// Each sample minus the mean of the 7 x 7 samples around it.
fn details<const N: usize>(samples: &[[f32; N]; N]) -> [[f32; N]; N] {
    std::array::from_fn(|y| {
        std::array::from_fn(|x| {
            let near = |at: usize| at.saturating_sub(3)..(at + 4).min(N);
            let around = near(y).flat_map(|y| near(x).map(move |x| samples[y][x]));
            let (sum, count) = around.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
            samples[y][x] - sum / count as f32
        })
    })
}

/// Pearson's correlation; 0 if one side is constant.
fn correlation<const N: usize>(a: &[[f32; N]; N], b: &[[f32; N]; N]) -> f32 {
    let mean = |values: &[[f32; N]; N]| values.iter().flatten().sum::<f32>() / (N * N) as f32;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        let (a, b) = (a - mean_a, b - mean_b);
        (ab, aa, bb) = (ab + a * b, aa + a * a, bb + b * b);
    }
    let norm = (aa * bb).sqrt();
    if norm < 1e-6 { 0.0 } else { ab / norm }
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;

    /// A disc on a background.
    fn disc(ground: [u8; 3], disc: [u8; 3], noise: u8) -> Thumbnail {
        let image = RgbImage::from_fn(40, 40, |x, y| {
            let within = x.abs_diff(15).pow(2) + y.abs_diff(22).pow(2) < 80;
            let noise = (x * 7 + y * 13) as u8 % (noise + 1);
            image::Rgb(if within { disc } else { ground }.map(|value| value + noise))
        });
        Thumbnail::of(&image.into())
    }

    #[test]
    fn what_differs_in_colour_alone_is_not_alike() {
        let likeness = |a: &Thumbnail, b: &Thumbnail| a.likeness(Window::WHOLE, b);
        let (teal, red) = ([75, 105, 95], [105, 75, 80]);
        let (blue, pink) = ([190, 235, 250], [240, 160, 165]);
        let first = disc(teal, blue, 0);
        assert!(likeness(&first, &disc(teal, blue, 4)) > 0.95);
        assert!(likeness(&first, &disc(teal.map(|v| v - 20), blue.map(|v| v - 50), 4)) > 0.9, "a darker one");
        assert!(likeness(&first, &disc(red, pink, 0)) < 0.5, "{}", likeness(&first, &disc(red, pink, 0)));
        // Without colours, only grey values count.
        let grey = disc([90; 3], [200; 3], 0);
        assert!(likeness(&grey, &disc([92, 90, 88], [200, 203, 200], 3)) > 0.95);
    }
}
