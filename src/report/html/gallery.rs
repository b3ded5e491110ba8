//! The augmentation gallery: a few training images with every crop that the first epoch trained on.

use image::RgbImage;
use serde_json::{Value, json};

use super::pictures::Sheet;
use crate::{
    dataset::{Split, augment::AugmentationsConfig},
    spec::Experiment,
    train::{Crop, Watch, augment},
};

/// Images that are shown.
const IMAGES: usize = 6;
/// Longest side of a picture.
const SIDE: u32 = 96;

/// The gallery of `train` with the augmentations and the seed of the run: what training saw, pixel by pixel.
///
/// # Errors
/// When an image cannot be read.
pub fn draw(train: &Split, experiment: &Experiment) -> anyhow::Result<Value> {
    let config = &experiment.augmentations;
    let samples: Vec<u32> =
        Watch::new(train.len(), experiment.seed).samples().iter().take(IMAGES).map(|sample| *sample as u32).collect();
    let batch = augment(train, &config.of_training(), experiment.seed, 0, &samples)?;
    let mut sheet = Sheet::new(config.size, SIDE);
    let mut rows = Vec::with_capacity(samples.len());
    for (i, sample) in samples.iter().enumerate() {
        let mut tiles = vec![sheet.add(&train.image(*sample as usize)?)];
        tiles.extend(batch.crops.iter().map(|crop| sheet.add(&picture(crop, i, config))));
        rows.push(json!({ "sample": sample, "label": train.label(*sample as usize), "tiles": tiles }));
    }
    let local = config.local_crops.as_ref();
    Ok(json!({
        "rows": rows,
        "size": config.size,
        "small": local.map(|local| local.size),
        "sheet": sheet.to_json()?,
    }))
}

/// Image `i` of a crop with the normalisation taken back.
fn picture(crop: &Crop<f32>, i: usize, config: &AugmentationsConfig) -> RgbImage {
    let (side, length) = (crop.size as u32, crop.size * crop.size * 3);
    let byte = |(at, value): (usize, &f32)| ((value * config.std[at % 3] + config.mean[at % 3]) * 255.0).round() as u8;
    let pixels = crop.images[i * length..(i + 1) * length].iter().enumerate().map(byte).collect();
    RgbImage::from_raw(side, side, pixels).expect("three bytes per pixel")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalisation_is_taken_back_to_the_byte() {
        let config = json!({
            "size": 8, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
            "view1": { "random_resized_crop": {} }, "view2": { "random_resized_crop": {} }
        });
        let config: AugmentationsConfig = serde_json::from_value(config).unwrap();
        let normal = |byte: u8, channel: usize| (byte as f32 / 255.0 - config.mean[channel]) / config.std[channel];
        let bytes: Vec<u8> = (0..2 * 4 * 4 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let images = bytes.iter().enumerate().map(|(at, byte)| normal(*byte, at % 3)).collect();
        let crop = Crop { images, size: 4 };
        assert_eq!(picture(&crop, 1, &config).into_raw(), bytes[48..]);
    }
}
