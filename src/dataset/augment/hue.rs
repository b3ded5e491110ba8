//! Hue rotation through 8-bit HSV, as torchvision does it on Pillow images.

use super::planes::Planes;

/// Shifts the hue by `turns` (-0.5 to 0.5): torchvision's `adjust_hue`.
pub(super) fn hue(planes: &mut Planes, turns: f64) {
    // Towards zero, then modulo 256, as NumPy casts it.
    let shift = (turns * 255.0) as i32 as u8;
    pulp::Arch::new().dispatch(|| {
        let [r, g, b] = planes.split_mut();
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let (h, s, v) = to_hsv(*r, *g, *b);
            (*r, *g, *b) = to_rgb(h.wrapping_add(shift), s, v);
        }
    });
}

/// Pillow's `rgb2hsv`. Where it mixes single and double precision, so does this, and it rounds down as there.
#[inline(always)]
fn to_hsv(r: u8, g: u8, b: u8) -> (u8, u8, u8) {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return (0, 0, most);
    }
    let range = (most - least) as f32;
    let saturation = range / most as f32;
    let [rc, gc, bc] = [r, g, b].map(|c| (most - c) as f32 / range);
    let sector = if r == most {
        bc - gc
    } else if g == most {
        (2.0 + rc as f64 - bc as f64) as f32
    } else {
        (4.0 + gc as f64 - rc as f64) as f32
    };
    // A turn is added first: the first sector begins below zero.
    let turned = sector as f64 / 6.0 + 1.0;
    let hue = (if turned >= 1.0 { turned - 1.0 } else { turned }) as f32;
    ((hue as f64 * 255.0) as u8, (saturation as f64 * 255.0) as u8, most)
}

/// Pillow's `hsv2rgb`.
#[inline(always)]
fn to_rgb(h: u8, s: u8, v: u8) -> (u8, u8, u8) {
    if s == 0 {
        return (v, v, v);
    }
    let sixths = h as f64 * 6.0 / 255.0;
    let sector = sixths as u8;
    let fraction = (sixths - sector as f64) as f32;
    let (saturation, value) = ((s as f64 / 255.0) as f32, v as f64);
    let round = |x: f64| (x + 0.5) as u8;
    let p = round(value * (1.0 - saturation as f64));
    let q = round(value * (1.0 - (saturation * fraction) as f64));
    let t = round(value * (1.0 - saturation as f64 * (1.0 - fraction as f64)));
    match sector % 6 {
        0 => (v, t, p),
        1 => (q, v, p),
        2 => (p, v, t),
        3 => (p, q, v),
        4 => (t, p, v),
        _ => (v, p, q),
    }
}
