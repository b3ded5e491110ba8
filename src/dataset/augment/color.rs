//! Pillow's `ImageEnhance` and `ImageOps` on planes: brightness, contrast, saturation, grey, solarisation.

use super::planes::Planes;
use crate::ops::simd::vectorized;

/// Pillow's luma (ITU-R 601-2) in 16-bit fixed point.
#[inline(always)]
fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((r as u32 * 19595 + g as u32 * 38470 + b as u32 * 7471 + 0x8000) >> 16) as u8
}

/// `Image.blend`: from `a` by `factor` towards `b` or beyond it, cut to bytes, fractions dropped.
#[inline(always)]
fn blend(a: u8, b: u8, factor: f32) -> u8 {
    let value = (a as f32 + factor * (b as f32 - a as f32)).clamp(0.0, 255.0);
    // SAFETY: `to_int_unchecked` needs a finite value in the range of i32. The value is clamped to 0..=255, and it is finite
    // because `factor` is. A checked cast would keep the loops from being vectorised.
    unsafe { value.to_int_unchecked::<i32>() as u8 }
}

/// `ImageEnhance.Brightness(…).enhance(factor)`.
pub(super) fn brightness(planes: &mut Planes, factor: f32) {
    blend_from(&mut planes.bytes, 0, factor);
}

/// Blends every byte with `a`: from `a` towards the byte's own value, or beyond it.
fn blend_from(bytes: &mut [u8], a: u8, factor: f32) {
    vectorized(
        #[inline(always)]
        || {
            for byte in bytes {
                *byte = blend(a, *byte, factor);
            }
        },
    );
}

/// `ImageEnhance.Contrast(…).enhance(factor)`: blends with the rounded mean luma of the image.
pub(super) fn contrast(planes: &mut Planes, factor: f32) {
    let [r, g, b] = planes.split();
    let sum = vectorized(
        #[inline(always)]
        || {
            // 32 bits are enough: a view has at most 1024 x 1024 pixels.
            let mut sum = 0u32;
            for ((&r, &g), &b) in r.iter().zip(g).zip(b) {
                sum += luma(r, g, b) as u32;
            }
            sum
        },
    );
    let mean = (sum as f64 / r.len() as f64 + 0.5) as u8;
    blend_from(&mut planes.bytes, mean, factor);
}

/// `ImageEnhance.Color(…).enhance(factor)`: blends each pixel with its luma.
pub(super) fn saturation(planes: &mut Planes, factor: f32) {
    vectorized(
        #[inline(always)]
        || {
            let [r, g, b] = planes.split_mut();
            for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
                let grey = luma(*r, *g, *b);
                (*r, *g, *b) = (blend(grey, *r, factor), blend(grey, *g, factor), blend(grey, *b, factor));
            }
        },
    );
}

/// `convert("L")`, written to all three planes.
pub(super) fn grayscale(planes: &mut Planes) {
    vectorized(
        #[inline(always)]
        || {
            let [r, g, b] = planes.split_mut();
            for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
                let grey = luma(*r, *g, *b);
                (*r, *g, *b) = (grey, grey, grey);
            }
        },
    );
}

/// `ImageOps.solarize`: bytes at or above `threshold` are inverted.
pub(super) fn solarize(planes: &mut Planes, threshold: u8) {
    vectorized(
        #[inline(always)]
        || {
            for byte in &mut planes.bytes {
                *byte = if *byte < threshold { *byte } else { 255 - *byte };
            }
        },
    );
}
