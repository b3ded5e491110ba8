//! One view: the steps of a [`ViewConfig`] in their order.

use image::RgbImage;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{
    AugmentationsConfig, ViewConfig,
    blur::gaussian_blur,
    color,
    crop::{random_crop, uniform},
    jitter,
    normalize::Normalize,
    planes::with_scratch,
    resize::crop_resize,
};

/// Makes a view of an image.
#[derive(Clone, Debug)]
pub struct Pipeline {
    view: ViewConfig,
    size: u32,
    normalize: Normalize,
}

impl Pipeline {
    /// `view` with the size and the normalisation of `config`.
    pub fn new(view: &ViewConfig, config: &AugmentationsConfig) -> Pipeline {
        Pipeline { view: view.clone(), size: config.size, normalize: Normalize::new(config) }
    }

    /// Writes a view of `image` to `out`: `size * size * 3` values, height x width x channel, normalised.
    ///
    /// All that is random comes from `random`. Panics when `out` has another length or the image is empty.
    pub fn apply(&self, image: &RgbImage, random: &mut ChaCha8Rng, out: &mut [f32]) {
        let (view, side) = (&self.view, self.size as usize);
        assert_eq!(out.len(), 3 * side * side, "length of the output");
        with_scratch(|scratch| {
            let part = random_crop(&view.random_resized_crop, image.width(), image.height(), random);
            crop_resize(image, part, (self.size, self.size), &mut scratch.resizer, &mut scratch.resized);
            let planes = &mut scratch.planes;
            planes.load(&scratch.resized, side, 0, 0, side);
            if let Some(config) = view.color_jitter.as_ref().filter(|c| happens(c.p, random)) {
                for change in jitter::draw(config, random).into_iter().flatten() {
                    jitter::apply(change, planes);
                }
            }
            if view.grayscale.as_ref().is_some_and(|c| happens(c.p, random)) {
                color::grayscale(planes);
            }
            if let Some(config) = view.gaussian_blur.as_ref().filter(|c| happens(c.p, random)) {
                let sigma = uniform(random, config.sigma.map(f64::from));
                gaussian_blur(planes, sigma as f32, &mut scratch.blur);
            }
            if let Some(config) = view.solarize.as_ref().filter(|c| happens(c.p, random)) {
                color::solarize(planes, config.threshold);
            }
            let mirrored = view.horizontal_flip.as_ref().is_some_and(|c| happens(c.p, random));
            self.normalize.write(planes, mirrored, out);
        });
    }
}

/// True with probability `p`.
fn happens(p: f32, random: &mut ChaCha8Rng) -> bool {
    random.random::<f64>() < p as f64
}
