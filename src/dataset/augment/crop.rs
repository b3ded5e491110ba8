//! `torchvision.transforms.RandomResizedCrop`: chooses the part of an image that a view shows.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::RandomResizedCropConfig;
use crate::dataset::CropBox;

/// Draws a box of random area and aspect ratio. If ten draws do not fit, returns the largest centred box with an allowed ratio.
pub(super) fn random_crop(
    config: &RandomResizedCropConfig,
    width: u32,
    height: u32,
    random: &mut ChaCha8Rng,
) -> CropBox {
    let (w, h) = (width as f64, height as f64);
    let [low, high] = config.ratio.map(|ratio| libm::log(ratio.into()));
    for _ in 0..10 {
        let area = w * h * uniform(random, config.scale.map(f64::from));
        let ratio = libm::exp(uniform(random, [low, high]));
        let (cw, ch) = ((area * ratio).sqrt().round_ties_even(), (area / ratio).sqrt().round_ties_even());
        if cw >= 1.0 && cw <= w && ch >= 1.0 && ch <= h {
            let (cw, ch) = (cw as u32, ch as u32);
            let top = random.random_range(0..=height - ch);
            let left = random.random_range(0..=width - cw);
            return CropBox { left, top, width: cw, height: ch };
        }
    }
    let [narrow, wide] = config.ratio.map(f64::from);
    let (cw, ch) = match w / h {
        ratio if ratio < narrow => (width, ((w / narrow).round_ties_even() as u32).clamp(1, height)),
        ratio if ratio > wide => (((h * wide).round_ties_even() as u32).clamp(1, width), height),
        _ => (width, height),
    };
    CropBox { left: (width - cw) / 2, top: (height - ch) / 2, width: cw, height: ch }
}

/// A uniform number from a range, which may be a single point.
pub(super) fn uniform(random: &mut ChaCha8Rng, [low, high]: [f64; 2]) -> f64 {
    low + (high - low) * random.random::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::random::{Purpose, stream};

    fn boxes(config: RandomResizedCropConfig, width: u32, height: u32) -> Vec<CropBox> {
        let mut random = stream(1, Purpose::Augment, 0, 0, 0);
        (0..20_000).map(|_| random_crop(&config, width, height, &mut random)).collect()
    }

    #[test]
    fn area_and_ratio_are_spread_over_their_ranges() {
        let config = RandomResizedCropConfig { scale: [0.2, 0.6], ratio: [0.5, 2.0] };
        let boxes = boxes(config, 400, 400);
        let areas: Vec<f64> = boxes.iter().map(|b| (b.width * b.height) as f64 / 160_000.0).collect();
        let ratios: Vec<f64> = boxes.iter().map(|b| (b.width as f64 / b.height as f64).ln()).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        // Rounding to whole pixels moves either by less than 1 %.
        assert!(areas.iter().all(|a| (0.197..0.605).contains(a)));
        assert!(ratios.iter().all(|r| r.abs() < 2f64.ln() + 0.01));
        // Large and lop-sided boxes miss more often: the mean area lies a little below the middle of the range.
        assert!((mean(&areas) - 0.39).abs() < 0.015, "{}", mean(&areas));
        assert!(mean(&ratios).abs() < 0.01, "{}", mean(&ratios));
        let (left, right): (Vec<_>, Vec<_>) = boxes.iter().map(|b| (b.left, 400 - b.left - b.width)).unzip();
        let (left, right) = (left.iter().sum::<u32>() as f64, right.iter().sum::<u32>() as f64);
        assert!((left / right - 1.0).abs() < 0.03, "boxes lean to one side: {left} to {right}");
        assert!(boxes.iter().any(|b| b.top == 0) && boxes.iter().any(|b| b.top + b.height == 400));
    }

    #[test]
    fn after_ten_misses_the_centre_is_taken() {
        // The whole area at a ratio that the image does not have can never fit.
        let config = RandomResizedCropConfig { scale: [1.0, 1.0], ratio: [0.75, 4.0 / 3.0] };
        let b = boxes(config.clone(), 300, 60)[0];
        assert_eq!(b, CropBox { left: 110, top: 0, width: 80, height: 60 });
        let b = boxes(config, 60, 300)[0];
        assert_eq!(b, CropBox { left: 0, top: 110, width: 60, height: 80 });
        let config = RandomResizedCropConfig { scale: [2.0, 2.0], ratio: [1.0, 1.0] };
        assert_eq!(boxes(config, 70, 70)[0], CropBox { left: 0, top: 0, width: 70, height: 70 });
    }

    #[test]
    fn a_single_pixel_is_cropped_to_itself() {
        let config = RandomResizedCropConfig { scale: [0.08, 1.0], ratio: [0.75, 4.0 / 3.0] };
        assert!(boxes(config, 1, 1).iter().all(|b| (b.width, b.height) == (1, 1)));
    }
}
