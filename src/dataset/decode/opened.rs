//! Opens images so that their size is known before pixels are decoded, and only the needed part is decoded.

use std::{cell::Cell, mem::take};

use image::{DynamicImage, RgbImage, metadata::Orientation};

use super::{Kind, MOST_KEPT, Refusal, decode, jpeg::Jpeg};
use crate::dataset::CropBox;

thread_local! {
    /// The memory of the last dropped [`Part`], kept for the next: images of a batch have similar sizes.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// An image in its upright orientation, of which a part can be decoded.
pub(in crate::dataset) struct Opened<'a>(Inner<'a>);

enum Inner<'a> {
    Jpeg(Jpeg<'a>),
    /// An image of another format, decoded as a whole.
    Whole(RgbImage),
}

impl<'a> Opened<'a> {
    /// Opens an image. Errors: as for [`decode`]; for a JPEG, only errors in its markers.
    pub fn new(bytes: &'a [u8]) -> Result<Opened<'a>, Refusal> {
        if Kind::of(bytes) != Kind::Image(image::ImageFormat::Jpeg) {
            return Ok(Opened(Inner::Whole(decode(bytes)?)));
        }
        Ok(Opened(Inner::Jpeg(super::jpeg(bytes).map_err(refused)?)))
    }

    /// Width and height in the upright orientation.
    pub fn size(&self) -> (u32, u32) {
        match &self.0 {
            Inner::Jpeg(jpeg) => {
                let (width, height) = jpeg.size();
                if turns(jpeg.orientation()) { (height, width) } else { (width, height) }
            }
            Inner::Whole(image) => image.dimensions(),
        }
    }

    /// Decodes at least this part.
    ///
    /// Errors: damage. In a JPEG, damage outside the part may go unnoticed; [`verify`](super::verify) checks all of it.
    pub fn part(self, part: CropBox) -> Result<Part, Refusal> {
        let size = self.size();
        match self.0 {
            Inner::Jpeg(jpeg) => {
                let mut pixels = SPARE.take();
                let stored = stored(part, jpeg.orientation(), jpeg.size());
                jpeg.decode(stored, &mut pixels).map_err(refused)?;
                let pixels = RgbImage::from_raw(stored.width, stored.height, pixels).expect("three values per pixel");
                Ok(Part { pixels: turned(pixels, jpeg.orientation()), at: part, size })
            }
            Inner::Whole(pixels) => Ok(Part { pixels, at: CropBox::whole(size), size }),
        }
    }
}

fn refused(reason: String) -> Refusal {
    Refusal { kind: "JPEG", reason }
}

/// Decoded pixels of a part of an image.
#[derive(Debug)]
pub struct Part {
    pixels: RgbImage,
    /// The box of the image that the pixels cover.
    at: CropBox,
    size: (u32, u32),
}

impl Part {
    /// Width and height of the whole image.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// Interleaved RGB bytes that start at the first pixel of the box `part`, and the number of bytes from row to row.
    ///
    /// # Panics
    /// When the pixels do not cover the box.
    pub fn rows(&self, part: CropBox) -> (&[u8], usize) {
        assert!(self.at.holds(part), "{part:?} is not in {:?}", self.at);
        let stride = 3 * self.at.width as usize;
        let start = stride * (part.top - self.at.top) as usize + 3 * (part.left - self.at.left) as usize;
        (&self.pixels.as_raw()[start..], stride)
    }
}

impl From<RgbImage> for Part {
    fn from(pixels: RgbImage) -> Part {
        let size = pixels.dimensions();
        Part { pixels, at: CropBox::whole(size), size }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let memory = take(&mut self.pixels).into_raw();
        if memory.capacity() <= MOST_KEPT {
            SPARE.set(memory);
        }
    }
}

/// Whether the orientation swaps width and height.
fn turns(orientation: Orientation) -> bool {
    use Orientation::*;
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// Applies the orientation to pixels.
pub(super) fn turned(pixels: RgbImage, orientation: Orientation) -> RgbImage {
    let mut image = DynamicImage::ImageRgb8(pixels);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

/// The box of the stored image that a part of the upright image comes from. `width` and `height` are those of the stored image.
fn stored(part: CropBox, orientation: Orientation, (width, height): (u32, u32)) -> CropBox {
    use Orientation::*;
    let CropBox { left, top, .. } = part;
    // Positions counted from the opposite side of the stored image. `w` and `h` below are the part's size in the stored image.
    let across = |from: u32, length: u32| width - from - length;
    let down = |from: u32, length: u32| height - from - length;
    let (w, h) = if turns(orientation) { (part.height, part.width) } else { (part.width, part.height) };
    let (left, top) = match orientation {
        NoTransforms => (left, top),
        FlipHorizontal => (across(left, w), top),
        Rotate180 => (across(left, w), down(top, h)),
        FlipVertical => (left, down(top, h)),
        Rotate90FlipH => (top, left),
        Rotate90 => (top, down(left, h)),
        Rotate270FlipH => (across(top, w), down(left, h)),
        Rotate270 => (across(top, w), left),
    };
    CropBox { left, top, width: w, height: h }
}

#[cfg(test)]
mod tests {
    use image::imageops;

    use super::{
        super::tests::{jpeg, picture, turned_by},
        *,
    };

    #[test]
    fn parts_are_those_of_the_whole_image_however_it_is_turned() {
        for (_, file, _) in super::super::jpeg::tests::GOLDEN {
            for file in [file.to_vec(), turned_by(6, file)] {
                let whole = decode(&file).unwrap();
                let (width, height) = whole.dimensions();
                for (left, top, right, bottom) in
                    [(0, 0, 1, 1), (5, 3, 6, 20), (9, 16, 2, 0), (0, 0, 0, 0), (1, 1, 1, 1)]
                {
                    let part = CropBox { left, top, width: width - left - right, height: height - top - bottom };
                    check(&file, &whole, part);
                }
            }
        }
        let plain = jpeg(&picture(61, 43));
        for orientation in 1..=8 {
            let file = turned_by(orientation, &plain);
            check(&file, &decode(&file).unwrap(), CropBox { left: 3, top: 7, width: 19, height: 11 });
        }
    }

    fn check(file: &[u8], whole: &RgbImage, part: CropBox) {
        let opened = Opened::new(file).unwrap();
        assert_eq!(opened.size(), whole.dimensions());
        let found = opened.part(part).unwrap();
        let expected = imageops::crop_imm(whole, part.left, part.top, part.width, part.height).to_image();
        assert_eq!((&found.pixels, found.at, found.size()), (&expected, part, whole.dimensions()));
    }

    #[test]
    fn what_lies_behind_a_part_is_not_read() {
        let file = jpeg(&picture(64, 640));
        // The first half of the file, with an end marker behind it.
        let half = [&file[..file.len() / 2], &[0xff, 0xd9]].concat();
        decode(&half).unwrap_err();
        let part = CropBox { left: 8, top: 16, width: 40, height: 60 };
        let opened = |file| Opened::new(file).unwrap().part(part).unwrap();
        assert_eq!(opened(&half).pixels, opened(&file).pixels);
    }

    #[test]
    fn other_formats_are_whole() {
        let image = picture(20, 10);
        let png = super::super::tests::png(&image);
        let opened = Opened::new(&png).unwrap();
        let part = opened.part(CropBox { left: 4, top: 5, width: 2, height: 2 }).unwrap();
        assert_eq!((part.at, part.size()), (CropBox::whole((20, 10)), (20, 10)));
        let (rows, stride) = part.rows(CropBox { left: 4, top: 5, width: 2, height: 2 });
        assert_eq!((&rows[..3], stride), (&image.get_pixel(4, 5).0[..], 60));
    }
}
