//! The `encoder:` section of a spec.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rule::Broken;

/// The network and its settings. `arch` selects it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "arch", rename_all = "snake_case")]
pub enum EncoderConfig {
    /// Residual network of 18 layers.
    Resnet18(ResnetConfig),
    /// Residual network of 34 layers.
    Resnet34(ResnetConfig),
    /// Residual network of 50 layers (bottlenecks).
    Resnet50(ResnetConfig),
    /// Residual network of 101 layers (bottlenecks).
    Resnet101(ResnetConfig),
    /// Vision transformer of width 192, 12 blocks.
    VitTiny(VitConfig),
    /// Vision transformer of width 384, 12 blocks.
    VitSmall(VitConfig),
    /// Vision transformer of width 768, 12 blocks.
    VitBase(VitConfig),
}

impl EncoderConfig {
    /// The file of weights that training starts from, if there is one.
    pub fn init(&self) -> Option<&Path> {
        use EncoderConfig::*;
        match self {
            Resnet18(c) | Resnet34(c) | Resnet50(c) | Resnet101(c) => c.init.as_deref(),
            VitTiny(c) | VitSmall(c) | VitBase(c) => c.init.as_deref(),
        }
    }
}

/// A residual network as in torchvision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResnetConfig {
    /// Factor on every channel count; 1 is the usual network (64 channels after the stem).
    #[serde(default = "one")]
    #[schemars(range(min = 0.0625, max = 8.0))]
    pub width_multiplier: f32,
    /// First layers.
    #[serde(default)]
    pub stem: Stem,
    /// Weights to start from instead of random ones: a safetensors file with torchvision's names that holds exactly
    /// this encoder. A classifier in it (`fc.*`, `head.*`) and `num_batches_tracked` are passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-operational" = true))]
    pub init: Option<PathBuf>,
}

impl Default for ResnetConfig {
    fn default() -> Self {
        Self { width_multiplier: one(), stem: Stem::default(), init: None }
    }
}

fn one() -> f32 {
    1.0
}

impl ResnetConfig {
    /// Number of channels of the first layers.
    ///
    /// # Errors
    /// When the number is not whole.
    pub fn channels(width_multiplier: f32) -> Result<usize, Broken> {
        let channels = CHANNELS * width_multiplier;
        if channels >= 1.0 && channels.fract() == 0.0 {
            return Ok(channels as usize);
        }
        Err(Broken {
            keys: vec!["encoder.width_multiplier"],
            what: format!("{channels} is not a whole number of channels"),
            allowed: "multiples of 1/64".to_owned(),
            hint: format!("the nearest width is {}", channels.round().max(1.0) / CHANNELS),
        })
    }
}

/// Channels of the first layers of a ResNet of usual width.
const CHANNELS: f32 = 64.0;

/// First layers of a ResNet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// 7x7 convolution of stride 2 and max-pooling: for images of about 224 pixels.
    #[default]
    Imagenet,
    /// 3x3 convolution of stride 1, no pooling: for images of about 32 pixels.
    Cifar,
}

/// A vision transformer as in timm (class token, pre-norm), with fixed 2-D sine-cosine positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Height and width of a patch in pixels; sizes of images are multiples of it.
    #[serde(default = "sixteen")]
    #[schemars(range(min = 1, max = 64))]
    pub patch_size: usize,
    /// Attention heads per block; 3, 6 and 12 by default, as in timm (SNCLR's release gives ViT-S 12).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub heads: Option<usize>,
    /// Size of the images that the positions are laid out for; `augmentations.size` by default. Images of another size get
    /// positions by bicubic interpolation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub image_size: Option<usize>,
    /// Keep the random patch embedding as it is, which makes training stabler (MoCo-v3, SNCLR's release).
    #[serde(default)]
    pub stop_grad_patch_embed: bool,
    /// Weights to start from instead of random ones: a safetensors file with timm's names that holds exactly this
    /// encoder, positions included. A classifier in it (`fc.*`, `head.*`) is passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-operational" = true))]
    pub init: Option<PathBuf>,
}

/// Width and heads of timm's vision transformers.
pub const VITS: [(&str, usize, usize); 3] = [("vit_tiny", 192, 3), ("vit_small", 384, 6), ("vit_base", 768, 12)];

impl VitConfig {
    /// Checks that the heads divide the width.
    ///
    /// # Errors
    /// When they do not.
    pub fn fit_heads(heads: usize, width: usize) -> Result<(), Broken> {
        if heads > 0 && width.is_multiple_of(heads) {
            return Ok(());
        }
        let nearest = (1..=width).filter(|n| width.is_multiple_of(*n)).min_by_key(|n| n.abs_diff(heads)).unwrap_or(1);
        Err(Broken {
            keys: vec!["encoder.heads", "encoder.arch"],
            what: format!("{heads} heads do not divide a width of {width}"),
            allowed: format!("a divisor of {width}"),
            hint: format!("the nearest number of heads is {nearest}"),
        })
    }

    /// Checks that patches tile the images. The `size` of the images is the value of `key` in the spec.
    ///
    /// # Errors
    /// When they do not.
    pub fn fit_patches(patch: usize, key: &'static str, size: usize) -> Result<(), Broken> {
        if patch > 0 && size > 0 && size.is_multiple_of(patch) {
            return Ok(());
        }
        let nearest = ((size as f64 / patch as f64).round() as usize * patch).max(patch);
        Err(Broken {
            keys: vec![key, "encoder.patch_size"],
            what: format!("patches of {patch} pixels do not tile images of {size}"),
            allowed: format!("{key} a multiple of encoder.patch_size"),
            hint: format!("the nearest `{key}` is {nearest}"),
        })
    }
}

impl Default for VitConfig {
    fn default() -> Self {
        Self { patch_size: sixteen(), heads: None, image_size: None, stop_grad_patch_embed: false, init: None }
    }
}

fn sixteen() -> usize {
    16
}
