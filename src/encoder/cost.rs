//! Counts the multiply-adds of a forward pass, in convolutions, linear layers and the products of attention.
//!
//! Norms, activations and pooling do not count, as in the figures of torchvision and timm.

use super::Encoder;
use crate::{backend::cost::Pass, ops::conv2d::Size};

impl Encoder {
    /// Multiply-adds to compute the features of one image of `size` pixels (height and width).
    pub fn multiply_adds(&self, size: usize) -> u64 {
        let operations = self.operations(Size { n: 1, h: size, w: size });
        operations
            .iter()
            .filter(|operation| operation.pass == Pass::Forward)
            .map(|operation| operation.multiply_adds)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn multiply_adds(encoder: Value, size: usize) -> u64 {
        Encoder::new(&serde_json::from_value(encoder).unwrap(), size).unwrap().multiply_adds(size)
    }

    /// The expected values are the `_ops` of torchvision's weights: 10^9 multiply-adds at 224 pixels, with the classifier of 1000
    /// classes.
    #[test]
    fn resnets_cost_what_torchvision_says() {
        for (arch, features, expected) in
            [("resnet18", 512, 1.814), ("resnet34", 512, 3.664), ("resnet50", 2048, 4.089), ("resnet101", 2048, 7.801)]
        {
            let found = multiply_adds(json!({ "arch": arch }), 224) + features * 1000;
            assert_eq!((found as f64 / 1e6).round() / 1e3, expected, "{arch}");
        }
    }

    /// The expected values are timm's `GMACs` of `vit_*_patch16_224`, attention included.
    #[test]
    fn vision_transformers_cost_what_timm_says() {
        for (arch, expected) in [("vit_tiny", 1.3), ("vit_small", 4.6), ("vit_base", 17.6)] {
            let found = multiply_adds(json!({ "arch": arch }), 224) as f64 / 1e9;
            assert!((found - expected).abs() < 0.05, "{arch}: {found}");
        }
    }

    /// Counts by hand for a small network: a 3x3 stem over 32x32, then blocks.
    #[test]
    fn stems_and_strides_count() {
        let cifar = multiply_adds(json!({"arch": "resnet18", "stem": "cifar", "width_multiplier": 0.25}), 32);
        let (stem, full) = (1024 * 16 * 27, 4 * 1024 * 16 * 144);
        // A stage halves the image and doubles the channels, so its first 3x3 convolution costs half as much as each later one.
        let stage = |pixels: usize, channels: usize| {
            let conv = pixels * channels * 9 * channels;
            conv / 2 + 3 * conv + pixels * channels * channels / 2
        };
        let expected = stem + full + stage(256, 32) + stage(64, 64) + stage(16, 128);
        assert_eq!(cifar, expected as u64);
    }
}
