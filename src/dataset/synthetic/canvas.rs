//! A square image of RGB values in [0, 1], painted from back to front.

pub(super) type Paint = [f32; 3];

pub(super) struct Canvas {
    pub size: usize,
    pixels: Vec<Paint>,
}

impl Canvas {
    /// Paints all pixels: `paint` returns the colour at a pixel's centre.
    pub fn new(size: usize, mut paint: impl FnMut(f32, f32) -> Paint) -> Canvas {
        let centre = |i: usize| i as f32 + 0.5;
        let pixels = (0..size * size).map(|i| paint(centre(i % size), centre(i / size))).collect();
        Canvas { size, pixels }
    }

    /// Paints over the pixels within `reach` of (`cx`, `cy`). `paint` gets the offset from that point, and returns the opacity (0
    /// to 1) and the colour.
    pub fn cover(&mut self, cx: f32, cy: f32, reach: f32, mut paint: impl FnMut(f32, f32) -> (f32, Paint)) {
        let range = |c: f32| (c - reach).max(0.0) as usize..((c + reach).ceil().max(0.0) as usize).min(self.size);
        for y in range(cy) {
            for x in range(cx) {
                let (share, colour) = paint(x as f32 + 0.5 - cx, y as f32 + 0.5 - cy);
                if share > 0.0 {
                    let pixel = &mut self.pixels[y * self.size + x];
                    *pixel = mix(*pixel, colour, share);
                }
            }
        }
    }

    /// Adds a value of `noise` to each channel of each pixel, and rounds to bytes.
    pub fn into_bytes(self, mut noise: impl FnMut() -> f32) -> Vec<u8> {
        self.pixels
            .into_iter()
            .flatten()
            .map(|value| ((value + noise()) * 255.0).round().clamp(0.0, 255.0) as u8)
            .collect()
    }
}

/// Mixes `share` of `b` into `a`.
pub(super) fn mix(a: Paint, b: Paint, share: f32) -> Paint {
    std::array::from_fn(|c| a[c] + share * (b[c] - a[c]))
}
