//! Decodes TIFF and BigTIFF: strips and tiles, integers of 1 to 64 bits and floats, in one plane or in several.

mod compression;
mod directory;
mod samples;

use image::{RgbImage, metadata::Orientation};

use super::{cmyk, jpeg::Jpeg};
use crate::dataset::CropBox;
use compression::{Compression, SHORT};
use directory::{Directory, STRUCTURE};
use samples::{Format, Packing, Predictor};

/// The most bytes that a strip or tile may have.
const MOST_BYTES: usize = 2 << 30;

/// The colour space of the samples.
#[derive(Clone, Debug)]
enum Colors {
    /// `inverted` means that 0 is white.
    Grey {
        inverted: bool,
    },
    Rgb,
    /// Red, green and blue of each index.
    Palette(Vec<[u8; 3]>),
    Cmyk,
}

/// How the samples are stored in the file.
struct Layout<'a> {
    directory: Directory<'a>,
    width: usize,
    height: usize,
    packing: Packing,
    compression: Compression,
    /// Number of planes, each with all chunks; 1 if the samples of a pixel are stored together.
    planes: usize,
    /// Width and height of a chunk: a tile, or a strip.
    chunk: (usize, usize),
    tiled: bool,
    /// Whether bits of a byte begin with the lowest.
    reversed: bool,
}

/// Decodes the stored pixels, and returns them with the orientation to apply. `check` is called with width and height, of the
/// image and of its tiles; it must refuse sizes of 0.
///
/// If colours were multiplied by alpha, they are divided by it, as in Pillow. Any other alpha is dropped.
///
/// Errors: a short reason for people, for kinds that are not decoded and for damage.
pub fn decode(bytes: &[u8], check: impl Fn(u32, u32) -> Result<(), String>) -> Result<(RgbImage, Orientation), String> {
    let layout = Layout::of(Directory::of(bytes)?, check)?;
    let (width, height, directory) = (layout.width, layout.height, &layout.directory);
    let colors = layout.colors()?;
    let samples = layout.packing.samples * layout.planes;
    let own = match colors {
        Colors::Grey { .. } | Colors::Palette(_) => 1,
        Colors::Rgb => 3,
        Colors::Cmyk => 4,
    };
    if samples < own {
        return Err(STRUCTURE.into());
    }
    let alpha = samples > own && own != 4 && directory.first(338, 0) == 1;
    let kept = own + usize::from(alpha);
    let mut eight = vec![0; width * height * kept];
    let mut image = vec![0; width * height * 3];
    layout.read(|plane, y, x, values| {
        let start = y * width + x;
        for (place, pixel) in (start..).zip(values.chunks_exact(layout.packing.samples)) {
            for (component, &value) in (plane..kept).zip(pixel) {
                match &colors {
                    Colors::Palette(colors) if component == 0 => {
                        let color = colors.get(value as usize).ok_or(SHORT)?;
                        image[3 * place..3 * place + 3].copy_from_slice(color);
                    }
                    _ => eight[kept * place + component] = layout.packing.eight(value),
                }
            }
        }
        Ok(())
    })?;
    if !matches!(colors, Colors::Palette(_)) {
        for (pixel, samples) in image.chunks_exact_mut(3).zip(eight.chunks_exact(kept)) {
            let rgb = match (&colors, samples) {
                (Colors::Grey { inverted: true }, [grey, ..]) => [255 - grey; 3],
                (Colors::Cmyk, &[c, m, y, k, ..]) => cmyk::rgb([c, m, y], k),
                (_, &[red, green, blue, ..]) => [red, green, blue],
                _ => [samples[0]; 3],
            };
            pixel.copy_from_slice(&if alpha { rgb.map(|value| divided(value, samples[own])) } else { rgb });
        }
    }
    let orientation = u8::try_from(directory.first(274, 1)).ok().and_then(Orientation::from_exif);
    let image = RgbImage::from_raw(width as u32, height as u32, image).ok_or(SHORT)?;
    Ok((image, orientation.unwrap_or(Orientation::NoTransforms)))
}

