//! Decodes baseline and progressive JPEG to the pixels of libjpeg, and reports all damage.

mod blocks;
mod header;
mod huffman;
mod idct;
mod planes;
mod scans;
mod standard;

use std::cell::RefCell;

use image::metadata::Orientation;

use super::MOST_KEPT;
use crate::dataset::CropBox;
use header::Header;
use scans::Memory;

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Runs `work` with this thread's memory. The memory is kept for the next image unless it exceeds [`MOST_KEPT`].
fn with_memory<R>(work: impl FnOnce(&mut Memory) -> R) -> R {
    MEMORY.with_borrow_mut(|memory| {
        let done = work(memory);
        if memory.bytes() > MOST_KEPT {
            *memory = Memory::default();
        }
        done
    })
}

/// A JPEG file whose markers have been read.
#[derive(Debug)]
pub struct Jpeg<'a> {
    bytes: &'a [u8],
    header: Header<'a>,
}

impl<'a> Jpeg<'a> {
    /// Reads the markers. Errors: a short reason for people, for kinds that are not decoded and for damage.
    pub fn open(bytes: &'a [u8]) -> Result<Jpeg<'a>, String> {
        Ok(Jpeg { bytes, header: Header::of(bytes)? })
    }

    /// Width and height of the stored image, before orientation.
    pub fn size(&self) -> (u32, u32) {
        (self.header.width as u32, self.header.height as u32)
    }

    /// The orientation to apply to the stored image.
    pub fn orientation(&self) -> Orientation {
        self.header.exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
    }

    /// Number of colour components.
    pub fn channels(&self) -> usize {
        self.header.components.len()
    }

    /// Decodes a part of the stored image to RGB in `out`. Damage behind the part may go unnoticed.
    ///
    /// Errors: a short reason for people.
    pub fn decode(&self, part: CropBox, out: &mut Vec<u8>) -> Result<(), String> {
        with_memory(|memory| scans::decode(self.bytes, &self.header, part, memory, out))
    }

    /// Checks the whole file for damage without computing its pixels.
    ///
    /// Errors: a short reason for people.
    pub fn verify(&self) -> Result<(), String> {
        with_memory(|memory| scans::verify(self.bytes, &self.header, memory))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Files of 37 x 29 pixels by libjpeg-turbo's `cjpeg`, and the pixels that Pillow 13 decodes (`Image.convert("RGB")`).
    macro_rules! golden {
        ($($name:literal),*) => {
            [$((
                $name,
                include_bytes!(concat!("../../../../tests/golden/jpeg/", $name, ".jpg")).as_slice(),
                include_bytes!(concat!("../../../../tests/golden/jpeg/", $name, ".png")).as_slice(),
            )),*]
        };
    }

    pub const GOLDEN: [(&str, &[u8], &[u8]); 13] = golden!(
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
            let jpeg = Jpeg::open(jpeg).unwrap();
            assert_eq!(jpeg.size(), expected.dimensions(), "{name}");
            let mut found = vec![];
            jpeg.decode(CropBox::whole(jpeg.size()), &mut found).unwrap();
            assert_eq!(found.len(), expected.len());
            let differences = found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b));
            assert_eq!(differences.max(), Some(0), "{name}");
        }
    }

    fn verify(bytes: &[u8]) -> Result<(), String> {
        Jpeg::open(bytes)?.verify()
    }

    #[test]
    fn broken_image_data_are_damage_and_never_grey() {
        for (name, jpeg, _) in GOLDEN {
            // Half of the image data, and an end marker behind it.
            let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
            let half = [&jpeg[..(scan + jpeg.len()) / 2], &[0xff, 0xd9]].concat();
            let found = verify(&half);
            verify(jpeg).unwrap();
            // A progressive file may lack whole scans, but not a part of a scan.
            assert!(found.is_err(), "{name}: half of it passed");
        }
    }

    #[test]
    fn no_flipped_bit_ends_in_a_panic() {
        for (_, jpeg, _) in GOLDEN {
            for at in 2..jpeg.len() {
                let mut broken = jpeg.to_vec();
                broken[at] ^= 1 << (at % 8);
                let Ok(jpeg) = Jpeg::open(&broken) else { continue };
                let (width, height) = jpeg.size();
                if (1..=0x10_0000).contains(&(u64::from(width) * u64::from(height))) {
                    // `decode` and `verify` must also agree about the damage.
                    let found = jpeg.decode(CropBox::whole((width, height)), &mut vec![]);
                    assert_eq!(found, jpeg.verify());
                }
            }
        }
    }

    #[test]
    fn arithmetic_coding_is_refused_by_name() {
        let refusal = Jpeg::open(include_bytes!("../../../../tests/golden/jpeg/arithmetic.jpg")).unwrap_err();
        assert!(refusal.starts_with("arithmetic-coded JPEG, which is not decoded: "), "{refusal}");
    }
}
