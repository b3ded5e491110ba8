//! Converts planes of bytes to the encoder's input: `(x / 255 - mean) / std`, height x width x channel.

use super::planes::Planes;

/// A table of the normalised value of each byte of each channel.
#[derive(Clone, Debug)]
pub(super) struct Normalize([[f32; 256]; 3]);

impl Normalize {
    pub fn new(mean: &[f32; 3], std: &[f32; 3]) -> Normalize {
        let value = |channel: usize, byte: usize| (byte as f32 / 255.0 - mean[channel]) / std[channel];
        Normalize(std::array::from_fn(|channel| std::array::from_fn(|byte| value(channel, byte))))
    }

    /// The values for the 256 bytes of red, then of green, then of blue.
    pub fn values(&self) -> &[f32] {
        self.0.as_flattened()
    }

    /// Fills `out` (`side * side * 3`), mirrored left to right if asked.
    pub fn write(&self, planes: &Planes, mirrored: bool, out: &mut [f32]) {
        let side = planes.width;
        let [r, g, b] = planes.split().map(|plane| plane.chunks_exact(side));
        for (row, ((r, g), b)) in out.chunks_exact_mut(3 * side).zip(r.zip(g).zip(b)) {
            let pixels = r.iter().zip(g).zip(b);
            match mirrored {
                true => self.write_row(pixels.rev(), row),
                false => self.write_row(pixels, row),
            }
        }
    }

    #[inline(always)]
    fn write_row<'a>(&self, pixels: impl Iterator<Item = ((&'a u8, &'a u8), &'a u8)>, row: &mut [f32]) {
        let [red, green, blue] = &self.0;
        for (values, ((&r, &g), &b)) in row.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
            *values = [red[usize::from(r)], green[usize::from(g)], blue[usize::from(b)]];
        }
    }
}
