//! How evaluation sees an image: resized so that the shorter side fits, then the centre.

use image::RgbImage;

use super::{EvalSection, crop::CropBox, normalize::Normalize, planes::with_scratch};

/// `torchvision.transforms.Resize` and `CenterCrop`, then normalisation.
#[derive(Clone, Debug)]
pub struct EvalTransform {
    resize: u32,
    size: u32,
    normalize: Normalize,
}

impl EvalTransform {
    /// Up to 64 pixels the images are taken to be of the network's size; above, ImageNet's margin (256 for 224) is kept.
    /// A shorter side below `size` is raised to it: there is no padding.
    pub fn new(config: &EvalSection) -> EvalTransform {
        let usual = if config.size <= 64 { config.size } else { config.size * 256 / 224 };
        let resize = config.eval.resize.unwrap_or(usual).max(config.size);
        EvalTransform { resize, size: config.size, normalize: Normalize::new(&config.mean, &config.std) }
    }

    /// Pixels of the shorter side after resizing, before the centre is cut out.
    pub fn shorter_side(&self) -> u32 {
        self.resize
    }

    /// Writes the centre of `image` to `out`: `size * size * 3` values, height x width x channel, normalised.
    ///
    /// Panics when `out` has another length or the image is empty.
    pub fn apply(&self, image: &RgbImage, out: &mut [f32]) {
        let side = self.size as usize;
        assert_eq!(out.len(), 3 * side * side, "length of the output");
        let (width, height) = self.resized(image.width(), image.height());
        let whole = CropBox { left: 0, top: 0, width: image.width(), height: image.height() };
        // Python's `round`: halves go to the even number.
        let margin = |length: u32| ((length - self.size) as f64 / 2.0).round_ties_even() as usize;
        with_scratch(|scratch| {
            scratch.resizer.crop_resize(image, whole, (width, height), &mut scratch.resized);
            scratch.planes.load(&scratch.resized, width as usize, margin(width), margin(height), side);
            self.normalize.write(&scratch.planes, false, out);
        });
    }

    /// Width and height after resizing; fractions of the longer side are dropped.
    fn resized(&self, width: u32, height: u32) -> (u32, u32) {
        let longer = |long: u32, short: u32| (self.resize as f64 * long as f64 / short as f64) as u32;
        match width <= height {
            true => (self.resize, longer(height, width)),
            false => (longer(width, height), self.resize),
        }
    }
}
