//! A decoder of baseline and progressive JPEG that gives libjpeg's pixels and reports every damage.

use super::{
    huffman::{Bits, Codes},
    idct,
    planes::{Colors, Plane, rgb},
    standard,
};
use crate::ops::simd::vectorized;

/// The error where entropy data end early or hold an invalid code.
pub const DAMAGED: &str = "damaged JPEG (its image data are broken or end early)";
const TRUNCATED: &str = "truncated JPEG (no end-of-image marker)";
const HEADER: &str = "damaged JPEG (its header contradicts itself)";

/// Place in a block, row by row, of the n-th coefficient of a scan.
const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// A component as the frame announces it.
#[derive(Clone, Debug)]
struct Announced {
    id: u8,
    /// Sampling factors.
    h: usize,
    v: usize,
    /// Number of its table of quantizers.
    table: usize,
}

/// What the markers say, and that the file is whole.
#[derive(Debug)]
pub struct Header<'a> {
    pub width: usize,
    pub height: usize,
    /// The TIFF block within the first EXIF segment.
    pub exif: Option<&'a [u8]>,
    progressive: bool,
    components: Vec<Announced>,
    /// Components of the first scan.
    first_scan: usize,
    jfif: bool,
    adobe: Option<u8>,
}

/// Marker, its offset after itself, its segment without the length.
type Segment<'a> = (u8, usize, &'a [u8]);

