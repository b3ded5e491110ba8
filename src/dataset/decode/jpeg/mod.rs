//! JPEG: the fast decoder where it is right, the careful one where the fast one is known to err or finds fault.

mod careful;
mod huffman;
mod idct;
mod planes;
mod standard;

use image::{RgbImage, metadata::Orientation};
use zune_jpeg::zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

/// Images of at most this width or height go to the careful decoder: of their samples that are shared by pixels the fast one
/// reads some that are not there.
const SMALL: usize = 16;

/// Pixels as they are stored, and how they are to be turned.
///
/// Errors: a short reason for people: kinds that are not decoded, and damage. [`verify`] finds damage for certain.
pub fn decode(bytes: &[u8], check: impl Fn(u32, u32) -> Result<(), String>) -> Result<(RgbImage, Orientation), String> {
    let header = careful::Header::of(bytes)?;
    let (width, height) = (header.width, header.height);
    check(width as u32, height as u32)?;
    let orientation = header.exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms);
    let usual = header.is_usual() && width > SMALL && height > SMALL;
    let pixels = match usual.then(|| fast(bytes, width, height)).flatten() {
        Some(pixels) => pixels,
        // Whether the file is damaged is for the careful decoder to say: the fast one refuses some whole files.
        None => careful::decode(bytes, &header)?,
    };
    let image = RgbImage::from_raw(width as u32, height as u32, pixels).ok_or("fewer pixels than announced")?;
    Ok((image, orientation))
}

/// Whether the file is whole: the fast decoder takes some damage for grey pixels, without a word.
///
/// Errors: as of [`decode`].
pub fn verify(bytes: &[u8], check: impl Fn(u32, u32) -> Result<(), String>) -> Result<(), String> {
    let header = careful::Header::of(bytes)?;
    check(header.width as u32, header.height as u32)?;
    careful::verify(bytes, &header)
}

/// Number of colour components; None of a file whose markers cannot be read.
pub fn channels(bytes: &[u8]) -> Option<usize> {
    careful::Header::of(bytes).ok().map(|header| header.channels())
}

/// RGB by the fast decoder, which is told to fill nothing in; None where it finds fault.
fn fast(bytes: &[u8], width: usize, height: usize) -> Option<Vec<u8>> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(width)
        .set_max_height(height)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode().ok().filter(|pixels| pixels.len() == 3 * width * height)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of 37 x 29 pixels by libjpeg-turbo's `cjpeg`, and what Pillow 13 reads in them (`Image.convert("RGB")`).
    macro_rules! golden {
        ($($name:literal),*) => {
            [$((
                $name,
                include_bytes!(concat!("../../../../tests/golden/jpeg/", $name, ".jpg")).as_slice(),
                include_bytes!(concat!("../../../../tests/golden/jpeg/", $name, ".png")).as_slice(),
            )),*]
        };
    }

    const GOLDEN: [(&str, &[u8], &[u8]); 13] = golden!(
        "420",
        "422",
        "440",
        "411",
        "444",
        "separate-420",
        "separate-440",
        "progressive-420",
        "progressive-440",
        "restarts",
        "grey",
        "rgb",
        "cmyk"
    );

    fn largest_difference(a: &[u8], b: &[u8]) -> u8 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    #[test]
    fn the_careful_decoder_comes_to_pillows_pixels() {
        for (name, jpeg, png) in GOLDEN {
            let expected = image::load_from_memory(png).unwrap().into_rgb8();
            let found = careful::decode(jpeg, &careful::Header::of(jpeg).unwrap()).unwrap();
            assert_eq!(largest_difference(&found, &expected), 0, "{name}");
        }
    }

    #[test]
    fn every_kind_is_decoded_within_the_rounding_of_decoders() {
        for (name, jpeg, png) in GOLDEN {
            let expected = image::load_from_memory(png).unwrap().into_rgb8();
            let (found, _) = decode(jpeg, |_, _| Ok(())).unwrap();
            let most = largest_difference(&found, &expected);
            assert!(most <= 3, "{name}: {most}");
        }
    }

    #[test]
    fn broken_image_data_are_damage_and_never_grey() {
        for (name, jpeg, _) in GOLDEN {
            // Half of the image data, and an end marker behind it.
            let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
            let half = [&jpeg[..(scan + jpeg.len()) / 2], &[0xff, 0xd9]].concat();
            let found = verify(&half, |_, _| Ok(()));
            verify(jpeg, |_, _| Ok(())).unwrap();
            // Scans of a progressive file may be missing, a part of a scan may not.
            assert!(found.is_err(), "{name}: half of it passed");
        }
    }

    #[test]
    fn nothing_that_is_flipped_ends_in_a_panic() {
        for (_, jpeg, _) in GOLDEN {
            for at in 2..jpeg.len() {
                let mut broken = jpeg.to_vec();
                broken[at] ^= 1 << (at % 8);
                let small = |w: u32, h: u32| {
                    if w as u64 * h as u64 > 1 << 20 { Err("too large for a test".into()) } else { Ok(()) }
                };
                let _ = decode(&broken, small);
                if let Ok(header) = careful::Header::of(&broken)
                    && header.width * header.height <= 1 << 20
                {
                    let _ = careful::decode(&broken, &header);
                }
            }
        }
    }

    #[test]
    fn arithmetic_coding_is_refused_by_name() {
        let refusal =
            decode(include_bytes!("../../../../tests/golden/jpeg/arithmetic.jpg"), |_, _| Ok(())).unwrap_err();
        assert!(refusal.starts_with("arithmetic-coded JPEG, which is not decoded: "), "{refusal}");
    }
}
