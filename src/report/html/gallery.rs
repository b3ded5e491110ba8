//! The augmentation gallery: a few training images with all their crops in the first epoch.

use serde_json::{Value, json};

use super::pictures::Sheet;
use crate::{
    dataset::Split,
    report::views::{self, Row},
    spec::Experiment,
};

/// Number of images to show.
const IMAGES: usize = 6;
/// The longest side of a picture in pixels.
const SIDE: u32 = 96;

/// The gallery of `train` with the augmentations and the seed of the run: what training saw, pixel by pixel.
///
/// # Errors
/// When an image cannot be read.
pub fn draw(train: &Split, experiment: &Experiment) -> anyhow::Result<Value> {
    let config = &experiment.augmentations;
    let mut sheet = Sheet::new(config.size, SIDE);
    let mut rows = Vec::new();
    for Row { sample, label, image, crops } in views::rows(train, experiment, 0, IMAGES)? {
        let tiles: Vec<usize> = std::iter::once(&image).chain(&crops).map(|picture| sheet.add(picture)).collect();
        rows.push(json!({ "sample": sample, "label": label, "tiles": tiles }));
    }
    let local = config.local_crops.as_ref();
    Ok(json!({
        "rows": rows,
        "size": config.size,
        "small": local.map(|local| local.size),
        "sheet": sheet.to_json()?,
    }))
}
