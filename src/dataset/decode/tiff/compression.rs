//! Decompresses strips and tiles.

use std::io::Read;

use fax::{
    Color,
    decoder::{DecodeStatus, Group3Decoder, Group4Decoder, pels},
};
use weezl::{BitOrder, decode::Decoder};

/// The error for image data that are shorter than announced.
pub const SHORT: &str = "damaged TIFF (its image data are broken or end early)";

/// The compression of a strip or tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Fax3,
    Fax4,
    Lzw,
    Jpeg,
    Deflate,
    PackBits,
    Zstd,
}

impl Compression {
    /// The compression of this number in the file. `options` are those of group 3 fax.
    pub fn of(number: u64, options: u64) -> Result<Compression, String> {
        Ok(match number {
            1 => Compression::None,
            3 if options & 1 == 0 => Compression::Fax3,
            4 => Compression::Fax4,
            5 => Compression::Lzw,
            7 => Compression::Jpeg,
            8 | 32946 => Compression::Deflate,
            32773 => Compression::PackBits,
            50000 => Compression::Zstd,
            _ => {
                let name = match number {
                    2 => "CCITT run-length",
                    3 => "two-dimensional group 3 fax",
                    6 => "old JPEG",
                    34676 | 34677 => "SGI LogLuv",
                    34712 | 33003 | 33005 => "JPEG 2000",
                    34887 => "LERC",
                    34925 => "LZMA",
                    50001 => "WebP",
                    50002 => "JPEG XL",
                    _ => "unknown",
                };
                return Err(format!(
                    "TIFF of {name} compression (number {number}), which is not decoded: write it anew (`tiffcp -c lzw a.tif b.tif`)"
                ));
            }
        })
    }

    /// Decompresses the first `rows` rows of `row` bytes each. A row of fax has `width` pixels. Not for JPEG.
    pub fn unpacked(self, packed: &[u8], rows: usize, row: usize, width: usize) -> Result<Vec<u8>, String> {
        let size = rows * row;
        let bytes = match self {
            Compression::None => packed[..packed.len().min(size)].to_vec(),
            Compression::Fax3 | Compression::Fax4 => fax(self, packed, rows, row, width)?,
            Compression::Lzw => lzw(packed, size),
            Compression::PackBits => pack_bits(packed, size),
            Compression::Deflate => read(flate2::read::ZlibDecoder::new(packed), size),
            Compression::Zstd => read(zstd::stream::read::Decoder::new(packed).map_err(|_| SHORT)?, size),
            Compression::Jpeg => return Err("JPEG within TIFF is decoded as an image".into()),
        };
        if bytes.len() < size { Err(SHORT.into()) } else { Ok(bytes) }
    }
}

/// Reads at most `size` bytes. An error ends the data, but the bytes before it count.
fn read(packed: impl Read, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = packed.take(size as u64).read_to_end(&mut bytes);
    bytes
}

fn lzw(packed: &[u8], size: usize) -> Vec<u8> {
    // Before 1992 codes were written from the lowest bit on and grew one code later, as in GIF.
    let old = matches!(packed, [0, second, ..] if second & 1 == 1);
    let mut decoder = match old {
        true => Decoder::new(BitOrder::Lsb, 8),
        false => Decoder::with_tiff_size_switch(BitOrder::Msb, 8),
    };
    let (mut bytes, mut from, mut done) = (vec![0; size], 0, 0);
    while done < size {
        let step = decoder.decode_bytes(&packed[from..], &mut bytes[done..]);
        (from, done) = (from + step.consumed_in, done + step.consumed_out);
        if step.status.is_err() || step.consumed_in + step.consumed_out == 0 {
            break;
        }
    }
    bytes.truncate(done);
    bytes
}

fn pack_bits(mut packed: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let (true, [head, rest @ ..]) = (bytes.len() < size, packed) {
        packed = match *head as i8 {
            -128 => rest,
            head @ ..0 => {
                let Some((&value, rest)) = rest.split_first() else { break };
                bytes.resize(bytes.len() + (1 - isize::from(head)) as usize, value);
                rest
            }
            head => {
                let (values, rest) = rest.split_at(rest.len().min(head as usize + 1));
                bytes.extend(values);
                rest
            }
        };
    }
    bytes.truncate(size);
    bytes
}

/// Decodes rows of bits, in which 1 is black.
fn fax(kind: Compression, packed: &[u8], rows: usize, row: usize, width: usize) -> Result<Vec<u8>, String> {
    let narrow =
        u16::try_from(width).map_err(|_| format!("fax of {width} columns, which is not decoded: 65535 are"))?;
    let mut bytes = Vec::new();
    let mut put = |transitions: &[u16]| {
        let start = bytes.len();
        bytes.resize(start + row, 0);
        for (x, color) in pels(transitions, narrow).take(width).enumerate() {
            bytes[start + x / 8] |= u8::from(color == Color::Black) << (7 - x % 8);
        }
    };
    let input = packed.iter().map(|&byte| Ok::<u8, std::convert::Infallible>(byte));
    if kind == Compression::Fax3 {
        let mut decoder = Group3Decoder::new(input).map_err(|_| SHORT)?;
        for _ in 0..rows {
            let status = decoder.advance();
            // The last row may lack its end-of-line code, which the decoder reports as an error.
            let whole = decoder.transitions().last().is_some_and(|&end| usize::from(end) >= width);
            if !whole && !matches!(status, Ok(DecodeStatus::Incomplete)) {
                break;
            }
            put(decoder.transitions());
        }
    } else {
        let mut decoder = Group4Decoder::new(input, narrow).map_err(|_| SHORT)?;
        for _ in 0..rows {
            match decoder.advance().map_err(|_| SHORT)? {
                DecodeStatus::Incomplete => put(decoder.transition()),
                DecodeStatus::End => break,
            }
        }
    }
    Ok(bytes)
}
