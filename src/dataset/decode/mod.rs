//! Decodes image files to RGB pixels and encodes pixels as PNG. Images are decoded only here.

mod cmyk;
mod gif;
mod jpeg;
mod kind;
mod opened;
mod tiff;

use std::{fmt, io::Cursor};

use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader, Limits, RgbImage,
    codecs::png::{CompressionType, FilterType, PngEncoder},
    metadata::Orientation,
};

use jpeg::Jpeg;
pub(super) use kind::{DECODED, HEAD, Kind};
pub(super) use opened::Opened;
pub use opened::Part;

use super::CropBox;

/// Images with more pixels are refused, as Pillow refuses them: a header of a few bytes can announce gigabytes.
const MOST_PIXELS: u64 = 178_956_970;
/// The most memory in bytes that a decoder of the `image` crate may allocate beside the pixels.
const MOST_BYTES: u64 = 2 << 30;

/// The most bytes of working memory that a thread keeps from one image to the next.
const MOST_KEPT: usize = 64 << 20;

/// Why an image is not decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Kind of the file in a word or two, for counting: `HEIC`, `JPEG`.
    pub kind: &'static str,
    /// A short reason for people.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Decodes an image to 8-bit RGB in its upright orientation. Its content decides which format of [`DECODED`] it has.
///
/// Of several frames, the first is decoded. The orientation of EXIF or TIFF is applied. Grey is repeated in all channels, CMYK is
/// converted. Alpha is dropped and the colour below it kept, as in Pillow's `convert("RGB")` and so in torchvision. Of values
/// with more than 8 bits the upper 8 are kept, as in Pillow. Floats are clamped to 0..1 and scaled.
///
/// Errors: a file of none of the formats, a damaged file, or one of more than [`MOST_PIXELS`] pixels, for which no memory is
/// allocated.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage, Refusal> {
    let format = match Kind::of(bytes) {
        Kind::Image(format) => format,
        Kind::Foreign { name, advice } => {
            return Err(Refusal { kind: name, reason: format!("{name}, which is not decoded: {advice}") });
        }
        Kind::Other(found) => {
            let reason = match found {
                "empty" => "the file is empty".to_owned(),
                found => format!("it is {found}, and not {DECODED}"),
            };
            return Err(Refusal { kind: "no image", reason });
        }
    };
    let refused = |reason: String| Refusal { kind: name(format), reason };
    decode_as(format, bytes).map_err(refused)
}

/// How an image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stored {
    /// Usual name of the format: `JPEG`.
    pub format: &'static str,
    /// `grey`, `grey with alpha`, `RGB`, `RGB with alpha` or `CMYK`.
    pub channels: &'static str,
    /// Bits of a value, 8 at least.
    pub bits: u16,
}

impl Stored {
    /// How a decodable image is stored. A palette image counts as its colours. None if the header does not say.
    pub fn of(bytes: &[u8]) -> Option<Stored> {
        let Kind::Image(format) = Kind::of(bytes) else { return None };
        if format == ImageFormat::Jpeg {
            let channels = match Jpeg::open(bytes).ok()?.channels() {
                1 => "grey",
                4 => "CMYK",
                _ => "RGB",
            };
            return Some(Stored { format: name(format), channels, bits: 8 });
        }
        let decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().ok()?;
        let color = decoder.original_color_type();
        let count = color.channel_count();
        let channels = match color {
            ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16 => "CMYK",
            _ => ["grey", "grey with alpha", "RGB", "RGB with alpha"].get(count as usize - 1).copied()?,
        };
        Some(Stored { format: name(format), channels, bits: (color.bits_per_pixel() / count as u16).max(8) })
    }
}

/// Checks that an image is undamaged and can be decoded by [`decode`]. Every image of a source passes this check once.
///
/// Errors: as for [`decode`].
pub(super) fn verify(bytes: &[u8]) -> Result<(), Refusal> {
    match Kind::of(bytes) {
        Kind::Image(ImageFormat::Jpeg) => {
            let verified = jpeg(bytes).and_then(|jpeg| jpeg.verify());
            verified.map_err(|reason| Refusal { kind: "JPEG", reason })
        }
        _ => decode(bytes).map(drop),
    }
}

