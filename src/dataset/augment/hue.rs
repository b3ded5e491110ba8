//! Hue rotation through 8-bit HSV, as torchvision does it on Pillow images.

use super::planes::Planes;

/// Shifts the hue by `turns` (-0.5 to 0.5): torchvision's `adjust_hue`.
pub(super) fn hue(planes: &mut Planes, turns: f64) {
    let shift = shift(turns);
    pulp::Arch::new().dispatch(|| {
        let [r, g, b] = planes.split_mut();
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let (h, s, v) = to_hsv(*r, *g, *b);
            (*r, *g, *b) = to_rgb(h.wrapping_add(shift), s, v);
        }
    });
}

/// What is added to an 8-bit hue: towards zero, then modulo 256, as NumPy casts it.
pub(super) fn shift(turns: f64) -> u8 {
    (turns * 255.0) as i32 as u8
}

/// Pillow's `rgb2hsv`. Where it mixes single and double precision, so does this, and it rounds down as there.
///
/// No branches, so that the loop becomes vector code; for grey, whose hue is 0, the divisors are kept from 0.
#[inline(always)]
fn to_hsv(r: u8, g: u8, b: u8) -> (u8, u8, u8) {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let range = (most - least) as f32;
    let saturation = range / most.max(1) as f32;
    let distance = |c: u8| (most - c) as f32 / range.max(1.0);
    let (rc, gc, bc) = (distance(r), distance(g), distance(b));
    let below_green = (2.0 + rc as f64 - bc as f64) as f32;
    let below_blue = (4.0 + gc as f64 - rc as f64) as f32;
    let sector = if g == most { below_green } else { below_blue };
    let sector = if r == most { bc - gc } else { sector };
    // A turn is added first: the first sector begins below zero.
    let turned = sector as f64 / 6.0 + 1.0;
    let hue = (if turned >= 1.0 { turned - 1.0 } else { turned }) as f32;
    (byte(hue as f64 * 255.0), byte(saturation as f64 * 255.0), most)
}

/// Pillow's `hsv2rgb`.
#[inline(always)]
fn to_rgb(h: u8, s: u8, v: u8) -> (u8, u8, u8) {
    let sector = h as u32 * 6 / 255;
    let fraction = (h as f64 * 6.0 / 255.0 - sector as f64) as f32;
    let (saturation, value) = ((s as f64 / 255.0) as f32, v as f64);
    let p = byte(value * (1.0 - saturation as f64) + 0.5);
    let q = byte(value * (1.0 - (saturation * fraction) as f64) + 0.5);
    let t = byte(value * (1.0 - saturation as f64 * (1.0 - fraction as f64)) + 0.5);
    // The last hue, 255, is the first again.
    let by_sector = |values: [u8; 6]| {
        let mut chosen = values[0];
        for (i, &value) in values.iter().enumerate() {
            chosen = if sector == i as u32 { value } else { chosen };
        }
        chosen
    };
    (by_sector([v, q, p, p, t, v]), by_sector([t, v, v, q, p, p]), by_sector([p, p, t, v, v, q]))
}

/// Drops the fraction of a value from 0 to below 256.
#[inline(always)]
fn byte(value: f64) -> u8 {
    debug_assert!((0.0..256.0).contains(&value));
    // SAFETY: the value is finite and fits; a checked cast would keep the loop from becoming vector code.
    unsafe { value.to_int_unchecked::<i32>() as u8 }
}
