//! Weights of antialiased bilinear resizing along one axis, in Pillow's fixed point: the CPU's code and the GPU's share them.

use std::ops::Range;

use crate::dataset::CropBox;

/// Bits of a weight's fraction. Of 32 bits, 8 are for the sample and 2 for sums that overshoot, which leaves 22.
pub(super) const BITS: u32 = 22;

/// Whether columns are resized before rows. Pillow does so since version 13 if it is less work. The order affects the result,
/// because bytes are rounded between the two passes.
pub(super) fn columns_first(part: CropBox, (width, height): (u32, u32)) -> bool {
    let shrinks_by = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let (across, down) = (shrinks_by(part.width, width), shrinks_by(part.height, height));
    down > 0 && down > 2 * across
}

/// Weights that resize one axis: for each target pixel its first source pixel, the number of its source pixels, and their
/// weights, padded to `window` entries.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Filters {
    pub window: usize,
    /// [to, 2 + window].
    pub values: Vec<i32>,
}

impl Filters {
    /// Weights to resize an axis from `from` to `to` pixels. Pixels beyond the ends have no weight.
    pub fn new(from: u32, to: u32) -> Filters {
        let scale = f64::from(from) / f64::from(to);
        // The triangle's half-width is one target pixel, but at least one source pixel.
        let radius = scale.max(1.0);
        let window = radius.ceil() as usize * 2 + 1;
        let mut values = Vec::with_capacity(to as usize * (2 + window));
        let mut weights = Vec::with_capacity(window);
        for i in 0..to {
            let first = weigh((f64::from(i) + 0.5) * scale, radius, from, &mut weights);
            values.extend([first as i32, weights.len() as i32]);
            // Weights are never negative, so adding a half and dropping the fraction rounds them.
            values.extend(weights.iter().map(|w| (w * f64::from(1u32 << BITS) + 0.5) as i32));
            values.resize((i as usize + 1) * (2 + window), 0);
        }
        Filters { window, values }
    }

    /// Number of target pixels.
    pub fn len(&self) -> usize {
        self.values.len() / (2 + self.window)
    }

    /// Keeps only these target pixels, and counts source pixels from the first one that they read. Returns the range of source
    /// pixels that they read.
    pub fn only(&mut self, pixels: Range<u32>) -> Range<u32> {
        let entry = 2 + self.window;
        self.values.truncate(entry * pixels.end as usize);
        self.values.drain(..entry * pixels.start as usize);
        let start = self.iter().map(|(first, _)| first).min().unwrap_or(0);
        let end = self.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0);
        self.values.chunks_exact_mut(entry).for_each(|entry| entry[0] -= start as i32);
        start as u32..end as u32
    }

    /// For each target pixel its first source pixel, and the weights from it on.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (usize, &[i32])> {
        self.values.chunks_exact(2 + self.window).map(|entry| (entry[0] as usize, &entry[2..2 + entry[1] as usize]))
    }
}

/// Returns the first source pixel around `centre`, and writes the weights from that pixel on to `weights`. They add up to 1.
///
/// The order of the operations is Pillow's; another order would round to other weights.
fn weigh(centre: f64, radius: f64, from: u32, weights: &mut Vec<f64>) -> u32 {
    let first = (centre - radius + 0.5).max(0.0) as u32;
    let end = ((centre + radius + 0.5) as u32).min(from);
    let per_pixel = 1.0 / radius;
    weights.clear();
    weights.extend((first..end).map(|x| (1.0 - ((f64::from(x) - centre + 0.5) * per_pixel).abs()).max(0.0)));
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= total);
    // Source pixels with weight 0 at the end need not be read.
    while weights.len() > 1 && weights.last() == Some(&0.0) {
        weights.pop();
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_add_up_to_one_and_lie_within_the_source() {
        for (from, to) in [(1, 1), (1, 9), (7, 3), (3, 7), (500, 224), (224, 500), (4000, 2), (33, 32)] {
            let filters = Filters::new(from, to);
            assert_eq!(filters.iter().count(), to as usize);
            for (first, weights) in filters.iter() {
                assert!(!weights.is_empty() && weights.len() <= filters.window, "{from} to {to}");
                assert!(first + weights.len() <= from as usize, "{from} to {to}");
                let off = (weights.iter().sum::<i32>() - (1 << BITS)).unsigned_abs() as usize;
                assert!(off <= weights.len(), "{from} to {to}: off by {off}");
            }
        }
    }

    #[test]
    fn some_target_pixels_read_what_they_read_among_all() {
        let all = Filters::new(50, 20);
        let mut some = all.clone();
        let source = some.only(3..9);
        assert_eq!(some.len(), 6);
        let moved: Vec<_> = some.iter().map(|(first, weights)| (source.start as usize + first, weights)).collect();
        assert_eq!(moved, all.iter().skip(3).take(6).collect::<Vec<_>>());
        let (last, weights) = moved[5];
        assert_eq!(moved[0].0 as u32..(last + weights.len()) as u32, source);
    }

    #[test]
    fn an_axis_that_keeps_its_length_keeps_its_pixels() {
        for (i, (first, weights)) in Filters::new(5, 5).iter().enumerate() {
            assert_eq!((first, weights), (i, &[1 << BITS][..]));
        }
    }
}
