//! Pillow's `ImageEnhance` and `ImageOps` on planes: brightness, contrast, saturation, grey, solarisation.

use super::planes::Planes;

/// Pillow's luma (ITU-R 601-2) in 16-bit fixed point.
#[inline(always)]
fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((r as u32 * 19595 + g as u32 * 38470 + b as u32 * 7471 + 0x8000) >> 16) as u8
}

/// `Image.blend`: from `a` by `factor` towards `b` or beyond it, cut to bytes, fractions dropped.
#[inline(always)]
fn blend(a: u8, b: u8, factor: f32) -> u8 {
    // The cast saturates and truncates.
    (a as f32 + factor * (b as f32 - a as f32)) as u8
}

/// Replaces each byte by `table`'s.
fn look_up(bytes: &mut [u8], table: &[u8; 256]) {
    for byte in bytes {
        *byte = table[*byte as usize];
    }
}

fn table(value: impl Fn(u8) -> u8) -> [u8; 256] {
    std::array::from_fn(|byte| value(byte as u8))
}

/// `ImageEnhance.Brightness(…).enhance(factor)`.
pub(super) fn brightness(planes: &mut Planes, factor: f32) {
    look_up(&mut planes.bytes, &table(|byte| blend(0, byte, factor)));
}

/// `ImageEnhance.Contrast(…).enhance(factor)`: away from the mean luma, rounded.
pub(super) fn contrast(planes: &mut Planes, factor: f32) {
    let [r, g, b] = planes.split();
    let sum: u64 = r.iter().zip(g).zip(b).map(|((&r, &g), &b)| luma(r, g, b) as u64).sum();
    let mean = (sum as f64 / r.len() as f64 + 0.5) as u8;
    look_up(&mut planes.bytes, &table(|byte| blend(mean, byte, factor)));
}

/// `ImageEnhance.Color(…).enhance(factor)`: away from each pixel's luma.
pub(super) fn saturation(planes: &mut Planes, factor: f32) {
    pulp::Arch::new().dispatch(|| {
        let [r, g, b] = planes.split_mut();
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let grey = luma(*r, *g, *b);
            (*r, *g, *b) = (blend(grey, *r, factor), blend(grey, *g, factor), blend(grey, *b, factor));
        }
    });
}

/// `convert("L")` in all three planes.
pub(super) fn grayscale(planes: &mut Planes) {
    pulp::Arch::new().dispatch(|| {
        let [r, g, b] = planes.split_mut();
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let grey = luma(*r, *g, *b);
            (*r, *g, *b) = (grey, grey, grey);
        }
    });
}

/// `ImageOps.solarize`: bytes from `threshold` on are inverted.
pub(super) fn solarize(planes: &mut Planes, threshold: u8) {
    look_up(&mut planes.bytes, &table(|byte| if byte < threshold { byte } else { 255 - byte }));
}
