//! Makes one view: draws and runs the steps of a [`ViewConfig`] in their order.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{
    ViewConfig,
    blur::gaussian_blur,
    color,
    crop::{random_crop, uniform},
    jitter::{self, Change},
    normalize::Normalize,
    resize::Target,
    scratch::with_scratch,
};
use crate::dataset::{CropBox, Part};

/// Makes a view of an image.
#[derive(Clone, Debug)]
pub struct Pipeline {
    view: ViewConfig,
    pub(super) size: u32,
    pub(super) normalize: Normalize,
}

impl Pipeline {
    /// `view` at `size` pixels, normalised by a mean and a standard deviation per channel.
    pub fn new(view: &ViewConfig, size: u32, [mean, std]: [&[f32; 3]; 2]) -> Pipeline {
        Pipeline { view: view.clone(), size, normalize: Normalize::new(mean, std) }
    }

    /// Draws all random values of a view of an image of `width` x `height` pixels. The order of the draws is fixed: changing it
    /// would change what a seed produces.
    pub fn draw(&self, (width, height): (u32, u32), random: &mut ChaCha8Rng) -> Drawn {
        let view = &self.view;
        let part = random_crop(&view.random_resized_crop, width, height, random);
        let jitter = view.color_jitter.as_ref().filter(|c| happens(c.p, random));
        let changes = jitter.map_or([None; 4], |config| jitter::draw(config, random));
        let grayscale = view.grayscale.as_ref().is_some_and(|c| happens(c.p, random));
        let blur = view.gaussian_blur.as_ref().filter(|c| happens(c.p, random));
        let sigma = blur.map(|config| uniform(random, config.sigma.map(f64::from)) as f32);
        let threshold = view.solarize.as_ref().filter(|c| happens(c.p, random)).map(|config| config.threshold);
        let mirrored = view.horizontal_flip.as_ref().is_some_and(|c| happens(c.p, random));
        Drawn { part, changes, grayscale, sigma, threshold, mirrored }
    }

    /// Writes a drawn view of `image` to `out`: `size * size * 3` values, height x width x channel, normalised.
    ///
    /// # Panics
    /// When `out` has another length, or the image lacks the part that the view shows.
    pub fn make(&self, drawn: &Drawn, image: &Part, out: &mut [f32]) {
        let side = self.size as usize;
        assert_eq!(out.len(), 3 * side * side, "length of the output");
        with_scratch(|scratch| {
            let planes = &mut scratch.planes;
            scratch.resizer.crop_resize(image, drawn.part, Target::whole(self.size, self.size), planes);
            for change in drawn.changes.into_iter().flatten() {
                jitter::apply(change, planes);
            }
            if drawn.grayscale {
                color::grayscale(planes);
            }
            if let Some(sigma) = drawn.sigma {
                gaussian_blur(planes, sigma, &mut scratch.blur);
            }
            if let Some(threshold) = drawn.threshold {
                color::solarize(planes, threshold);
            }
            self.normalize.write(planes, drawn.mirrored, out);
        });
    }
}

/// The values drawn for one view of one image. Steps run in the order of these fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The part of the image that the view shows.
    pub part: CropBox,
    pub(super) changes: [Option<Change>; 4],
    pub(super) grayscale: bool,
    /// Standard deviation of the blur.
    pub(super) sigma: Option<f32>,
    /// Threshold of the solarisation.
    pub(super) threshold: Option<u8>,
    pub(super) mirrored: bool,
}

/// Draws one view per pipeline, and returns the views with the smallest box around their parts. `random` returns the stream of
/// the view with this index.
pub fn draw_all<'a>(
    pipelines: impl Iterator<Item = &'a Pipeline>,
    size: (u32, u32),
    random: impl Fn(usize) -> ChaCha8Rng,
) -> (Vec<Drawn>, CropBox) {
    let views: Vec<Drawn> = pipelines.enumerate().map(|(i, pipeline)| pipeline.draw(size, &mut random(i))).collect();
    let around = views.iter().map(|view| view.part).reduce(CropBox::around).expect("an image has views");
    (views, around)
}

