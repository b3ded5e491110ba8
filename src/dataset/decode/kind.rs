//! Recognises the kind of a file by its first bytes, since names can be wrong.

use image::ImageFormat;

/// Number of first bytes that [`Kind::of`] needs to tell an image from any other file.
pub const HEAD: usize = 160;

/// The formats that are decoded, for messages.
pub const DECODED: &str = "JPEG, PNG, WebP, BMP, GIF, PNM or TIFF";

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An image that is decoded.
    Image(ImageFormat),
    /// A picture of a format that is not decoded.
    Foreign {
        /// Usual name of the format.
        name: &'static str,
        /// Advice on how to convert it.
        advice: &'static str,
    },
    /// Any other file. Some kinds that are often found in place of an image have a name.
    Other(&'static str),
}

const HEIC: Kind = Kind::Foreign {
    name: "HEIC",
    advice: "convert it to JPEG or PNG (`heif-convert photo.heic photo.jpg`; on a phone: settings, camera, formats, most compatible)",
};
const AVIF: Kind = Kind::Foreign { name: "AVIF", advice: "convert it to PNG (`avifdec photo.avif photo.png`)" };
const DICOM: Kind = Kind::Foreign {
    name: "DICOM",
    advice: "convert it to TIFF or PNG with the window that you want (`dcm2pnm +on scan.dcm scan.png`)",
};
const RAW: Kind = Kind::Foreign {
    name: "camera RAW",
    advice: "develop it to TIFF or JPEG (`darktable-cli photo.raw photo.tif`, `dcraw_emu -T photo.raw`)",
};
const JPEG_2000: Kind =
    Kind::Foreign { name: "JPEG 2000", advice: "convert it to PNG or TIFF (`opj_decompress -i a.jp2 -o a.png`)" };
const JPEG_XL: Kind = Kind::Foreign { name: "JPEG XL", advice: "convert it to PNG (`djxl a.jxl a.png`)" };
const JPEG_LS: Kind = Kind::Foreign { name: "JPEG-LS", advice: "convert it to PNG (`ffmpeg -i a.jls a.png`)" };
const PHOTOSHOP: Kind = Kind::Foreign { name: "Photoshop", advice: "export it as PNG or TIFF" };
const OPEN_EXR: Kind =
    Kind::Foreign { name: "OpenEXR", advice: "convert it to TIFF or PNG (`oiiotool a.exr -o a.tif`)" };