fn decode_as(format: ImageFormat, bytes: &[u8]) -> Result<RgbImage, String> {
    let (image, orientation) = match format {
        ImageFormat::Jpeg => {
            let jpeg = jpeg(bytes)?;
            let ((width, height), mut pixels) = (jpeg.size(), Vec::new());
            jpeg.decode(CropBox::whole((width, height)), &mut pixels)?;
            (RgbImage::from_raw(width, height, pixels).ok_or("fewer pixels than announced")?, jpeg.orientation())
        }
        ImageFormat::Tiff => tiff::decode(bytes, check_size)?,
        ImageFormat::Gif => (gif::decode(bytes, check_size)?, Orientation::NoTransforms),
        format => decode_other(format, bytes)?,
    };
    Ok(opened::turned(image, orientation))
}

/// Opens a JPEG: reads its markers, and checks that it has no more pixels than are decoded.
fn jpeg(bytes: &[u8]) -> Result<Jpeg<'_>, String> {
    let jpeg = Jpeg::open(bytes)?;
    let (width, height) = jpeg.size();
    check_size(width, height).map(|()| jpeg)
}

/// Refuses images without pixels, and images with more than [`MOST_PIXELS`].
fn check_size(width: u32, height: u32) -> Result<(), String> {
    match width as u64 * height as u64 {
        0 => Err(format!("{width} x {height} pixels: nothing to see")),
        1..=MOST_PIXELS => Ok(()),
        _ => Err(format!("{width} x {height} pixels; {MOST_PIXELS} at most are decoded: make it smaller")),
    }
}

/// Decodes one of the other formats: the stored pixels, and the orientation to apply.
fn decode_other(format: ImageFormat, bytes: &[u8]) -> Result<(RgbImage, Orientation), String> {
    let said = |error: image::ImageError| format!("{}: {error}", name(format));
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(said)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    // Broken metadata are no reason to lose the pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((rgb8(DynamicImage::from_decoder(decoder).map_err(said)?), orientation))
}

/// Converts pixels of any type to 8-bit RGB by the rules of [`decode`].
fn rgb8(image: DynamicImage) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let from = |pixels: Vec<u8>| RgbImage::from_raw(width, height, pixels).expect("three values per pixel");
    match image {
        DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA16(_)
        | DynamicImage::ImageRgb16(_)
        | DynamicImage::ImageRgba16(_) => from(image.into_rgb16().iter().map(|&v| (v >> 8) as u8).collect()),
        DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) => {
            from(image.into_rgb32f().iter().map(|&v| (v.clamp(0.0, 1.0) * 255.0 + 0.5) as u8).collect())
        }
        image => image.into_rgb8(),
    }
}