/// True with probability `p`.
fn happens(p: f32, random: &mut ChaCha8Rng) -> bool {
    random.random::<f64>() < p as f64
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;
    use crate::{
        dataset::augment::AugmentationsConfig,
        ops::random::{Purpose, stream},
    };
    use serde_json::{Value, json};

    /// A pipeline that shows the whole of a square image and then runs `steps`. Mean 0 and deviation 1 keep the values at bytes /
    /// 255.
    fn pipeline(mut steps: Value) -> Pipeline {
        steps["random_resized_crop"] = json!({ "scale": [1.0, 1.0], "ratio": [1.0, 1.0] });
        let config = json!({ "size": 16, "mean": [0, 0, 0], "std": [1, 1, 1], "view1": steps, "view2": steps });
        let config: AugmentationsConfig = serde_json::from_value(config).unwrap();
        Pipeline::new(&config.view1, config.size, [&config.mean, &config.std])
    }

    fn image() -> RgbImage {
        RgbImage::from_fn(16, 16, |x, y| image::Rgb([(x * 16) as u8, (y * 16) as u8, 200]))
    }

    fn view(pipeline: &Pipeline, sample: u64) -> Vec<f32> {
        let mut out = vec![0.0; 16 * 16 * 3];
        let drawn = pipeline.draw((16, 16), &mut stream(5, Purpose::Augment, 0, sample, 0));
        pipeline.make(&drawn, &image().into(), &mut out);
        out
    }

    #[test]
    fn without_steps_a_view_is_the_normalised_image() {
        let plain = view(&pipeline(json!({})), 0);
        let expected: Vec<f32> = image().iter().map(|&byte| byte as f32 / 255.0).collect();
        assert_eq!(plain, expected);
    }

    #[test]
    fn a_view_depends_on_its_stream_alone() {
        let steps = json!({
            "color_jitter": { "p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1 },
            "gaussian_blur": { "p": 0.5 }, "grayscale": { "p": 0.2 }, "horizontal_flip": { "p": 0.5 }
        });
        let pipeline = pipeline(steps);
        let first = view(&pipeline, 7);
        assert_ne!(first, view(&pipeline, 8));
        // The thread and the previous content of its buffers make no difference.
        let elsewhere = std::thread::scope(|scope| scope.spawn(|| view(&pipeline, 7)).join().unwrap());
        assert_eq!(first, elsewhere);
        assert_eq!(first, view(&pipeline, 7));
    }

    /// The share of views that a step with this probability changes. Asserts that each changed view is right.
    fn rate(steps: Value, is_right: impl Fn(&[f32]) -> bool) -> f64 {
        let (pipeline, plain) = (pipeline(steps), view(&pipeline(json!({})), 0));
        let changed: Vec<_> = (0..4000).map(|i| view(&pipeline, i)).filter(|v| *v != plain).collect();
        assert!(changed.iter().all(|view| is_right(view)));
        changed.len() as f64 / 4000.0
    }

    #[test]
    fn steps_happen_as_often_as_their_probability_says() {
        let (grey, byte) = (|v: &[f32]| v.chunks(3).all(|p| p[0] == p[1] && p[1] == p[2]), |b: u8| b as f32 / 255.0);
        // With 4000 draws, four standard deviations are at most 0.032.
        let near = |rate: f64, p: f64| assert!((rate - p).abs() < 0.032, "{rate} for {p}");
        near(rate(json!({ "grayscale": { "p": 0.2 } }), grey), 0.2);
        near(rate(json!({ "horizontal_flip": { "p": 0.5 } }), |v| v[0] == byte(240) && v[45] == 0.0), 0.5);
        near(rate(json!({ "solarize": { "p": 0.3 } }), |v| v[2] == byte(55) && v[0] == 0.0), 0.3);
        near(rate(json!({ "gaussian_blur": { "p": 0.6, "sigma": [1.0, 2.0] } }), |v| v[0] > 0.0), 0.6);
        let jitter = json!({ "p": 0.8, "brightness": 0.4, "contrast": 0.0, "saturation": 0.0, "hue": 0.0 });
        near(rate(json!({ "color_jitter": jitter }), |v| v[0] == 0.0), 0.8);
        assert_eq!(rate(json!({ "grayscale": { "p": 0.0 } }), |_| false), 0.0);
        assert_eq!(rate(json!({ "grayscale": { "p": 1.0 } }), grey), 1.0);
    }
}
