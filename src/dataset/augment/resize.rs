//! Bilinear resizing with antialiasing, as Pillow's `Image.resize(…, BILINEAR)` of a crop.

use fast_image_resize::{
    FilterType, ResizeAlg, ResizeOptions, Resizer,
    images::{TypedCroppedImage, TypedImage, TypedImageRef},
    pixels::U8x3,
};
use image::RgbImage;

use super::crop::CropBox;

/// Resizes a part of `image` to `width` x `height` interleaved RGB pixels in `out`. Pixels beyond the box have no share
/// in the result: torchvision crops first.
pub(super) fn crop_resize(
    image: &RgbImage,
    part: CropBox,
    (width, height): (u32, u32),
    resizer: &mut Resizer,
    out: &mut Vec<u8>,
) {
    const FITS: &str = "the box lies within the image and the buffers match";
    out.resize(3 * width as usize * height as usize, 0);
    let source = TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw()).expect(FITS);
    let part = TypedCroppedImage::from_ref(&source, part.left, part.top, part.width, part.height).expect(FITS);
    let mut target = TypedImage::<U8x3>::from_buffer(width, height, out).expect(FITS);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    resizer.resize_typed(&part, &mut target, &options).expect(FITS);
}

/// `width` x `height` interleaved RGB pixels of the whole of `image`, whatever its shape.
pub fn shrink(image: &RgbImage, width: u32, height: u32) -> Vec<u8> {
    let whole = CropBox { left: 0, top: 0, width: image.width(), height: image.height() };
    let mut out = Vec::new();
    crop_resize(image, whole, (width, height), &mut Resizer::new(), &mut out);
    out
}
