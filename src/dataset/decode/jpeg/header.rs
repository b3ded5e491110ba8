//! Reads the markers of a JPEG.

use super::planes::Colors;

const TRUNCATED: &str = "truncated JPEG (no end-of-image marker)";
/// The error where markers contradict themselves.
pub const HEADER: &str = "damaged JPEG (its header contradicts itself)";

/// A component as the frame announces it.
#[derive(Clone, Debug)]
pub struct Announced {
    pub id: u8,
    /// Sampling factors.
    pub h: usize,
    pub v: usize,
    /// Number of its quantization table.
    pub table: usize,
}

/// The information in the markers. A header exists only for files with an end-of-image marker.
#[derive(Debug)]
pub struct Header<'a> {
    pub width: usize,
    pub height: usize,
    /// The TIFF block within the first EXIF segment.
    pub exif: Option<&'a [u8]>,
    pub progressive: bool,
    pub components: Vec<Announced>,
    jfif: bool,
    adobe: Option<u8>,
}

/// A marker, the offset behind its segment, and the segment without its length.
pub type Segment<'a> = (u8, usize, &'a [u8]);

/// Distance to the next 0xFF; None if there is none.
fn next_ff(bytes: &[u8]) -> Option<usize> {
    // Most of a file is scan data, in which 0xFF is rare, so whole blocks without it are skipped at once.
    const BLOCK: usize = 32;
    let none = |block: &&[u8]| block.iter().fold(true, |none, &byte| none & (byte != 0xff));
    let passed = BLOCK * bytes.chunks_exact(BLOCK).take_while(none).count();
    bytes[passed..].iter().position(|&byte| byte == 0xff).map(|step| passed + step)
}

/// The next marker at or after `at`: 0xFF followed by neither a stuffed zero nor a fill byte. Restart markers, SOI and TEM are
/// skipped.
pub fn next_segment(bytes: &[u8], mut at: usize) -> Result<Segment<'_>, String> {
    let marker = loop {
        let step = bytes.get(at..).and_then(next_ff).ok_or(TRUNCATED)?;
        at += step + 1;
        match bytes.get(at).ok_or(TRUNCATED)? {
            0x00 | 0x01 | 0xd0..=0xd8 => at += 1,
            0xff => {}
            &marker => break marker,
        }
    };
    at += 1;
    if marker == 0xd9 {
        return Ok((marker, at, &[]));
    }
    let length = bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]) as usize).ok_or(TRUNCATED)?;
    let segment = bytes.get(at + 2..at + length.max(2)).ok_or(TRUNCATED)?;
    Ok((marker, at + length.max(2), segment))
}

impl<'a> Header<'a> {
    /// Reads all markers to the end of the image: a thumbnail within a segment has markers of its own, which do not count.
    pub fn of(bytes: &'a [u8]) -> Result<Header<'a>, String> {
        let mut header = Header {
            width: 0,
            height: 0,
            exif: None,
            progressive: false,
            components: vec![],
            jfif: false,
            adobe: None,
        };
        let (mut at, mut scanned) = (2, false);
        loop {
            let (marker, end, segment) = next_segment(bytes, at)?;
            at = end;
            match marker {
                0xd9 if !scanned => return Err("damaged JPEG (it holds no image)".into()),
                0xd9 => return Ok(header),
                0xc4 | 0xc8 | 0xcc => {}
                0xc0..=0xcf if header.components.is_empty() => header.frame(marker, segment)?,
                0xc0..=0xcf => return Err(HEADER.into()),
                0xda if header.components.is_empty() => return Err(HEADER.into()),
                0xda => scanned = true,
                0xe0 if segment.starts_with(b"JFIF\0") => header.jfif = true,
                0xe1 if segment.starts_with(b"Exif\0\0") => header.exif = header.exif.or(Some(&segment[6..])),
                0xee if segment.starts_with(b"Adobe") => header.adobe = segment.get(11).copied().or(header.adobe),
                _ => {}
            }
        }
    }

    fn frame(&mut self, marker: u8, segment: &[u8]) -> Result<(), String> {
        let &[precision, h1, h0, w1, w0, count, ref rest @ ..] = segment else { return Err(HEADER.into()) };
        if let Some(kind) = not_decoded(marker, precision) {
            return Err(format!(
                "{kind} JPEG, which is not decoded: write it anew as usual 8-bit JPEG or as PNG (`djpeg`, then `cjpeg`; or \
                 ImageMagick)"
            ));
        }
        self.progressive = marker == 0xc2;
        (self.width, self.height) = (u16::from_be_bytes([w1, w0]) as usize, u16::from_be_bytes([h1, h0]) as usize);
        let component =
            |c: &[u8]| Announced { id: c[0], h: (c[1] >> 4) as usize, v: (c[1] & 15) as usize, table: c[2] as usize };
        self.components = rest.chunks_exact(3).map(component).collect();
        let fits = |c: &Announced| (1..=4).contains(&c.h) && (1..=4).contains(&c.v) && c.table < 4;
        if self.components.len() != count as usize || !self.components.iter().all(fits) {
            return Err(HEADER.into());
        }
        if ![1, 3, 4].contains(&count) {
            return Err(format!("JPEG of {count} components, which is not decoded: 1, 3 and 4 are"));
        }
        if let [only] = &mut self.components[..] {
            (only.h, only.v) = (1, 1); // factors only matter relative to other components
        }
        let (h, v) = self.most();
        if self.components.iter().any(|c| h % c.h != 0 || v % c.v != 0) {
            return Err("JPEG of fractional sampling, which is not decoded: write it anew (ImageMagick)".into());
        }
        Ok(())
    }

    /// The largest sampling factors.
    pub fn most(&self) -> (usize, usize) {
        let most = |f: fn(&Announced) -> usize| self.components.iter().map(f).max().unwrap_or(1);
        (most(|c| c.h), most(|c| c.v))
    }

    pub fn colors(&self) -> Colors {
        let ids: Vec<_> = self.components.iter().map(|c| c.id).collect();
        match (ids.len(), self.adobe) {
            (1, _) => Colors::Grey,
            (3, _) if self.jfif => Colors::YCbCr,
            (3, Some(0)) => Colors::Rgb,
            (3, None) if ids == *b"RGB" => Colors::Rgb,
            (3, _) => Colors::YCbCr,
            (_, Some(2)) => Colors::Ycck,
            _ => Colors::Cmyk,
        }
    }
}

/// The name of a kind that is not decoded, by its frame's marker and the bits of its samples.
fn not_decoded(marker: u8, precision: u8) -> Option<String> {
    match marker {
        0xc3 => Some("lossless".into()),
        0xc5..=0xc7 => Some("hierarchical".into()),
        0xc9..=0xcf => Some("arithmetic-coded".into()),
        _ if precision != 8 => Some(format!("{precision}-bit")),
        _ => None,
    }
}
