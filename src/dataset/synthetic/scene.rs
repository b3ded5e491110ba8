//! Draws one picture: background, clutter, the object that shows the class, and noise over everything.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::f32::consts::{PI, TAU};

use super::{
    canvas::{Canvas, Paint, mix},
    shape::Shape,
    texture::Texture,
};

/// Draws a picture of `size` x `size` pixels: RGB bytes, rows from the top.
pub(super) fn draw((shape, texture): (Shape, Texture), size: usize, random: &mut ChaCha8Rng) -> Vec<u8> {
    let (near, far) = (paint(random), paint(random));
    let mut canvas = background(size, near, far, random);
    for _ in 0..random.random_range(3..8) {
        stroke(&mut canvas, random);
    }
    let behind = mix(near, far, 0.5);
    object(&mut canvas, shape, texture, behind, random);
    if random.random_bool(0.5) {
        stroke(&mut canvas, random);
    }
    let strength = random.random_range(0.02..0.08f32);
    // The sum of two uniform variables: close enough to a normal one, and the same on every machine.
    canvas.into_bytes(|| strength * (random.random_range(-1.0..1.0f32) + random.random_range(-1.0..1.0f32)))
}

/// A gradient between two colours in a random direction.
fn background(size: usize, near: Paint, far: Paint, random: &mut ChaCha8Rng) -> Canvas {
    let (sin, cos) = libm::sincosf(random.random_range(0.0..TAU));
    Canvas::new(size, |x, y| {
        let along = ((x / size as f32 - 0.5) * cos + (y / size as f32 - 0.5) * sin) / 1.42 + 0.5;
        mix(near, far, along)
    })
}

/// A short bar anywhere: clutter that has edges of its own.
fn stroke(canvas: &mut Canvas, random: &mut ChaCha8Rng) {
    let side = canvas.size as f32;
    let (cx, cy) = (random.random_range(0.0..side), random.random_range(0.0..side));
    let (length, width) = (side * random.random_range(0.05..0.2), side * random.random_range(0.015..0.05));
    let (sin, cos) = libm::sincosf(random.random_range(0.0..PI));
    let colour = paint(random);
    canvas.cover(cx, cy, length + width + 1.0, |x, y| {
        let (along, across) = (x * cos + y * sin, y * cos - x * sin);
        let outside = (along.abs() - length).max(across.abs() - width);
        ((0.5 - outside).clamp(0.0, 1.0), colour)
    });
}

/// Draws the object that shows the class. Its place, size, rotation and colours are random.
fn object(canvas: &mut Canvas, shape: Shape, texture: Texture, behind: Paint, random: &mut ChaCha8Rng) {
    let side = canvas.size as f32;
    let radius = side * random.random_range(0.24..0.4);
    let mut place = || random.random_range(0.8 * radius..side - 0.8 * radius);
    let (cx, cy) = (place(), place());
    let (sin, cos) = libm::sincosf(random.random_range(0.0..TAU));
    let (texture_sin, texture_cos) = libm::sincosf(random.random_range(0.0..TAU));
    let period = side * random.random_range(0.12..0.2);
    let (shift_x, shift_y, salt) = (random.random::<f32>(), random.random::<f32>(), random.random::<u32>());
    let first = apart(behind, 0.35, random);
    let second = apart(first, 0.5, random);
    canvas.cover(cx, cy, 1.2 * radius + 1.0, |x, y| {
        let outside = radius * shape.distance((x * cos + y * sin) / radius, (y * cos - x * sin) / radius);
        let (u, v) = ((x * texture_cos + y * texture_sin) / period, (y * texture_cos - x * texture_sin) / period);
        let share = texture.share(u + shift_x, v + shift_y, 1.0 / period, salt);
        ((0.5 - outside).clamp(0.0, 1.0), mix(first, second, share))
    });
}

/// A random colour.
fn paint(random: &mut ChaCha8Rng) -> Paint {
    std::array::from_fn(|_| random.random())
}

/// A random colour whose luminance differs from that of `other` by at least `least`, which is at most 0.5.
fn apart(other: Paint, least: f32, random: &mut ChaCha8Rng) -> Paint {
    // If `other` is medium grey and `least` is 0.5, hardly any colour is far enough away. Without a limit on the draws, one
    // picture in a few tens of thousands would take hours.
    const DRAWS: usize = 1 << 20;
    let luminance = |p: Paint| 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2];
    let far = |candidate: &Paint| (luminance(*candidate) - luminance(other)).abs() >= least;
    let black_or_white = if luminance(other) < 0.5 { [1.0; 3] } else { [0.0; 3] };
    (0..DRAWS).map(|_| paint(random)).find(far).unwrap_or(black_or_white)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_second_colour_is_found_beside_every_first() {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        for grey in [0.0, 0.1, 0.4999, 0.5, 0.5001, 0.9, 1.0] {
            let [red, green, blue] = apart([grey; 3], 0.5, &mut random);
            let luminance = 0.299 * red + 0.587 * green + 0.114 * blue;
            assert!((luminance - grey).abs() > 0.499, "{luminance} beside {grey}");
        }
    }
}
