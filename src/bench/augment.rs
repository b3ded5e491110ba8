//! Measures augmentation: both views of images, from encoded bytes to normalised floats, as in the loader.

use serde_json::json;

use super::{
    Options, Workload,
    images::{Encoding, Images},
};
use crate::{dataset::augment::AugmentationsConfig, train};

/// A recipe: which images, and how they are augmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// The recipe of `specs/cifar10-fast/snclr.yaml`.
    Cifar,
    /// The recipe of `specs/resnet50.yaml`, which is the paper's.
    Imagenet,
}

impl Recipe {
    /// The augmentations of both views.
    pub fn augmentations(self) -> AugmentationsConfig {
        let config = match self {
            Recipe::Cifar => {
                let view = json!({
                    "random_resized_crop": {"scale": [0.2, 1.0]},
                    "color_jitter": {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
                    "grayscale": {"p": 0.2},
                    "gaussian_blur": {"p": 0.5},
                    "horizontal_flip": {"p": 0.5},
                });
                let (mean, std) = (json!([0.4914, 0.4822, 0.4465]), json!([0.2470, 0.2435, 0.2616]));
                json!({"size": 32, "mean": mean, "std": std, "view1": view, "view2": view})
            }
            Recipe::Imagenet => {
                let view = json!({
                    "random_resized_crop": {"scale": [0.2, 1.0]},
                    "color_jitter": {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
                    "grayscale": {"p": 0.2},
                    "gaussian_blur": {"p": 1.0},
                    "horizontal_flip": {"p": 0.5},
                });
                let mut second = view.clone();
                second["gaussian_blur"] = json!({"p": 0.1});
                second["solarize"] = json!({"p": 0.2});
                json!({"size": 224, "view1": view, "view2": second, "eval": {"resize": 256}})
            }
        };
        serde_json::from_value(config).expect("the recipe is a section of a spec")
    }

    /// Encoding, side in pixels, and default number of images.
    pub(super) fn images(self) -> (Encoding, u32, usize) {
        match self {
            Recipe::Cifar => (Encoding::Png, 32, 1024),
            Recipe::Imagenet => (Encoding::Jpeg, 400, 64),
        }
    }

    /// Default number of images in a training's data set.
    pub(super) fn epoch(self) -> usize {
        match self {
            Recipe::Cifar => 10_000,
            Recipe::Imagenet => 256,
        }
    }

    /// Images augmented at a time: the batch of the step that would train on them (`resnet18`, `resnet50`).
    fn batch(self) -> usize {
        match self {
            Recipe::Cifar => 128,
            Recipe::Imagenet => 8,
        }
    }
}

pub(super) fn prepare(recipe: Recipe, options: &Options) -> anyhow::Result<Workload> {
    let (encoding, side, count) = recipe.images();
    let count = options.images.unwrap_or(count);
    let images = Images::new(encoding, side, count, options.save_images.as_deref())?;
    let augmentations = recipe.augmentations();
    let what = format!(
        "both views at {size}x{size} of {count} {encoding:?} images of {side}x{side}, {:.1} kB each",
        images.bytes as f64 / 1e3 / count as f64,
        size = augmentations.size,
    );
    let samples: Vec<u32> = (0..count as u32).collect();
    let mut epoch = 0;
    Ok(Workload::new(what, Some(count), move || {
        epoch += 1;
        for samples in samples.chunks(recipe.batch()) {
            std::hint::black_box(train::augment(&images.split, &augmentations.of_training(), 0, epoch, samples)?);
        }
        Ok(())
    }))
}