/// Divides a colour by the alpha that it was multiplied by.
fn divided(value: u8, alpha: u8) -> u8 {
    (u32::from(value) * 255).checked_div(u32::from(alpha)).unwrap_or(0).min(255) as u8
}

impl<'a> Layout<'a> {
    fn of(directory: Directory<'a>, check: impl Fn(u32, u32) -> Result<(), String>) -> Result<Layout<'a>, String> {
        let size = |width: u64, height: u64| {
            let (w, h) = (u32::try_from(width).map_err(|_| STRUCTURE)?, u32::try_from(height).map_err(|_| STRUCTURE)?);
            check(w, h).map(|()| (w as usize, h as usize))
        };
        let (width, height) = size(directory.first(256, 0), directory.first(257, 0))?;
        let tiled = directory.raw(322).is_some();
        let chunk = match tiled {
            true => size(directory.first(322, 0), directory.first(323, 0))?,
            false => (width, directory.first(278, u64::MAX).clamp(1, height as u64) as usize),
        };
        let (bits, formats) = (directory.numbers(258), directory.numbers(339));
        let samples = directory.first(277, 1) as usize;
        let (bit, format) = (bits.first().copied().unwrap_or(1), formats.first().copied().unwrap_or(1));
        if bits.iter().any(|&other| other != bit) || formats.iter().any(|&other| other != format) {
            return Err("TIFF of samples of several kinds, which is not decoded: write it anew (ImageMagick)".into());
        }
        let format = match (format, bit) {
            (1 | 4, 1..=32 | 64) => Format::Unsigned,
            (2, 2..=32 | 64) => Format::Signed,
            (3, 16 | 32 | 64) => Format::Float,
            _ => return Err(format!("TIFF of {bit}-bit samples of format {format}, which is not decoded")),
        };
        let predictor = match directory.first(317, 1) {
            1 => Predictor::None,
            2 => Predictor::Horizontal,
            3 if format == Format::Float => Predictor::Float,
            other => return Err(format!("TIFF of predictor {other}, which is not decoded")),
        };
        let compression = Compression::of(directory.first(259, 1), directory.first(292, 0))?;
        let planes = if directory.first(284, 1) == 2 { samples } else { 1 };
        let samples = if planes > 1 { 1 } else { samples };
        let packing = Packing { format, bits: bit as u32, samples, little: directory.little, predictor };
        if samples == 0 || samples > 1 << 16 || planes > 1 << 16 {
            return Err(STRUCTURE.into());
        }
        let reversed = directory.first(266, 1) == 2;
        let layout = Layout { directory, width, height, packing, compression, planes, chunk, tiled, reversed };
        match layout.row().checked_mul(layout.chunk.1) {
            Some(..=MOST_BYTES) => Ok(layout),
            _ => Err(format!("TIFF of strips or tiles of more than {MOST_BYTES} bytes, which is not decoded")),
        }
    }

    /// Bytes of a row of a chunk.
    fn row(&self) -> usize {
        (self.chunk.0 * self.packing.samples * self.packing.bits as usize).div_ceil(8)
    }

    fn colors(&self) -> Result<Colors, String> {
        let name = match self.directory.first(262, 1) {
            0 => return Ok(Colors::Grey { inverted: true }),
            1 => return Ok(Colors::Grey { inverted: false }),
            2 => return Ok(Colors::Rgb),
            3 if self.packing.bits <= 16 && self.packing.format == Format::Unsigned => {
                let map = self.directory.numbers(320);
                let count = 1 << self.packing.bits;
                if map.len() < 3 * count {
                    return Err(STRUCTURE.into());
                }
                let color = |i: usize| [map[i], map[count + i], map[2 * count + i]].map(|value| (value >> 8) as u8);
                return Ok(Colors::Palette((0..count).map(color).collect()));
            }
            5 if self.compression != Compression::Jpeg => return Ok(Colors::Cmyk),
            // The JPEG decoder converts to RGB.
            6 if self.compression == Compression::Jpeg => return Ok(Colors::Rgb),
            3 => "palette of numbers that are no indices",
            5 => "CMYK of JPEG",
            6 => "YCbCr",
            8..=10 => "CIE L*a*b*",
            32844 | 32845 => "LogLuv",
            _ => "unknown",
        };
        Err(format!("TIFF of {name} colours, which is not decoded: write it anew as RGB (ImageMagick)"))
    }

    /// Passes all samples to `sink`: plane, row, column of the first pixel, and the samples of consecutive pixels.
    fn read(
        &self,
        mut sink: impl FnMut(usize, usize, usize, &[u64]) -> Result<(), &'static str>,
    ) -> Result<(), String> {
        let (offsets, counts) = if self.tiled { (324, 325) } else { (273, 279) };
        let (offsets, counts) = (self.directory.numbers(offsets), self.directory.numbers(counts));
        let (across, down) = (self.width.div_ceil(self.chunk.0), self.height.div_ceil(self.chunk.1));
        let mut values = Vec::new();
        for index in 0..self.planes * down * across {
            let (plane, top, left) =
                (index / (down * across), index / across % down * self.chunk.1, index % across * self.chunk.0);
            let from = usize::try_from(*offsets.get(index).ok_or(SHORT)?).map_err(|_| SHORT)?;
            let rest = self.directory.bytes.get(from..).ok_or(SHORT)?;
            let count = counts.get(index).map_or(rest.len(), |&count| rest.len().min(count as usize));
            let shown = (self.height - top).min(self.chunk.1);
            // A tile has all of its rows, even those beyond the image.
            let rows = if self.tiled { self.chunk.1 } else { shown };
            let mut bytes = self.unpacked(&rest[..count], rows)?;
            let visible = (self.width - left).min(self.chunk.0) * self.packing.samples;
            for (y, row) in bytes.chunks_exact_mut(self.row()).take(shown).enumerate() {
                self.packing.unpack(row, self.chunk.0 * self.packing.samples, &mut values);
                sink(plane, top + y, left, &values[..visible])?;
            }
        }
        Ok(())
    }

    /// Decompresses a chunk.
    fn unpacked(&self, packed: &[u8], rows: usize) -> Result<Vec<u8>, String> {
        if self.compression == Compression::Jpeg {
            return self.unpacked_jpeg(packed, rows);
        }
        let whole_bytes = self.packing.bits.is_multiple_of(8);
        let turned: Vec<u8>;
        let packed = match self.reversed && !whole_bytes {
            true => {
                turned = packed.iter().map(|byte| byte.reverse_bits()).collect();
                &turned
            }
            false => packed,
        };
        self.compression.unpacked(packed, rows, self.row(), self.chunk.0)
    }

    /// Decompresses a chunk that is a JPEG, whose tables may be in the directory.
    fn unpacked_jpeg(&self, packed: &[u8], rows: usize) -> Result<Vec<u8>, String> {
        if self.packing.bits != 8 || ![1, 3].contains(&self.packing.samples) {
            return Err("TIFF of JPEG of other than 1 or 3 samples of 8 bits, which is not decoded".into());
        }
        // The marker that Adobe's programs write if the components are RGB.
        const RGB: &[u8] = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0";
        let own = packed.strip_prefix(b"\xff\xd8").ok_or(SHORT)?;
        let tables = self.directory.raw(347).and_then(|tables| tables.strip_prefix(b"\xff\xd8"));
        let tables = tables.map_or(&[][..], |tables| tables.strip_suffix(b"\xff\xd9").unwrap_or(tables));
        let adobe = if self.directory.first(262, 1) == 2 { RGB } else { &[] };
        let whole = [b"\xff\xd8", adobe, tables, own].concat();
        let jpeg = Jpeg::open(&whole)?;
        let (size, mut bytes) = ((self.chunk.0 as u32, rows as u32), Vec::new());
        if jpeg.size() != size {
            return Err(STRUCTURE.into());
        }
        jpeg.decode(CropBox::whole(size), &mut bytes)?;
        Ok(if self.packing.samples == 3 { bytes } else { bytes.into_iter().step_by(3).collect() })
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::PathBuf};

    use sha2::{Digest, Sha256};

    use super::*;

    fn hash(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The TIFF files in `folder` with their entries in `column` of a table beside them; files with empty entries are left out.
    fn expected(folder: PathBuf, table: &str, name: &str, column: &str) -> Vec<(String, Vec<u8>, String)> {
        let mut table = csv::Reader::from_path(folder.join(table)).unwrap();
        let header = table.headers().unwrap().clone();
        let at = |column: &str| header.iter().position(|found| found == column).unwrap();
        let (name, column) = (at(name), at(column));
        let rows = table.into_records().map(|row| row.unwrap());
        rows.filter(|row| row[name].ends_with(".tif") || row[name].ends_with(".tiff"))
            .filter(|row| !row[column].is_empty())
            .map(|row| (row[name].to_owned(), fs::read(folder.join(&row[name])).unwrap(), row[column].to_owned()))
            .collect()
    }

    fn own() -> Vec<(String, Vec<u8>, String)> {
        expected("../tests/golden/tiff".into(), "expected.csv", "name", "rgb_sha256")
    }

    fn small(width: u32, height: u32) -> Result<(), String> {
        match width as u64 * height as u64 {
            1..=0x10_0000 => Ok(()),
            _ => Err("of no size for a test".to_owned()),
        }
    }

    #[test]
    fn every_kind_comes_to_its_pixels() {
        for (name, bytes, expected) in own() {
            let (image, _) = decode(&bytes, small).unwrap_or_else(|reason| panic!("{name}: {reason}"));
            assert_eq!((image.dimensions(), hash(&image)), ((37, 21), expected), "{name}");
        }
    }

    #[test]
    fn no_damage_ends_in_a_panic_and_missing_data_are_damage() {
        for (name, bytes, _) in own() {
            for at in (0..bytes.len()).step_by(5) {
                let mut broken = bytes.clone();
                broken[at] ^= 1 << (at % 8);
                let _ = decode(&broken, small);
            }
            // The directory may come first or last; in either case half of the file lacks something.
            assert!(decode(&bytes[..bytes.len() / 2], small).is_err(), "{name}: half of it passed");
        }
    }

    /// Samples as `tifffile` gives them: planes first, in the smallest of 8, 16, 32 and 64 bits, little-endian.
    fn raw(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let layout = Layout::of(Directory::of(bytes)?, |_, _| Ok(()))?;
        let (samples, wide) = (layout.packing.samples, layout.packing.bits.next_power_of_two().max(8) as usize / 8);
        let mut raw = vec![0; layout.planes * layout.height * layout.width * samples * wide];
        layout.read(|plane, y, x, values| {
            let start = ((plane * layout.height + y) * layout.width + x) * samples;
            for (place, value) in raw[start * wide..].chunks_exact_mut(wide).zip(values) {
                place.copy_from_slice(&value.to_le_bytes()[..wide]);
            }
            Ok(())
        })?;
        Ok(raw)
    }

    /// See `tests/conformance.rs`.
    #[test]
    fn samples_of_the_public_suite_come_out_as_they_were_stored() {
        let Some(root) = env::var_os("SNCLR_CONFORMANCE").map(PathBuf::from) else { return };
        let mut wrong = Vec::new();
        for (name, bytes, expected) in expected(root, "expected.csv", "path", "raw_sha256") {
            match raw(&bytes) {
                Ok(found) if hash(&found) == expected => {}
                Ok(_) => wrong.push(format!("{name}: other samples")),
                Err(reason) if reason.contains("which is not decoded") => {}
                Err(reason) => wrong.push(format!("{name}: {reason}")),
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
