//! Draws training images beside their crops, on a contact sheet.

use image::{
    RgbImage,
    imageops::{self, FilterType},
};

use crate::{
    dataset::{Split, augment::AugmentationsConfig},
    spec::Experiment,
    train::{Crop, Watch, augment},
};

/// Pixels between pictures on a sheet.
const GAP: u32 = 4;
/// The background of a sheet.
const PAPER: image::Rgb<u8> = image::Rgb([255; 3]);

/// An image and its crops: both views, then the local crops.
pub struct Row {
    pub sample: u32,
    pub label: Option<i64>,
    pub image: RgbImage,
    pub crops: Vec<RgbImage>,
}

/// `images` training images (all, if there are fewer) with their crops in `epoch`. The crops have exactly the pixels that
/// training sees.
///
/// # Errors
/// When an image cannot be read.
pub fn rows(train: &Split, experiment: &Experiment, epoch: u64, images: usize) -> anyhow::Result<Vec<Row>> {
    let config = &experiment.augmentations;
    let samples = samples(train.len(), experiment.seed, images);
    let batch = augment(train, &config.of_training(), experiment.seed, epoch, &samples)?;
    let row = |(i, sample): (usize, &u32)| {
        let crops = batch.crops.iter().map(|crop| picture(crop, i, config)).collect();
        let label = train.label(*sample as usize);
        Ok(Row { sample: *sample, label, image: train.image(*sample as usize)?, crops })
    };
    samples.iter().enumerate().map(row).collect()
}

/// The images that training watches, then others, spread over the split.
fn samples(all: usize, seed: u64, images: usize) -> Vec<u32> {
    let mut samples: Vec<u32> = Watch::new(all, seed).samples().iter().map(|sample| *sample as u32).collect();
    samples.truncate(images);
    let step = (all / images.max(1)).max(1);
    let others = (0..step).flat_map(|from| (from..all).step_by(step)).map(|sample| sample as u32);
    let missing = images.saturating_sub(samples.len());
    let more: Vec<u32> = others.filter(|sample| !samples.contains(sample)).take(missing).collect();
    samples.extend(more);
    samples
}

/// Image `i` of a crop, without normalisation.
fn picture(crop: &Crop<f32>, i: usize, config: &AugmentationsConfig) -> RgbImage {
    let (side, length) = (crop.size as u32, crop.size * crop.size * 3);
    let byte = |(at, value): (usize, &f32)| ((value * config.std[at % 3] + config.mean[at % 3]) * 255.0).round() as u8;
    let pixels = crop.images[i * length..(i + 1) * length].iter().enumerate().map(byte).collect();
    RgbImage::from_raw(side, side, pixels).expect("three bytes per pixel")
}

/// A contact sheet with a row per image: the image first, then its crops.
pub fn sheet(rows: &[Row]) -> RgbImage {
    let side = rows.iter().flat_map(|row| &row.crops).map(RgbImage::width).max().unwrap_or(1);
    let columns = 1 + rows.iter().map(|row| row.crops.len()).max().unwrap_or(0) as u32;
    let extent = |cells: u32| cells * (side + GAP) + GAP;
    let mut sheet = RgbImage::from_pixel(extent(columns), extent(rows.len() as u32), PAPER);
    for (row, cells) in rows.iter().enumerate() {
        let whole = fitted(&cells.image, side);
        for (column, picture) in std::iter::once(&whole).chain(&cells.crops).enumerate() {
            // Small crops are centred in their cells.
            let place = |cell: usize, length: u32| (extent(cell as u32) + (side - length) / 2) as i64;
            imageops::replace(&mut sheet, picture, place(column, picture.width()), place(row, picture.height()));
        }
    }
    sheet
}

/// The whole image, scaled to the size of a cell.
fn fitted(image: &RgbImage, side: u32) -> RgbImage {
    let longest = image.width().max(image.height());
    let scaled = |length: u32| ((length as u64 * side as u64 / longest as u64) as u32).max(1);
    match longest == side {
        true => image.clone(),
        false => imageops::resize(image, scaled(image.width()), scaled(image.height()), FilterType::Triangle),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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

    #[test]
    fn a_sheet_has_a_row_of_an_image_and_its_crops_each() {
        let grey = |side, value| RgbImage::from_pixel(side, side, image::Rgb([value; 3]));
        let row = |image, value| Row { sample: 0, label: None, image, crops: vec![grey(8, value), grey(4, value + 1)] };
        let wide = RgbImage::from_pixel(32, 16, image::Rgb([9; 3]));
        let sheet = sheet(&[row(grey(8, 5), 10), row(wide, 20)]);
        assert_eq!(sheet.dimensions(), (40, 28));
        let at = |x, y| sheet.get_pixel(x, y)[0];
        assert_eq!([at(4, 4), at(16, 4), at(28, 4), at(30, 6), at(0, 0)], [5, 10, 255, 11, 255]);
        // The whole of a wide image is drawn in the middle of its cell.
        assert_eq!([at(4, 16), at(4, 18), at(11, 21), at(4, 22), at(16, 16)], [255, 9, 9, 255, 20]);
    }

    #[test]
    fn watched_images_come_first_and_none_twice() {
        let found = samples(100, 1, 30);
        assert_eq!(found[..8], samples(100, 1, 8)[..]);
        assert_eq!(found.iter().collect::<std::collections::BTreeSet<_>>().len(), 30);
        let mut all = samples(5, 1, 30);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
        assert!(samples(5, 1, 0).is_empty());
    }
}
