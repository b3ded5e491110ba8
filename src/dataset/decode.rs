//! Encoded bytes to RGB pixels and back.

use std::io::Cursor;

use image::{
    ExtendedColorType, ImageEncoder, ImageFormat, ImageReader, RgbImage,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};

/// Decodes a JPEG or PNG file to 8-bit RGB: grey is repeated, alpha dropped, CMYK converted, 16 bits cut to 8.
///
/// Errors: a short reason for people. An image whose dimensions would exhaust memory is refused.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    match reader.format() {
        None => return Err("neither JPEG nor PNG".into()),
        Some(ImageFormat::Jpeg) => check_jpeg_end(bytes)?,
        Some(_) => {}
    }
    reader.decode().map(|image| image.into_rgb8()).map_err(|e| e.to_string())
}

/// The decoder fills what is missing at the end of a JPEG with grey, without a word; so the end marker is looked for
/// here. Markers inside segments (thumbnails have their own end) and stuffed bytes of the scans do not count.
fn check_jpeg_end(bytes: &[u8]) -> Result<(), String> {
    const TRUNCATED: &str = "truncated JPEG (no end-of-image marker)";
    let mut at = 2;
    loop {
        // To the next marker: 0xFF followed by neither a stuffed zero, a fill byte nor a restart marker.
        let marker = loop {
            let step = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)).ok_or(TRUNCATED)?;
            at += step + 1;
            match bytes.get(at).ok_or(TRUNCATED)? {
                0x00 | 0xd0..=0xd7 => at += 1,
                0xff => {}
                &marker => break marker,
            }
        };
        if marker == 0xd9 {
            return Ok(());
        }
        let length = bytes.get(at + 1..at + 3).ok_or(TRUNCATED)?;
        at += 1 + u16::from_be_bytes([length[0], length[1]]) as usize;
    }
}

/// Encodes pixels as PNG: rows of `color.channels()` bytes per pixel.
pub(super) fn encode_png(pixels: &[u8], width: u32, height: u32, color: ExtendedColorType) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(pixels.len() + 128);
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
        .write_image(pixels, width, height, color)
        .map_err(|e| e.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;

    /// A small picture that is the same nowhere.
    pub fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]))
    }

    pub fn png(image: &RgbImage) -> Vec<u8> {
        encode_png(image, image.width(), image.height(), ExtendedColorType::Rgb8).unwrap()
    }

    pub fn jpeg(image: &RgbImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(image).unwrap();
        bytes
    }

    #[test]
    fn png_keeps_every_pixel() {
        let image = picture(33, 17);
        assert_eq!(decode(&png(&image)).unwrap(), image);
        let grey = encode_png(&[0, 50, 100, 255], 2, 2, ExtendedColorType::L8).unwrap();
        assert_eq!(decode(&grey).unwrap().into_raw(), [0, 0, 0, 50, 50, 50, 100, 100, 100, 255, 255, 255]);
    }

    #[test]
    fn other_pixel_formats_become_rgb() {
        let rgba = encode_png(&[10, 20, 30, 0], 1, 1, ExtendedColorType::Rgba8).unwrap();
        assert_eq!(decode(&rgba).unwrap().into_raw(), [10, 20, 30]);
        // A CMYK JPEG (Adobe marker, as in ImageNet), uniform in colour; Pillow's `convert("RGB")` gives 150, 75, 38.
        let cmyk = include_bytes!("../../tests/golden/augment/cmyk.jpg");
        for pixel in decode(cmyk).unwrap().pixels() {
            for (found, expected) in pixel.0.iter().zip([150i32, 75, 38]) {
                assert!((*found as i32 - expected).abs() <= 2, "{pixel:?}");
            }
        }
    }

    #[test]
    fn damage_is_named() {
        let image = picture(40, 40);
        for (whole, kind) in [(jpeg(&image), "JPEG"), (png(&image), "PNG")] {
            decode(&whole).unwrap();
            for share in [3, 10, 50, 90, 99] {
                let part = &whole[..whole.len() * share / 100];
                assert!(decode(part).is_err(), "{share} % of a {kind} passed");
            }
        }
        let whole = jpeg(&image);
        assert!(decode(&whole[..whole.len() - 2]).unwrap_err().starts_with("truncated JPEG"));
        assert_eq!(decode(b"GIF is not among them").unwrap_err(), "neither JPEG nor PNG");
        assert_eq!(decode(b"").unwrap_err(), "the file is empty");
        let mut flipped = png(&image);
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        assert!(decode(&flipped).is_err(), "a damaged PNG passed");
    }
}
