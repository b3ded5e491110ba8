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

/// The number to add to an 8-bit hue: rounded towards zero, then modulo 256, as NumPy casts it.
pub(super) fn shift(turns: f64) -> u8 {
    (turns * 255.0) as i32 as u8
}

/// Pillow's `rgb2hsv`, which rounds down. Pillow divides the distance of each channel from the largest one by the range of the
/// channels. Only the middle channel needs that division: for the largest and the smallest channel the results are 0 and 1.
///
/// The code has no branches, so that the loop is vectorised. Grey has hue 0; `max` keeps its divisors from being 0.
#[inline(always)]
fn to_hsv(r: u8, g: u8, b: u8) -> (u8, u8, u8) {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let middle = r.max(g).min(r.min(g).max(b));
    let range = (most - least) as f32;
    let saturation = range / most.max(1) as f32;
    let part = (most - middle) as f32 / range.max(1.0);
    // The start of the sixth of the hue circle and its direction follow from the largest and the smallest channel.
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
    // Pillow computes in double precision from here on. With a division, and not a multiplication by 1/6, single precision yields
    // the same bytes.
    let turns = (start + if forwards { part } else { -part }) / 6.0;
    let hue = if turns < 0.0 { turns + 1.0 } else { turns };
    (byte(hue * 255.0), byte(saturation * 255.0), most)
}

/// Pillow's `hsv2rgb`: each channel is the value less a share of the saturation. The share rises and falls around the hue circle.
#[inline(always)]
fn to_rgb(h: u8, s: u8, v: u8) -> (u8, u8, u8) {
    const SIXTH: i32 = 255;
    let sixfold = h as i32 * 6;
    let (saturation, value) = (s as f32 * (1.0 / 255.0), v as f32);
    // The hue's distance behind a sixth of the circle, in sixths.
    let after = |sixth: i32| (sixfold - SIXTH * sixth) as f32 * (1.0 / 255.0);
    let channel = |share: f32| byte(value * (1.0 - saturation * share.clamp(0.0, 1.0)) + 0.5);
    let red = channel(after(1).min(1.0 - after(4)));
    let green = channel(after(3).max(1.0 - after(0)));
    let blue = channel((1.0 - after(2)).max(after(5)));
    (red, green, blue)
}

/// Drops the fraction of a value in 0..256.
#[inline(always)]
fn byte(value: f32) -> u8 {
    debug_assert!((0.0..256.0).contains(&value));
    // SAFETY: `to_int_unchecked` needs a finite value in the range of i32. Callers pass finite values in 0..256, which debug
    // builds assert. A checked cast would keep the loop from being vectorised.
    unsafe { value.to_int_unchecked::<i32>() as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pillow's `rgb2hsv` in its own arithmetic: single precision, but double precision where constants are added.
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
