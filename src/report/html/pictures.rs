//! Packs small pictures into one sheet as a data URI, so that the page contains its images.

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{
    RgbImage,
    codecs::jpeg::JpegEncoder,
    imageops::{self, FilterType},
};
use serde_json::{Value, json};

/// JPEG works in blocks of 8 pixels; tiles of whole blocks do not bleed into each other.
const BLOCK: u32 = 8;
const QUALITY: u8 = 85;

/// A sheet of square tiles, rows from the top.
pub struct Sheet {
    side: u32,
    tiles: Vec<RgbImage>,
}

impl Sheet {
    /// An empty sheet. The side of a tile is `size`, but at most `largest` pixels, rounded down to whole blocks, with two at
    /// least.
    pub fn new(size: u32, largest: u32) -> Self {
        Sheet { side: (size.min(largest) / BLOCK * BLOCK).max(2 * BLOCK), tiles: Vec::new() }
    }

    /// Adds the centre of a picture, and returns the number of its tile.
    pub fn add(&mut self, image: &RgbImage) -> usize {
        let side = image.width().min(image.height());
        let (x, y) = ((image.width() - side) / 2, (image.height() - side) / 2);
        let centre = imageops::crop_imm(image, x, y, side, side).to_image();
        self.tiles.push(match side == self.side {
            true => centre,
            false => imageops::resize(&centre, self.side, self.side, FilterType::Triangle),
        });
        self.tiles.len() - 1
    }

    /// `side` of a tile in pixels, `columns` and `rows` of the sheet, and its `url`.
    ///
    /// # Errors
    /// When the sheet cannot be encoded.
    pub fn to_json(&self) -> anyhow::Result<Value> {
        let columns = (self.tiles.len() as f64).sqrt().ceil().max(1.0) as u32;
        let rows = (self.tiles.len() as u32).div_ceil(columns).max(1);
        let mut sheet = RgbImage::new(columns * self.side, rows * self.side);
        for (i, tile) in self.tiles.iter().enumerate() {
            let (column, row) = (i as u32 % columns, i as u32 / columns);
            imageops::replace(&mut sheet, tile, (column * self.side) as i64, (row * self.side) as i64);
        }
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(&sheet)?;
        let url = format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes));
        Ok(json!({ "side": self.side, "columns": columns, "rows": rows, "url": url }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_lie_row_by_row_and_keep_their_colours() {
        let mut sheet = Sheet::new(20, 48);
        for grey in [0, 100, 200] {
            // Wider than high: the sides are cut off.
            let picture =
                RgbImage::from_fn(40, 16, |x, _| image::Rgb([if (12..28).contains(&x) { grey } else { 255 }; 3]));
            sheet.add(&picture);
        }
        let json = sheet.to_json().unwrap();
        assert_eq!((&json["side"], &json["columns"], &json["rows"]), (&json!(16), &json!(2), &json!(2)));
        let text = json["url"].as_str().unwrap().strip_prefix("data:image/jpeg;base64,").unwrap();
        let image = image::load_from_memory(&STANDARD.decode(text).unwrap()).unwrap().into_rgb8();
        for (place, grey) in [((8, 8), 0i32), ((24, 8), 100), ((8, 24), 200)] {
            assert!((image.get_pixel(place.0, place.1)[0] as i32 - grey).abs() < 3);
        }
    }
}
