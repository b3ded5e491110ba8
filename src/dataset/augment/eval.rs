//! The evaluation transform: resizes an image's shorter side, then cuts out the centre.

use super::{EvalSection, normalize::Normalize, resize::Target, scratch::with_scratch};
use crate::dataset::{CropBox, Part};

/// `torchvision.transforms.Resize` and `CenterCrop`, then normalisation.
#[derive(Clone, Debug)]
pub struct EvalTransform {
    resize: u32,
    size: u32,
    normalize: Normalize,
}

impl EvalTransform {
    /// The default of `resize` is `size` up to 64 pixels, since such images are assumed to have the network's size already;
    /// above, it keeps ImageNet's margin (256 for 224). A `resize` below `size` is raised to it, since there is no padding.
    pub fn new(config: &EvalSection) -> EvalTransform {
        let usual = if config.size <= 64 { config.size } else { config.size * 256 / 224 };
        let resize = config.eval.resize.unwrap_or(usual).max(config.size);
        EvalTransform { resize, size: config.size, normalize: Normalize::new(&config.mean, &config.std) }
    }

    /// Pixels of the shorter side after resizing, before the centre is cut out.
    pub fn shorter_side(&self) -> u32 {
        self.resize
    }

    /// The part of an image of this size that the transform reads.
    pub fn reads(&self, size: (u32, u32)) -> CropBox {
        self.target(size).reads(CropBox::whole(size))
    }

    /// Writes the centre of `image` to `out`: `size * size * 3` values, height x width x channel, normalised.
    ///
    /// Panics when `out` has another length, or the image lacks a pixel that is read.
    pub fn apply(&self, image: &Part, out: &mut [f32]) {
        let side = self.size as usize;
        assert_eq!(out.len(), 3 * side * side, "length of the output");
        let size = image.size();
        with_scratch(|scratch| {
            scratch.resizer.crop_resize(image, CropBox::whole(size), self.target(size), &mut scratch.planes);
            self.normalize.write(&scratch.planes, false, out);
        });
    }

    /// The size that an image of this size is resized to, and the centre box of it.
    fn target(&self, (width, height): (u32, u32)) -> Target {
        let (width, height) = self.resized(width, height);
        // Python's `round`: halves go to the even number.
        let margin = |length: u32| ((length - self.size) as f64 / 2.0).round_ties_even() as u32;
        let shown = CropBox { left: margin(width), top: margin(height), width: self.size, height: self.size };
        Target { size: (width, height), shown }
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
