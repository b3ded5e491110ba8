//! Small grey copies of images: what near duplicates are found and compared by.

use std::{f32::consts::PI, sync::LazyLock};

use image::RgbImage;

use crate::dataset::augment::shrink;

/// Height and width.
const SIDE: usize = 32;
/// Bytes of a thumbnail.
pub const BYTES: usize = SIDE * SIDE;
/// Samples per side that a hash is computed from, and frequencies per side of it.
const SAMPLES: usize = 16;
const FREQUENCIES: usize = 8;
/// Images whose grey values differ by less (standard deviation, of 255) have nothing to be compared by.
const PLAIN: f32 = 2.0;
/// Parts per side of an image, and moves of it, that make up a small crop.
const PARTS: [f32; 2] = [0.95, 0.89];

/// A part of a thumbnail: left, top, width and height as shares of its sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window([f32; 4]);

impl Window {
    pub const WHOLE: Window = Window([0.0, 0.0, 1.0, 1.0]);

    /// The whole, and the small crops that stand for all others.
    pub fn all() -> impl Iterator<Item = Window> {
        let crops = PARTS.into_iter().flat_map(|part| {
            let (rest, centre) = (1.0 - part, (1.0 - part) / 2.0);
            let corners = [(0.0, 0.0), (rest, 0.0), (0.0, rest), (rest, rest)];
            let edges = [(centre, 0.0), (centre, rest), (0.0, centre), (rest, centre), (centre, centre)];
            corners.into_iter().chain(edges).map(move |(left, top)| Window([left, top, part, part]))
        });
        std::iter::once(Window::WHOLE).chain(crops)
    }

    /// Windows that differ from it by a small step.
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

/// A grey copy of [`SIDE`] x [`SIDE`] pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail(Box<[u8; BYTES]>);

impl Thumbnail {
    /// That of an image, whatever its shape.
    pub fn of(image: &RgbImage) -> Thumbnail {
        let small = shrink(image, SIDE as u32, SIDE as u32);
        let grey = |p: &[u8]| ((299 * p[0] as u32 + 587 * p[1] as u32 + 114 * p[2] as u32 + 500) / 1000) as u8;
        let mut pixels = Box::new([0; BYTES]);
        pixels.iter_mut().zip(small.chunks_exact(3)).for_each(|(to, from)| *to = grey(from));
        Thumbnail(pixels)
    }

    /// That of bytes as [`Thumbnail::bytes`] gives them.
    pub fn from_bytes(bytes: &[u8; BYTES]) -> Thumbnail {
        Thumbnail(Box::new(*bytes))
    }

    pub fn bytes(&self) -> &[u8; BYTES] {
        &self.0
    }

    /// Whether there is nothing to see.
    pub fn is_plain(&self) -> bool {
        let sum: u32 = self.0.iter().map(|v| *v as u32).sum();
        let squares: u32 = self.0.iter().map(|v| *v as u32 * *v as u32).sum();
        let mean = sum as f32 / BYTES as f32;
        squares as f32 / BYTES as f32 - mean * mean < PLAIN * PLAIN
    }

    /// `N` x `N` samples of a window, interpolated.
    fn sample<const N: usize>(&self, Window([left, top, width, height]): Window) -> [[f32; N]; N] {
        let places = |from: f32, length: f32| {
            std::array::from_fn::<(usize, f32), N, _>(|i| {
                let at =
                    ((from + length * (i as f32 + 0.5) / N as f32) * SIDE as f32 - 0.5).clamp(0.0, SIDE as f32 - 1.0);
                let first = (at as usize).min(SIDE - 2);
                (first, at - first as f32)
            })
        };
        let (columns, rows) = (places(left, width), places(top, height));
        let at = |x: usize, y: usize| self.0[y * SIDE + x] as f32;
        rows.map(|(y, below)| {
            columns.map(|(x, right)| {
                let upper = at(x, y) * (1.0 - right) + at(x + 1, y) * right;
                let lower = at(x, y + 1) * (1.0 - right) + at(x + 1, y + 1) * right;
                upper * (1.0 - below) + lower * below
            })
        })
    }

    /// The perceptual hash of a window: the signs of its lowest frequencies but the mean, which brightness and contrast leave as
    /// they are.
    pub fn hash(&self, window: Window) -> u64 {
        static COSINES: LazyLock<[[f32; SAMPLES]; FREQUENCIES]> = LazyLock::new(|| {
            let cosine = |k: usize, i: usize| libm::cosf(PI * k as f32 * (i as f32 + 0.5) / SAMPLES as f32);
            std::array::from_fn(|k| std::array::from_fn(|i| cosine(k, i)))
        });
        let samples = self.sample::<SAMPLES>(window);
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

    /// How alike a window of this one, or one near by it, is to the whole of another: correlations of the grey values and of
    /// their details, of which the smaller counts; 1 for equal ones.
    pub fn likeness(&self, window: Window, other: &Thumbnail) -> f32 {
        let whole = other.sample::<SAMPLES>(Window::WHOLE);
        let score = |window: Window| correlation(&self.sample::<SAMPLES>(window), &whole);
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
        let (own, whole) = (self.sample::<SIDE>(best), other.sample::<SIDE>(Window::WHOLE));
        correlation(&own, &whole).min(correlation(&details(&own), &details(&whole)))
    }
}

/// What differs from the surroundings of each sample.
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

/// Pearson's correlation; 0 where one side is the same everywhere.
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