/// The next marker at or after `at`: 0xFF followed by neither a stuffed zero, a fill byte nor a restart marker.
fn next_segment(bytes: &[u8], mut at: usize) -> Result<Segment<'_>, String> {
    let marker = loop {
        let step = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)).ok_or(TRUNCATED)?;
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
            first_scan: 0,
            jfif: false,
            adobe: None,
        };
        let mut at = 2;
        loop {
            let (marker, end, segment) = next_segment(bytes, at)?;
            at = end;
            match marker {
                0xd9 if header.first_scan == 0 => return Err("damaged JPEG (it holds no image)".into()),
                0xd9 => return Ok(header),
                0xc4 | 0xc8 | 0xcc => {}
                0xc0..=0xcf if header.components.is_empty() => header.frame(marker, segment)?,
                0xc0..=0xcf => return Err(HEADER.into()),
                0xda if header.first_scan == 0 => {
                    header.first_scan = *segment.first().ok_or(HEADER)? as usize;
                    if header.components.is_empty() || header.first_scan == 0 {
                        return Err(HEADER.into());
                    }
                }
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
            (only.h, only.v) = (1, 1); // there is nothing to share samples with
        }
        let (h, v) = self.most();
        if self.components.iter().any(|c| h % c.h != 0 || v % c.v != 0) {
            return Err("JPEG of fractional sampling, which is not decoded: write it anew (ImageMagick)".into());
        }
        Ok(())
    }

    /// The largest sampling factors.
    fn most(&self) -> (usize, usize) {
        let most = |f: fn(&Announced) -> usize| self.components.iter().map(f).max().unwrap_or(1);
        (most(|c| c.h), most(|c| c.v))
    }

    /// Number of colour components.
    pub fn channels(&self) -> usize {
        self.components.len()
    }

    /// Whether it is of the kinds that the fast decoder gets right: all components in the first scan, whole samples for the first
    /// of them, and for the others of colour those of 4:4:4, 4:2:2 or 4:2:0.
    pub fn is_usual(&self) -> bool {
        let factors: Vec<_> = self.components.iter().map(|c| (c.h, c.v)).collect();
        match &factors[..] {
            [_] => true,
            [first, others @ ..] if others.len() == 2 => {
                let whole = self.progressive || self.first_scan == self.components.len();
                whole && [(1, 1), (2, 1), (2, 2)].contains(first) && others.iter().all(|&factor| factor == (1, 1))
            }
            _ => false,
        }
    }

    fn colors(&self) -> Colors {
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

/// A component's coefficients while scans fill them.
struct Component {
    /// Blocks that hold samples, and blocks of a row with those that fill the last unit up.
    blocks: (usize, usize),
    stride: usize,
    coefficients: Vec<[i16; 64]>,
    /// Its table when its first scan began; None before.
    quantizers: Option<[u16; 64]>,
    /// Whether a scan has sent other coefficients than the first.
    begun: bool,
    /// Size in samples.
    size: (usize, usize),
}

/// What markers between scans change.
#[derive(Default)]
struct Tables {
    quantizers: [Option<[u16; 64]>; 4],
    /// By number, for the first coefficient and for the others.
    codes: [[Option<Codes>; 4]; 2],
    /// Units between restart markers; 0 without.
    restart: usize,
}

/// A scan's part of the coefficients.
struct Scan {
    /// First and last coefficient.
    from: usize,
    to: usize,
    /// Bit from which on values were sent before, 0 if never, and the bit down to which they are sent now.
    before: u8,
    now: u8,
}

/// RGB of a whole image.
pub fn decode(bytes: &[u8], header: &Header) -> Result<Vec<u8>, String> {
    let (most_h, most_v) = header.most();
    let mut planes = Vec::new();
    for (component, announced) in read(bytes, header, true)?.into_iter().zip(&header.components) {
        let (h, v) = (most_h / announced.h, most_v / announced.v);
        planes.push(component.plane().enlarged(h, v, header.width, header.height));
    }
    Ok(rgb(&planes, header.colors()))
}

/// Whether the image data are whole; takes about as long as the reading of codes in any decoder.
pub fn verify(bytes: &[u8], header: &Header) -> Result<(), String> {
    // Later scans of a progressive file refine earlier ones, which have to be kept for it.
    read(bytes, header, header.progressive).map(drop)
}

/// Reads all scans; the coefficients are kept if the caller wants them.
fn read(bytes: &[u8], header: &Header, keep: bool) -> Result<Vec<Component>, String> {
    let (most_h, most_v) = header.most();
    let units = (header.width.div_ceil(8 * most_h), header.height.div_ceil(8 * most_v));
    let component = |c: &Announced| {
        let size = ((header.width * c.h).div_ceil(most_h), (header.height * c.v).div_ceil(most_v));
        let stride = units.0 * c.h;
        Component {
            blocks: (size.0.div_ceil(8), size.1.div_ceil(8)),
            stride,
            coefficients: vec![[0; 64]; if keep { stride * units.1 * c.v } else { 1 }],
            quantizers: None,
            begun: false,
            size,
        }
    };
    let mut components: Vec<_> = header.components.iter().map(component).collect();
    let mut tables = Tables { codes: standard::tables(), ..Tables::default() };
    let mut at = 2;
    loop {
        let (marker, end, segment) = next_segment(bytes, at)?;
        at = end;
        match marker {
            0xd9 => break,
            0xdb => tables.set_quantizers(segment)?,
            0xc4 => tables.set_codes(segment)?,
            0xdd => match segment {
                [high, low] => tables.restart = u16::from_be_bytes([*high, *low]) as usize,
                _ => return Err(HEADER.into()),
            },
            0xda => at = read_scan(header, &tables, segment, bytes, at, units, &mut components)?,
            _ => {}
        }
    }
    // A progressive file may end after any of its scans; a baseline one has to hold every component.
    if !header.progressive && components.iter().any(|component| component.quantizers.is_none()) {
        return Err(DAMAGED.into());
    }
    Ok(components)
}

impl Component {
    fn plane(self) -> Plane {
        let quantizers = self.quantizers.unwrap_or([0; 64]);
        let (width, height) = self.size;
        let mut samples = vec![0; width * height];
        vectorized(
            #[inline(always)]
            || {
                for (rows, blocks) in samples.chunks_mut(8 * width).zip(self.coefficients.chunks_exact(self.stride)) {
                    for (x, coefficients) in (0..width).step_by(8).zip(blocks) {
                        let block = idct::block(coefficients, &quantizers);
                        for (row, block) in rows.chunks_exact_mut(width).zip(block) {
                            match row[x..].first_chunk_mut::<8>() {
                                Some(eight) => *eight = block,
                                None => row[x..].copy_from_slice(&block[..width - x]),
                            }
                        }
                    }
                }
            },
        );
        Plane { width, height, samples }
    }
}

impl Tables {
    fn set_quantizers(&mut self, mut segment: &[u8]) -> Result<(), String> {
        while let [head, rest @ ..] = segment {
            let wide = (head >> 4 != 0) as usize + 1;
            let (values, after) = rest.split_at_checked(64 * wide).ok_or(HEADER)?;
            let mut table = [0; 64];
            for (value, &place) in values.chunks_exact(wide).zip(&ZIGZAG) {
                table[place] = value.iter().fold(0, |sum, &byte| sum << 8 | byte as u16);
            }
            *self.quantizers.get_mut((head & 15) as usize).ok_or(HEADER)? = Some(table);
            segment = after;
        }
        Ok(())
    }

    fn set_codes(&mut self, mut segment: &[u8]) -> Result<(), String> {
        while let [head, rest @ ..] = segment {
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or(HEADER)?;
            let total = counts.iter().map(|&count| count as usize).sum();
            let (values, after) = rest.split_at_checked(total).ok_or(HEADER)?;
            let table = self.codes.get_mut((head >> 4) as usize).and_then(|kind| kind.get_mut((head & 15) as usize));
            *table.ok_or(HEADER)? = Some(Codes::new(counts, values)?);
            segment = after;
        }
        Ok(())
    }
}

/// Reads the entropy data at `at` into the coefficients; returns where they end.
fn read_scan(
    header: &Header,
    tables: &Tables,
    segment: &[u8],
    bytes: &[u8],
    at: usize,
    units: (usize, usize),
    components: &mut [Component],
) -> Result<usize, String> {
    let (&count, rest) = segment.split_first().ok_or(HEADER)?;
    let (selectors, rest) = rest.split_at_checked(2 * count as usize).ok_or(HEADER)?;
    let &[from, to, bits] = rest else { return Err(HEADER.into()) };
    let scan = match header.progressive {
        true => Scan { from: from as usize, to: to as usize, before: bits >> 4, now: bits & 15 },
        false => Scan { from: 0, to: 63, before: 0, now: 0 },
    };
    let split = scan.from > 0 && count > 1 || scan.from == 0 && scan.to > 0 && header.progressive;
    if scan.from > scan.to || scan.to > 63 || split || scan.now > 13 {
        return Err(HEADER.into());
    }
    // Which components, by which tables.
    let mut chosen: Vec<(usize, Option<&Codes>, Option<&Codes>)> = Vec::new();
    for selector in selectors.chunks_exact(2) {
        let index = header.components.iter().position(|c| c.id == selector[0]).ok_or(HEADER)?;
        if chosen.iter().any(|&(other, ..)| other == index) {
            return Err(HEADER.into());
        }
        let codes = |kind: usize, number: u8| tables.codes[kind].get(number as usize).and_then(Option::as_ref);
        chosen.push((index, codes(0, selector[1] >> 4), codes(1, selector[1] & 15)));
        let component = &mut components[index];
        if component.quantizers.is_none() {
            component.quantizers = Some(tables.quantizers[header.components[index].table].ok_or(HEADER)?);
        }
    }
    let alone = chosen.len() == 1;
    let (across, down) = match chosen[..] {
        [(index, ..)] => components[index].blocks,
        [] => return Err(HEADER.into()),
        _ => units,
    };
    let mut bits = Bits::new(bytes, at);
    let (mut last, mut ended) = ([0i32; 4], 0u32);
    for unit in 0..across * down {
        if tables.restart > 0 && unit > 0 && unit % tables.restart == 0 {
            bits.restart((unit / tables.restart - 1) as u32)?;
            (last, ended) = ([0; 4], 0);
        }
        let (x, y) = (unit % across, unit / across);
        for &(index, first, others) in &chosen {
            let (h, v) = if alone { (1, 1) } else { (header.components[index].h, header.components[index].v) };
            let component = &mut components[index];
            for part in 0..h * v {
                let place = (y * v + part / h) * component.stride + x * h + part % h;
                // Where nothing is kept, there is one block for all.
                let place = place.min(component.coefficients.len() - 1);
                let block = &mut component.coefficients[place];
                let part = read_block(
                    &scan,
                    header.progressive,
                    &mut bits,
                    first,
                    others,
                    &mut last[index],
                    &mut ended,
                    block,
                );
                match part {
                    // It refines what an earlier scan sent, which was left out of the file: libjpeg goes on as well.
                    Err(_) if scan.from > 0 && scan.before > 0 && !component.begun => return Ok(bits.at()),
                    part => part?,
                }
            }
        }
    }
    for (index, ..) in chosen {
        components[index].begun |= scan.to > 0 && scan.before == 0;
    }
    Ok(bits.at())
}

/// Reads a scan's part of one block. `last` is the component's last first coefficient, `ended` the number of blocks to come that
/// have nothing more.
#[allow(clippy::too_many_arguments)]
fn read_block(
    scan: &Scan,
    progressive: bool,
    bits: &mut Bits,
    first: Option<&Codes>,
    others: Option<&Codes>,
    last: &mut i32,
    ended: &mut u32,
    block: &mut [i16; 64],
) -> Result<(), String> {
    let mut place = scan.from;
    if place == 0 {
        if scan.before == 0 {
            let size = bits.value(first.ok_or(HEADER)?)?;
            *last = last.wrapping_add(bits.signed(size)?);
            block[0] = (*last << scan.now) as i16;
        } else if bits.bit()? == 1 {
            block[0] |= 1 << scan.now;
        }
        place = 1;
    }
    if place > scan.to {
        return Ok(());
    }
    let codes = others.ok_or(HEADER)?;
    if scan.before > 0 {
        return refine(scan, bits, codes, ended, block);
    }
    if *ended > 0 {
        *ended -= 1;
        return Ok(());
    }
    while place <= scan.to {
        let code = bits.value(codes)?;
        let (zeros, size) = ((code >> 4) as usize, code & 15);
        match (zeros, size) {
            (15, 0) => place += 16,
            (_, 0) => {
                if progressive {
                    *ended = (1 << zeros) - 1 + bits.number(zeros as u8)? as u32;
                }
                return Ok(());
            }
            _ => {
                place += zeros;
                let value = bits.signed(size)?;
                *ZIGZAG.get(place).map(|&at| &mut block[at]).ok_or(DAMAGED)? = (value << scan.now) as i16;
                place += 1;
            }
        }
    }
    Ok(())
}

/// One more bit of the values of a block, and values that are new.
fn refine(scan: &Scan, bits: &mut Bits, codes: &Codes, ended: &mut u32, block: &mut [i16; 64]) -> Result<(), String> {
    let one = 1i16 << scan.now;
    let more = |bits: &mut Bits, value: &mut i16| -> Result<(), String> {
        if bits.bit()? == 1 && *value & one == 0 {
            *value = value.wrapping_add(if *value >= 0 { one } else { -one });
        }
        Ok(())
    };
    let mut place = scan.from;
    if *ended == 0 {
        while place <= scan.to {
            let code = bits.value(codes)?;
            let (mut zeros, size) = ((code >> 4) as i32, code & 15);
            let mut new = 0;
            match size {
                0 if zeros < 15 => {
                    *ended = (1 << zeros) + bits.number(zeros as u8)? as u32;
                    break;
                }
                0 => {}
                1 => new = if bits.bit()? == 1 { one } else { -one },
                _ => return Err(DAMAGED.into()),
            }
            // Over `zeros` places without a value yet; those with one on the way get their bit.
            while place <= scan.to {
                let value = &mut block[ZIGZAG[place]];
                if *value != 0 {
                    more(bits, value)?;
                } else if zeros == 0 {
                    *value = new;
                    place += 1;
                    break;
                } else {
                    zeros -= 1;
                }
                place += 1;
            }
        }
    }
    if *ended > 0 {
        for &at in &ZIGZAG[place..=scan.to] {
            if block[at] != 0 {
                more(bits, &mut block[at])?;
            }
        }
        *ended -= 1;
    }
    Ok(())
}
