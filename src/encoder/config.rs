//! The `encoder:` section of a spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Architecture of the encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Network.
    pub arch: Arch,
    /// Factor on every channel count; 1 is the usual network (64 channels after the stem).
    #[serde(default = "one")]
    #[schemars(range(min = 0.0625, max = 8.0))]
    pub width_multiplier: f32,
    /// First layers.
    #[serde(default)]
    pub stem: Stem,
}

fn one() -> f32 {
    1.0
}

/// Network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    Resnet18,
    Resnet34,
    Resnet50,
}

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
