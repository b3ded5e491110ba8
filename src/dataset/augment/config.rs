//! The `augmentations:` section of a spec: the steps of each view, in torchvision's order and with its semantics.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The two views' pipelines and the input normalisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AugmentationsConfig {
    /// Height and width in pixels of what the encoder sees, in training and in evaluation.
    #[schemars(range(min = 8, max = 1024))]
    pub size: u32,
    /// Per-channel mean that is subtracted (RGB, in [0, 1]); ImageNet's by default.
    #[serde(default = "imagenet_mean")]
    pub mean: [f32; 3],
    /// Per-channel standard deviation that is divided by (RGB, in [0, 1]); ImageNet's by default.
    #[serde(default = "imagenet_std")]
    #[schemars(extend("items" = { "type": "number", "exclusiveMinimum": 0 }))]
    pub std: [f32; 3],
    /// First view.
    pub view1: ViewConfig,
    /// Second view.
    pub view2: ViewConfig,
    /// Small crops beside both views (multi-crop); they predict the views and are predicted by none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_crops: Option<LocalCropsConfig>,
    /// How evaluation sees an image.
    #[serde(default)]
    pub eval: EvalTransformConfig,
}

impl AugmentationsConfig {
    /// The part of the section that training reads.
    pub fn of_training(&self) -> TrainingSection<'_> {
        let (view1, view2, local_crops) = (&self.view1, &self.view2, self.local_crops.as_ref());
        let usual = EvalTransformConfig::default();
        TrainingSection { size: self.size, mean: self.mean, std: self.std, view1, view2, local_crops, eval: usual }
    }

    /// The part of the section that evaluation reads.
    pub fn of_evaluation(&self) -> EvalSection {
        EvalSection { size: self.size, mean: self.mean, std: self.std, eval: self.eval }
    }
}

/// The part of the section that training reads.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TrainingSection<'a> {
    pub size: u32,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub view1: &'a ViewConfig,
    pub view2: &'a ViewConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_crops: Option<&'a LocalCropsConfig>,
    // Always the defaults: the spec's settings for evaluation must not change a training.
    eval: EvalTransformConfig,
}

impl TrainingSection<'_> {
    /// How images are transformed for scores during training.
    pub fn of_scores(&self) -> EvalSection {
        EvalSection { size: self.size, mean: self.mean, std: self.std, eval: self.eval }
    }
}

/// The part of the section that evaluation reads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalSection {
    pub size: u32,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub eval: EvalTransformConfig,
}

/// Small crops of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalCropsConfig {
    /// Crops per image.
    #[schemars(range(min = 1, max = 32))]
    pub count: u32,
    /// Height and width in pixels.
    #[schemars(range(min = 8, max = 1024))]
    pub size: u32,
    /// What each of them goes through.
    pub view: ViewConfig,
}

fn imagenet_mean() -> [f32; 3] {
    [0.485, 0.456, 0.406]
}

fn imagenet_std() -> [f32; 3] {
    [0.229, 0.224, 0.225]
}

/// One view's pipeline; a step that is left out is not applied. Steps run in the order of these keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ViewConfig {
    /// Crop of random area and aspect ratio, resized to the view's size (bilinear, antialiased).
    pub random_resized_crop: RandomResizedCropConfig,
    /// Random changes of brightness, contrast, saturation and hue, in random order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color_jitter: Option<ColorJitterConfig>,
    /// Conversion to grey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grayscale: Option<ProbabilityConfig>,
    /// Gaussian blur.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gaussian_blur: Option<GaussianBlurConfig>,
    /// Inversion of the pixels at or above a threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solarize: Option<SolarizeConfig>,
    /// Mirroring left to right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub horizontal_flip: Option<ProbabilityConfig>,
}

/// `torchvision.transforms.RandomResizedCrop`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomResizedCropConfig {
    /// Range of the crop's area as a share of the image.
    #[serde(default = "default_scale")]
    pub scale: [f32; 2],
    /// Range of the crop's width over height.
    #[serde(default = "default_ratio")]
    pub ratio: [f32; 2],
}

fn default_scale() -> [f32; 2] {
    [0.08, 1.0]
}

fn default_ratio() -> [f32; 2] {
    [0.75, 4.0 / 3.0]
}

/// `torchvision.transforms.ColorJitter`, applied with probability `p`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ColorJitterConfig {
    /// Probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub p: f32,
    /// Brightness factor is drawn from [1 - b, 1 + b].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub brightness: f32,
    /// Contrast factor is drawn from [1 - c, 1 + c].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub contrast: f32,
    /// Saturation factor is drawn from [1 - s, 1 + s].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub saturation: f32,
    /// Hue shift is drawn from [-h, h], in turns.
    #[schemars(range(min = 0.0, max = 0.5))]
    pub hue: f32,
}

/// A step that is applied with a probability and has no other setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbabilityConfig {
    /// Probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub p: f32,
}

/// Gaussian blur with a random standard deviation, as `PIL.ImageFilter.GaussianBlur` in the reference recipes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GaussianBlurConfig {
    /// Probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub p: f32,
    /// Range of the standard deviation in pixels.
    #[serde(default = "default_sigma")]
    pub sigma: [f32; 2],
}

fn default_sigma() -> [f32; 2] {
    [0.1, 2.0]
}

/// `torchvision.transforms.RandomSolarize`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SolarizeConfig {
    /// Probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub p: f32,
    /// Pixels at or above it (of 255) are inverted.
    #[serde(default = "default_threshold")]
    pub threshold: u8,
}

fn default_threshold() -> u8 {
    128
}

/// Resize of the shorter side, then centre crop to `augmentations.size`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalTransformConfig {
    /// Length in pixels that the shorter side is resized to before the centre crop; by default `size` up to 64 pixels
    /// and `size * 256 / 224` above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8, max = 2048))]
    pub resize: Option<u32>,
}
