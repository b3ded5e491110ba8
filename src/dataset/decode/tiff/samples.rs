//! Unpacks rows of bytes to samples, and converts samples to 8 bits.

use half::f16;

use super::directory::number;

/// The number format of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Unsigned,
    Signed,
    Float,
}

/// How samples are packed in a row.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    pub format: Format,
    /// Bits per sample, 1 to 64.
    pub bits: u32,
    /// Samples from a pixel to the next.
    pub samples: usize,
    pub little: bool,
    /// The prediction that was subtracted from a row: none, the pixel before, or the pixel before in the reordered bytes of
    /// floats.
    pub predictor: Predictor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predictor {
    None,
    Horizontal,
    Float,
}

impl Packing {
    /// Unpacks the `count` samples of a row into `values`, as raw bits.
    pub fn unpack(&self, row: &mut [u8], count: usize, values: &mut Vec<u64>) {
        values.clear();
        let bytes = (self.bits / 8) as usize;
        if self.predictor == Predictor::Float {
            for i in self.samples..row.len() {
                row[i] = row[i].wrapping_add(row[i - self.samples]);
            }
            // The highest bytes of all samples come first.
            let value = |i: usize| (0..bytes).fold(0, |sum, byte| sum << 8 | u64::from(row[byte * count + i]));
            values.extend((0..count).map(value));
            return;
        }
        match self.bits {
            8 => values.extend(row.iter().take(count).map(|&byte| u64::from(byte))),
            16 | 32 | 64 => values.extend(row.chunks_exact(bytes).take(count).map(|v| number(v, self.little))),
            bits => {
                let (mut held, mut left, mut bytes) = (0u128, 0, row.iter());
                for _ in 0..count {
                    while left < bits {
                        held = held << 8 | u128::from(bytes.next().copied().unwrap_or(0));
                        left += 8;
                    }
                    left -= bits;
                    values.push((held >> left) as u64 & self.most());
                }
            }
        }
        if self.predictor == Predictor::Horizontal {
            for i in self.samples..values.len() {
                values[i] = values[i].wrapping_add(values[i - self.samples]) & self.most();
            }
        }
    }

    /// The largest number of `bits` bits.
    fn most(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// Converts a sample to 8 bits. Of more than 8 bits the upper 8 are kept; fewer bits are scaled so that the largest number
    /// becomes 255. The lowest signed number becomes 0. Floats are clamped to 0..1 and scaled.
    pub fn eight(&self, value: u64) -> u8 {
        let unsigned = |value: u64| match self.bits {
            ..8 => ((value * 255 + self.most() / 2) / self.most()) as u8,
            bits => (value >> (bits - 8)) as u8,
        };
        let float = |value: f32| (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
        match (self.format, self.bits) {
            (Format::Unsigned, _) => unsigned(value),
            (Format::Signed, bits) => unsigned(value ^ 1 << (bits - 1)),
            (Format::Float, 16) => float(f16::from_bits(value as u16).to_f32()),
            (Format::Float, 32) => float(f32::from_bits(value as u32)),
            (Format::Float, _) => float(f64::from_bits(value) as f32),
        }
    }
}
