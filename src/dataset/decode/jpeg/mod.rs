//! JPEG: baseline and progressive files to libjpeg's pixels, every damage reported.

mod blocks;
mod header;
mod huffman;
mod idct;
mod planes;
mod scans;
mod standard;

use image::{RgbImage, metadata::Orientation};

use header::Header;

/// Pixels as they are stored, and how they are to be turned. `check` is given width and height, and refuses those of no pixels.
///
/// Errors: a short reason for people: kinds that are not decoded, and damage.
pub fn decode(bytes: &[u8], check: impl Fn(u32, u32) -> Result<(), String>) -> Result<(RgbImage, Orientation), String> {
    let header = Header::of(bytes)?;
    let (width, height) = (header.width as u32, header.height as u32);
    check(width, height)?;
    let orientation = header.exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms);
    let image =
        RgbImage::from_raw(width, height, scans::decode(bytes, &header)?).ok_or("fewer pixels than announced")?;
    Ok((image, orientation))
}

/// Whether the file is whole, without its pixels.
///
/// Errors: as of [`decode`].
pub fn verify(bytes: &[u8], check: impl Fn(u32, u32) -> Result<(), String>) -> Result<(), String> {
    let header = Header::of(bytes)?;
    check(header.width as u32, header.height as u32)?;
    scans::verify(bytes, &header)
}

/// Number of colour components; None of a file whose markers cannot be read.
pub fn channels(bytes: &[u8]) -> Option<usize> {
    Header::of(bytes).ok().map(|header| header.components.len())
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

    #[test]
    fn every_kind_comes_to_pillows_pixels() {
        for (name, jpeg, png) in GOLDEN {
            let expected = image::load_from_memory(png).unwrap().into_rgb8();
            let (found, _) = decode(jpeg, |_, _| Ok(())).unwrap();
            assert_eq!(found.dimensions(), expected.dimensions(), "{name}");
            let differences = found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b));
            assert_eq!(differences.max(), Some(0), "{name}");
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
    fn no_flipped_bit_ends_in_a_panic() {
        for (_, jpeg, _) in GOLDEN {
            for at in 2..jpeg.len() {
                let mut broken = jpeg.to_vec();
                broken[at] ^= 1 << (at % 8);
                let small = |w: u32, h: u32| match w as u64 * h as u64 {
                    1..=0x10_0000 => Ok(()),
                    _ => Err("of no size for a test".to_owned()),
                };
                // Nor do the two disagree about damage.
                let found = decode(&broken, small).map(drop);
                assert_eq!(found, verify(&broken, small));
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
