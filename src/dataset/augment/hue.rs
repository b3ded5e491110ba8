//! Hue rotation through 8-bit HSV, as torchvision does it on Pillow images.

use super::planes::Planes;
use crate::ops::simd::vectorized;

/// Shifts the hue by `turns` (-0.5 to 0.5): torchvision's `adjust_hue`.
pub(super) fn hue(planes: &mut Planes, turns: f64) {
    let shift = shift(turns);
    vectorized(
        #[inline(always)]
        || {
            let [r, g, b] = planes.split_mut();
            for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
                let (h, s, v) = to_hsv(*r, *g, *b);
                (*r, *g, *b) = to_rgb(h.wrapping_add(shift), s, v);
            }
        },
    );
}

/// What is added to an 8-bit hue: towards zero, then modulo 256, as NumPy casts it.
pub(super) fn shift(turns: f64) -> u8 {
    (turns * 255.0) as i32 as u8
}

/// Pillow's `rgb2hsv`, which rounds down. Of its divisions by the range of the channels one is left: the distances of the largest
/// and the smallest channel to the largest are 0 and 1.
///
/// No branches, so that the loop becomes vector code; for grey, whose hue is 0, the divisors are kept from 0.
#[inline(always)]
fn to_hsv(r: u8, g: u8, b: u8) -> (u8, u8, u8) {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let middle = r.max(g).min(r.min(g).max(b));
    let range = (most - least) as f32;
    let saturation = range / most.max(1) as f32;
    let part = (most - middle) as f32 / range.max(1.0);
    // Where the sixth of the circle begins, and its direction: from the largest channel and the smallest.
    let (red, green) = (r == most, g == most);
    let least_is_blue = b == least;
    let by_red = if least_is_blue { 1.0 } else { -1.0 };
    let by_green = if least_is_blue { 1.0 } else { 3.0 };
    let by_blue = if r == least { 3.0 } else { 5.0 };
    let start = if green { by_green } else { by_blue };
    let start = if red { by_red } else { start };
    let start: f32 = if range == 0.0 { 0.0 } else { start };
    let forwards = if green { least_is_blue } else { r == least };
    let forwards = if red { !least_is_blue } else { forwards };
    // Pillow computes in double precision from here on; divided and not multiplied, single precision comes to the same bytes.
    let turns = (start + if forwards { part } else { -part }) / 6.0;
    let hue = if turns < 0.0 { turns + 1.0 } else { turns };
    (byte(hue * 255.0), byte(saturation * 255.0), most)
}

/// Pillow's `hsv2rgb`: each channel is the value less a share of the saturation, which rises and falls around the circle.
#[inline(always)]
fn to_rgb(h: u8, s: u8, v: u8) -> (u8, u8, u8) {
    const SIXTH: i32 = 255;
    let sixfold = h as i32 * 6;
    let (saturation, value) = (s as f32 * (1.0 / 255.0), v as f32);
    // In sixths of the circle from this one on.
    let after = |sixth: i32| (sixfold - SIXTH * sixth) as f32 * (1.0 / 255.0);
    let channel = |share: f32| byte(value * (1.0 - saturation * share.clamp(0.0, 1.0)) + 0.5);
    let red = channel(after(1).min(1.0 - after(4)));
    let green = channel(after(3).max(1.0 - after(0)));
    let blue = channel((1.0 - after(2)).max(after(5)));
    (red, green, blue)
}

/// Drops the fraction of a value from 0 to below 256.
#[inline(always)]
fn byte(value: f32) -> u8 {
    debug_assert!((0.0..256.0).contains(&value));
    // SAFETY: the value is finite and fits; a checked cast would keep the loop from becoming vector code.
    unsafe { value.to_int_unchecked::<i32>() as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pillow's `rgb2hsv` in its own arithmetic: single precision, where it adds constants double.
    fn pillow_hsv(r: u8, g: u8, b: u8) -> (u8, u8, u8) {
        let (most, least) = (r.max(g).max(b), r.min(g).min(b));
        if most == least {
            return (0, 0, most);
        }
        let range = (most - least) as f32;
        let [rc, gc, bc] = [r, g, b].map(|c| (most - c) as f32 / range);
        let sector = match () {
            () if r == most => bc - gc,
            () if g == most => (2.0 + rc as f64 - bc as f64) as f32,
            () => (4.0 + gc as f64 - rc as f64) as f32,
        };
        let hue = (sector as f64 / 6.0 + 1.0).rem_euclid(1.0) as f32;
        let saturation = range / most as f32;
        ((hue as f64 * 255.0) as u8, (saturation as f64 * 255.0) as u8, most)
    }

    /// Pillow's `hsv2rgb` in its own arithmetic.
    fn pillow_rgb(h: u8, s: u8, v: u8) -> (u8, u8, u8) {
        let turns = h as f64 * 6.0 / 255.0;
        let (fraction, saturation) = ((turns - turns.floor()) as f32, (s as f64 / 255.0) as f32);
        let round = |share: f64| (v as f64 * (1.0 - share) + 0.5) as u8;
        let p = round(saturation as f64);
        let q = round((saturation * fraction) as f64);
        let t = round(saturation as f64 * (1.0 - fraction as f64));
        match turns.floor() as u32 % 6 {
            0 => (v, t, p),
            1 => (q, v, p),
            2 => (p, v, t),
            3 => (p, q, v),
            4 => (t, p, v),
            _ => (v, p, q),
        }
    }

    #[test]
    fn every_colour_comes_out_as_in_pillow() {
        let all = || 0..=255u8;
        for (a, b) in all().flat_map(|a| all().map(move |b| (a, b))) {
            for c in all() {
                assert_eq!(to_hsv(a, b, c), pillow_hsv(a, b, c), "hsv of {a} {b} {c}");
                assert_eq!(to_rgb(a, b, c), pillow_rgb(a, b, c), "rgb of {a} {b} {c}");
            }
        }
    }
}