/// The usual name of a format that is decoded.
fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Pnm => "PNM",
        _ => "TIFF",
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

    /// A picture whose pixels all differ, up to 256 x 256 pixels.
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
    fn headers_say_how_images_are_stored() {
        let stored = |bytes: &[u8]| Stored::of(bytes).map(|s| (s.format, s.channels, s.bits));
        assert_eq!(stored(&jpeg(&picture(9, 8))), Some(("JPEG", "RGB", 8)));
        assert_eq!(stored(&png(&picture(9, 8))), Some(("PNG", "RGB", 8)));
        let cmyk = include_bytes!("../../../tests/golden/augment/cmyk.jpg");
        assert_eq!(stored(cmyk), Some(("JPEG", "CMYK", 8)));
        for (color, channels, bits) in [
            (ExtendedColorType::L8, "grey", 8),
            (ExtendedColorType::La16, "grey with alpha", 16),
            (ExtendedColorType::Rgba8, "RGB with alpha", 8),
        ] {
            let pixel = vec![7; color.bits_per_pixel() as usize / 8];
            assert_eq!(stored(&encode_png(&pixel, 1, 1, color).unwrap()), Some(("PNG", channels, bits)));
        }
        assert_eq!(stored(b"no image"), None);
    }

    #[test]
    fn other_pixel_formats_become_rgb() {
        let rgba = encode_png(&[10, 20, 30, 0], 1, 1, ExtendedColorType::Rgba8).unwrap();
        assert_eq!(decode(&rgba).unwrap().into_raw(), [10, 20, 30]);
        // A CMYK JPEG of one colour (with Adobe marker, as in ImageNet). Pillow's `convert("RGB")` yields 150, 75, 38.
        let cmyk = include_bytes!("../../../tests/golden/augment/cmyk.jpg");
        for pixel in decode(cmyk).unwrap().pixels() {
            for (found, expected) in pixel.0.iter().zip([150i32, 75, 38]) {
                assert!((*found as i32 - expected).abs() <= 2, "{pixel:?}");
            }
        }
    }

    /// The picture in another format.
    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn every_format_gives_its_pixels() {
        let image = picture(33, 17);
        let formats = [ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Pnm, ImageFormat::Tiff, ImageFormat::Png];
        for format in formats {
            let bytes = encoded(&DynamicImage::ImageRgb8(image.clone()), format);
            assert_eq!(decode(&bytes).unwrap(), image, "{format:?}");
            assert!(decode(&bytes[..bytes.len() / 2]).is_err(), "half a {format:?} passed");
        }
        // The picture has few enough colours for a GIF to keep them. The first frame is the one that is decoded.
        let first = RgbImage::from_fn(8, 6, |x, _| image::Rgb([if x < 3 { 250 } else { 10 }, 0, 90]));
        let mut bytes = Vec::new();
        let mut frames = image::codecs::gif::GifEncoder::new(&mut bytes);
        for image in [first.clone(), RgbImage::new(8, 6)] {
            frames.encode_frame(image::Frame::new(DynamicImage::ImageRgb8(image).into_rgba8())).unwrap();
        }
        drop(frames);
        assert_eq!(decode(&bytes).unwrap(), first);
    }

    #[test]
    fn deep_pixels_keep_their_upper_bits() {
        let deep = image::ImageBuffer::from_fn(3, 1, |x, _| image::Luma([[0x00ff_u16, 0x80ff, 0xffff][x as usize]]));
        for format in [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Pnm] {
            let bytes = encoded(&DynamicImage::ImageLuma16(deep.clone()), format);
            assert_eq!(decode(&bytes).unwrap().into_raw(), [0, 0, 0, 128, 128, 128, 255, 255, 255], "{format:?}");
        }
        let float = image::Rgb32FImage::from_raw(1, 1, vec![-1.0, 0.5, 7.0]).unwrap();
        let bytes = encoded(&DynamicImage::ImageRgb32F(float), ImageFormat::Tiff);
        assert_eq!(decode(&bytes).unwrap().into_raw(), [0, 128, 255]);
    }

    /// An EXIF block that contains only an orientation.
    fn exif(orientation: u8) -> Vec<u8> {
        [b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[orientation], &[0; 6]].concat()
    }

    /// A JPEG with an orientation.
    pub fn turned_by(orientation: u8, jpeg: &[u8]) -> Vec<u8> {
        let block = [b"Exif\0\0".as_slice(), &exif(orientation)].concat();
        let length = (block.len() as u16 + 2).to_be_bytes();
        [&jpeg[..2], &[0xff, 0xe1], &length, &block, &jpeg[2..]].concat()
    }

    #[test]
    fn the_orientation_is_applied() {
        // Stores the upright picture in the way that each orientation describes.
        let upright = picture(24, 16);
        let (w, h) = (24, 16);
        for orientation in 1..=8u8 {
            let stored = match orientation < 5 {
                true => RgbImage::new(w, h),
                false => RgbImage::new(h, w),
            };
            let stored = RgbImage::from_fn(stored.width(), stored.height(), |x, y| {
                let (x, y) = match orientation {
                    2 => (w - 1 - x, y),
                    3 => (w - 1 - x, h - 1 - y),
                    4 => (x, h - 1 - y),
                    5 => (y, x),
                    6 => (w - 1 - y, x),
                    7 => (w - 1 - y, h - 1 - x),
                    8 => (y, h - 1 - x),
                    _ => (x, y),
                };
                *upright.get_pixel(x, y)
            });
            let mut png = Vec::new();
            let mut encoder = PngEncoder::new(&mut png);
            encoder.set_exif_metadata(exif(orientation)).unwrap();
            encoder.write_image(&stored, stored.width(), stored.height(), ExtendedColorType::Rgb8).unwrap();
            assert_eq!(decode(&png).unwrap(), upright, "PNG, orientation {orientation}");

            let plain = jpeg(&stored);
            let turned = turned_by(orientation, &plain);
            let (expected, found) = (decode(&plain).unwrap(), decode(&turned).unwrap());
            assert_eq!(found.dimensions(), (w, h), "JPEG, orientation {orientation}");
            let off =
                |a: &RgbImage, b: &RgbImage| a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b) as u64).sum::<u64>();
            // The JPEG must be turned exactly as a PNG with the same stored pixels.
            let mut png = Vec::new();
            let mut encoder = PngEncoder::new(&mut png);
            encoder.set_exif_metadata(exif(orientation)).unwrap();
            encoder.write_image(&expected, stored.width(), stored.height(), ExtendedColorType::Rgb8).unwrap();
            assert_eq!(off(&found, &decode(&png).unwrap()), 0, "JPEG, orientation {orientation}");
        }
    }

    #[test]
    fn what_is_not_decoded_is_named() {
        let heic = decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").unwrap_err();
        assert_eq!(heic.kind, "HEIC");
        assert!(heic.reason.starts_with("HEIC, which is not decoded: convert it to JPEG or PNG"), "{heic}");
        let plain = jpeg(&picture(9, 8));
        let frame = plain.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        for (at, value, name) in [(1, 0xc9, "arithmetic-coded"), (1, 0xc3, "lossless"), (4, 12, "12-bit")] {
            let mut other = plain.clone();
            other[frame + at] = value;
            let refusal = decode(&other).unwrap_err();
            assert!(refusal.reason.starts_with(&format!("{name} JPEG, which is not decoded: ")), "{refusal}");
        }
    }

    /// Small files that announce the largest image of their format, or 65535 x 65535 pixels.
    fn announced() -> Vec<(ImageFormat, Vec<u8>)> {
        let small = DynamicImage::ImageRgb8(picture(9, 8));
        let of = |format| encoded(&small, format);
        let mut png = of(ImageFormat::Png);
        png[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        let mut crc = flate2::Crc::new();
        crc.update(&png[12..29]);
        png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        let mut bmp = of(ImageFormat::Bmp);
        bmp[18..26].copy_from_slice(&[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]);
        let mut gif = of(ImageFormat::Gif);
        gif[6..10].fill(0xff);
        // In lossless WebP, a signature byte is followed by width - 1 and height - 1 of 14 bits each.
        let mut webp = of(ImageFormat::WebP);
        assert_eq!((&webp[12..16], webp[20]), (b"VP8L".as_slice(), 0x2f));
        webp[21..25].copy_from_slice(&(16_000_u32 | 16_000 << 14).to_le_bytes());
        let mut tiff = of(ImageFormat::Tiff);
        let directory = u32::from_le_bytes([tiff[4], tiff[5], tiff[6], tiff[7]]) as usize;
        for entry in 0..usize::from(tiff[directory]) {
            let at = directory + 2 + 12 * entry;
            // ImageWidth, ImageLength and RowsPerStrip: the image still has a single strip.
            if matches!(u16::from_le_bytes([tiff[at], tiff[at + 1]]), 256 | 257 | 278) {
                tiff[at + 8..at + 10].fill(0xff);
            }
        }
        vec![
            (ImageFormat::Png, png),
            (ImageFormat::Bmp, bmp),
            (ImageFormat::Gif, gif),
            (ImageFormat::WebP, webp),
            (ImageFormat::Tiff, tiff),
        ]
    }

    #[test]
    fn announced_sizes_take_no_memory() {
        let mut huge = jpeg(&picture(9, 8));
        let frame = huge.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        huge[frame + 5..frame + 9].fill(0xff);
        let refusal = decode(&huge).unwrap_err();
        assert_eq!(refusal.reason, "65535 x 65535 pixels; 178956970 at most are decoded: make it smaller");
        for (format, bytes) in announced() {
            let refusal = decode(&bytes).unwrap_err();
            assert!(refusal.reason.contains(" pixels; 178956970 at most are decoded"), "{format:?}: {refusal}");
        }
        let pnm = decode(b"P6\n60000 60000\n255\n").unwrap_err();
        assert!(pnm.reason.starts_with("60000 x 60000 pixels; "), "{pnm}");
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
        assert!(decode(&whole[..whole.len() - 2]).unwrap_err().reason.starts_with("truncated JPEG"));
        let text = decode(b"a text").unwrap_err();
        assert_eq!(text.reason, "it is of an unknown format, and not JPEG, PNG, WebP, BMP, GIF, PNM or TIFF");
        assert_eq!(decode(b"").unwrap_err().reason, "the file is empty");
        let mut flipped = png(&image);
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        assert!(decode(&flipped).is_err(), "a damaged PNG passed");
    }
}
