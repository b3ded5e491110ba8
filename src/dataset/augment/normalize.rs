//! Planes of bytes to the encoder's input: `(x / 255 - mean) / std`, height x width x channel.

use super::planes::Planes;

/// What each byte of each channel becomes.
#[derive(Clone, Debug)]
pub(super) struct Normalize([[f32; 256]; 3]);

impl Normalize {
    pub fn new(mean: &[f32; 3], std: &[f32; 3]) -> Normalize {
        let value = |channel: usize, byte: usize| (byte as f32 / 255.0 - mean[channel]) / std[channel];
        Normalize(std::array::from_fn(|channel| std::array::from_fn(|byte| value(channel, byte))))
    }

    /// The values of red's 256 bytes, then green's and blue's.
    pub fn values(&self) -> &[f32] {
        self.0.as_flattened()
    }

    /// Fills `out` (`side * side * 3`), mirrored left to right if asked.
    pub fn write(&self, planes: &Planes, mirrored: bool, out: &mut [f32]) {
        let side = planes.side;
        let [r, g, b] = planes.split();
        let [red, green, blue] = &self.0;
        let pixel = |i: usize| [red[r[i] as usize], green[g[i] as usize], blue[b[i] as usize]];
        for (y, row) in out.chunks_exact_mut(3 * side).enumerate() {
            let start = y * side;
            for (x, values) in row.chunks_exact_mut(3).enumerate() {
                let x = if mirrored { side - 1 - x } else { x };
                values.copy_from_slice(&pixel(start + x));
            }
        }
    }
}