impl Kind {
    /// The kind of a file that starts with `bytes`. [`HEAD`] bytes are enough, except for camera RAW within a TIFF, whose first
    /// directory may be anywhere in the file.
    pub fn of(bytes: &[u8]) -> Kind {
        match bytes {
            [] => Kind::Other("empty"),
            [0xff, 0xd8, 0xff, 0xf7, ..] => JPEG_LS,
            [0xff, 0xd8, 0xff, ..] => Kind::Image(ImageFormat::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Kind::Image(ImageFormat::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Kind::Image(ImageFormat::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Kind::Image(ImageFormat::Gif),
            [b'B', b'M', rest @ ..] if is_bmp(rest) => Kind::Image(ImageFormat::Bmp),
            [b'P', b'1'..=b'7', b' ' | b'\t' | b'\r' | b'\n' | b'#', ..] => Kind::Image(ImageFormat::Pnm),
            [b'I', b'I', b'*', 0, _, _, _, _, b'C', b'R', ..] => RAW,
            [b'I', b'I', b'R', b'O' | b'S', ..] | [b'M', b'M', b'O', b'R', ..] | [b'I', b'I', b'U', 0, ..] => RAW,
            [b'I', b'I', b'*' | b'+', 0, ..] | [b'M', b'M', 0, b'*' | b'+', ..] => match is_raw(bytes) {
                true => RAW,
                false => Kind::Image(ImageFormat::Tiff),
            },
            [b'F', b'U', b'J', b'I', b'F', b'I', b'L', b'M', ..] | [b'F', b'O', b'V', b'b', ..] => RAW,
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => of_iso_media(bytes),
            [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => JPEG_2000,
            [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => JPEG_XL,
            [b'8', b'B', b'P', b'S', ..] => PHOTOSHOP,
            [0x76, 0x2f, 0x31, 0x01, ..] => OPEN_EXR,
            _ if bytes.get(128..132) == Some(b"DICM") => DICOM,
            _ => Kind::Other(of_text(bytes)),
        }
    }

    /// Whether people would call the file a picture, decoded or not.
    pub fn is_picture(self) -> bool {
        !matches!(self, Kind::Other(_))
    }
}

/// Whether `rest`, which follows the letters BM, looks like a BMP: behind 12 more bytes comes the length of a header, which has
/// few possible values.
fn is_bmp(rest: &[u8]) -> bool {
    matches!(rest.get(12..16), Some(&[12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0]))
}

/// The kind of an ISO media file, which consists of boxes: the brands in the first box name the content.
fn of_iso_media(bytes: &[u8]) -> Kind {
    let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let brands: Vec<&[u8]> = bytes[8..bytes.len().min(length.clamp(8, HEAD))].chunks_exact(4).collect();
    let has = |wanted: &[&[u8]]| brands.iter().any(|brand| wanted.contains(brand));
    match () {
        _ if has(&[b"crx "]) => RAW,
        _ if has(&[b"avif", b"avis"]) => AVIF,
        _ if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) => HEIC,
        _ => Kind::Other("a video"),
    }
}

/// Whether a TIFF is camera RAW. Its first directory shows this by Adobe's DNG version, by a compression or colour space of
/// sensors, or by being a thumbnail that a camera puts before the directories of the sensor data.
fn is_raw(bytes: &[u8]) -> bool {
    let little = bytes[0] == b'I';
    let short = |at: usize| {
        let two = bytes.get(at..at + 2)?;
        let two = [two[0], two[1]];
        Some(if little { u16::from_le_bytes(two) } else { u16::from_be_bytes(two) })
    };
    let long = |at: usize| {
        let (a, b) = (short(at)? as u32, short(at + 2)? as u32);
        Some(if little { a | b << 16 } else { a << 16 | b })
    };
    let classic = short(2) == Some(42);
    let Some(at) = long(4).filter(|_| classic).map(|at| at as usize) else { return false };
    let (mut make, mut below, mut thumbnail) = (false, false, false);
    for entry in 0..short(at).unwrap_or(0) as usize {
        let at = at + 2 + 12 * entry;
        let Some(tag) = short(at) else { break };
        match (tag, short(at + 8).unwrap_or(0)) {
            (50706, _) => return true,                                        // DNGVersion
            (259, 34713 | 32767 | 32769 | 65535 | 34892) => return true, // Compression: NEF, ARW, packed, PEF, lossy DNG
            (262, 32803 | 34892) => return true, // PhotometricInterpretation: sensor, linear RAW
            (254, _) => thumbnail = long(at + 8).is_some_and(|v| v & 1 == 1), // NewSubfileType
            (271, _) => make = true,             // Make
            (330, _) => below = true,            // SubIFDs
            _ => {}
        }
    }
    make && below && thumbnail
}

/// Names some other kinds of files that are found in place of images.
fn of_text(bytes: &[u8]) -> &'static str {
    let head = bytes[..bytes.len().min(HEAD)].trim_ascii_start().to_ascii_lowercase();
    match () {
        _ if head.starts_with(b"<!doctype html") || head.starts_with(b"<html") => "an HTML page",
        _ if head.starts_with(b"version https://git-lfs") => "a Git LFS pointer (`git lfs pull` fetches the file)",
        _ if head.starts_with(b"<svg") => "an SVG drawing",
        _ if head.starts_with(b"%pdf") => "a PDF document",
        _ if head.starts_with(b"pk\x03\x04") => "a zip archive",
        _ if bytes.iter().all(|&b| b == 0) => "zeros alone",
        _ => "of an unknown format",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TIFF with one directory; each entry is a tag and a 16-bit value.
    fn tiff(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut bytes = b"II*\0\x08\0\0\0".to_vec();
        bytes.extend((entries.len() as u16).to_le_bytes());
        for &(tag, value) in entries {
            bytes.extend([tag.to_le_bytes(), [3, 0], [1, 0], [0, 0], value.to_le_bytes(), [0, 0]].concat());
        }
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn content_tells_the_kind() {
        let mut dicom = vec![0; 128];
        dicom.extend(b"DICM\x02\0");
        let mut bmp = b"BM\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        bmp.extend([40, 0, 0, 0]);
        let image = |format| Kind::Image(format);
        let cases: Vec<(Vec<u8>, Kind)> = vec![
            (b"\xff\xd8\xff\xe0".to_vec(), image(ImageFormat::Jpeg)),
            (b"GIF89a".to_vec(), image(ImageFormat::Gif)),
            (b"RIFF\x10\0\0\0WEBPVP8 ".to_vec(), image(ImageFormat::WebP)),
            (b"P6\n1 1\n255\nabc".to_vec(), image(ImageFormat::Pnm)),
            (b"MM\0+\0\x08\0\0".to_vec(), image(ImageFormat::Tiff)),
            (bmp, image(ImageFormat::Bmp)),
            (tiff(&[(256, 4), (271, 1)]), image(ImageFormat::Tiff)),
            (tiff(&[(256, 4), (50706, 1)]), RAW),
            (tiff(&[(254, 1), (271, 1), (330, 1)]), RAW),
            (tiff(&[(262, 32803)]), RAW),
            (b"II*\0\x10\0\0\0CR\x02\0".to_vec(), RAW),
            (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom".to_vec(), RAW),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".to_vec(), HEIC),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf".to_vec(), AVIF),
            (b"\0\0\0\x18ftypisom\0\0\0\0isommp42".to_vec(), Kind::Other("a video")),
            (b"\0\0\0\x02ftyp".to_vec(), Kind::Other("a video")),
            (dicom, DICOM),
            (b"\n<!DOCTYPE html>".to_vec(), Kind::Other("an HTML page")),
            (vec![0; 20], Kind::Other("zeros alone")),
            (b"BMW and other cars: a list".to_vec(), Kind::Other("of an unknown format")),
            (vec![], Kind::Other("empty")),
        ];
        for (bytes, kind) in cases {
            assert_eq!(Kind::of(&bytes), kind, "{}", String::from_utf8_lossy(&bytes));
        }
    }
}
