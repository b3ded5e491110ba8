//! Reads the scans of a JPEG one after another into the planes of its components.

use std::ops::Range;

use super::{
    blocks::{Block, Scan, ZIGZAG, read_part, read_whole},
    header::{Announced, HEADER, Header, next_segment},
    huffman::{Codes, Damage, Stretch},
    idct,
    planes::{Lines, Plane, rgb},
    standard,
};
use crate::{dataset::CropBox, ops::simd::vectorized};

/// A component while scans are read into it.
struct Component {
    /// Blocks per unit (MCU), horizontally and vertically.
    h: usize,
    v: usize,
    /// Number of blocks that contain samples of the image, across and down.
    blocks: (usize, usize),
    /// Blocks per row, including those that pad the last unit.
    stride: usize,
    /// For a progressive image all blocks, since its scans refine each other; otherwise the blocks of one row of units.
    coefficients: Vec<Block>,
    /// The component's quantization table at the start of its first scan; None before that scan.
    quantizers: Option<Block>,
    /// Whether a first scan of coefficients other than the first one (AC) has been read.
    begun: bool,
    /// The component's samples; its buffer is empty or stale if no samples are wanted.
    plane: Plane,
    /// Ranges of blocks whose samples are wanted, across and down.
    wanted: (Range<usize>, Range<usize>),
}

/// Tables and settings that markers between scans change.
#[derive(Default)]
struct Tables {
    quantizers: [Option<Block>; 4],
    /// By kind (first coefficient, others) and number.
    codes: [[Option<Codes>; 4]; 2],
    /// Number of units between restart markers; 0 for no restart markers.
    restart: usize,
}

/// The part of a scan that belongs to one component.
struct Part<'a> {
    component: &'a mut Component,
    first: &'a Codes,
    others: &'a Codes,
    /// Blocks per unit of this scan, horizontally and vertically.
    h: usize,
    v: usize,
    /// The first coefficient (DC) of the component's previous block; 0 at the start and after a restart marker.
    last: i32,
}

/// Working memory for decoding, which grows to the largest image.
#[derive(Default)]
pub struct Memory {
    data: Vec<u8>,
    coefficients: [Vec<Block>; 4],
    samples: [Vec<u8>; 4],
    lines: Lines,
}

/// Decodes a part of an image to RGB in `out`. In a file that is not progressive, image data behind the part's last row are not
/// read; [`verify`] finds damage there.
///
/// Errors: a short reason for people.
/// Errors: a short reason for people.
pub fn decode(
    bytes: &[u8],
    header: &Header,
    part: CropBox,
    memory: &mut Memory,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let mut components = read(bytes, header, Some(part), memory)?;
    if header.progressive {
        for component in &mut components {
            vectorized(
                #[inline(always)]
                || component.transform(0, component.blocks.1),
            );
        }
    }
    let planes = components.iter().map(|component| &component.plane);
    rgb(planes, header.colors(), part, &mut memory.lines, out);
    memory.take_back(components);
    Ok(())
}

/// Checks that the image data are whole. This takes about as long as any decoder needs to read the Huffman codes.
///
/// Errors: as for [`decode`].
pub fn verify(bytes: &[u8], header: &Header, memory: &mut Memory) -> Result<(), String> {
    let components = read(bytes, header, None, memory)?;
    memory.take_back(components);
    Ok(())
}

impl Memory {
    /// Number of bytes allocated.
    pub fn bytes(&self) -> usize {
        let blocks: usize = self.coefficients.iter().map(Vec::capacity).sum();
        self.data.capacity() + size_of::<Block>() * blocks + self.samples.iter().map(Vec::capacity).sum::<usize>()
    }

    fn take_back(&mut self, components: Vec<Component>) {
        for (i, component) in components.into_iter().enumerate() {
            (self.coefficients[i], self.samples[i]) = (component.coefficients, component.plane.samples);
        }
    }
}

/// Reads all scans. If a part is wanted and the image is not progressive, also computes the samples of the part.
fn read(bytes: &[u8], header: &Header, wanted: Option<CropBox>, memory: &mut Memory) -> Result<Vec<Component>, String> {
    let (most_h, most_v) = header.most();
    let units = (header.width.div_ceil(8 * most_h), header.height.div_ceil(8 * most_v));
    let component = |(i, c): (usize, &Announced)| {
        let (width, height) = ((header.width * c.h).div_ceil(most_h), (header.height * c.v).div_ceil(most_v));
        let blocks = (width.div_ceil(8), height.div_ceil(8));
        let (across, down, stride) = (most_h / c.h, most_v / c.v, units.0 * c.h);
        let mut samples = std::mem::take(&mut memory.samples[i]);
        let mut coefficients = std::mem::take(&mut memory.coefficients[i]);
        // Samples and coefficients of an earlier image may stay, since they are overwritten. Only a progressive image needs
        // zeroed coefficients, because its scans add to them.
        if wanted.is_some() {
            samples.resize(64 * stride * blocks.1, 0);
        }
        if header.progressive {
            coefficients.clear();
        }
        coefficients.resize(stride * c.v * if header.progressive { units.1 } else { 1 }, [0; 64]);
        let plane = Plane { width, height, stride: 8 * stride, across, down, samples };
        let wanted = wanted.map_or((0..0, 0..0), |part| {
            let of = |samples: Range<usize>| samples.start / 8..samples.end.div_ceil(8);
            (of(plane.columns(part)), of(plane.rows(part)))
        });
        Component { h: c.h, v: c.v, blocks, stride, coefficients, quantizers: None, begun: false, plane, wanted }
    };
    let mut components: Vec<_> = header.components.iter().enumerate().map(component).collect();
    let mut tables = Tables::default();
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
            0xda => {
                let mut data = Stretch::new(bytes, at, std::mem::take(&mut memory.data));
                let read = read_scan(header, &tables, segment, &mut data, units, &mut components);
                at = data.end();
                memory.data = data.into_memory();
                read?;
            }
            _ => {}
        }
    }
    // A progressive file may end after any of its scans; a baseline one has to hold every component.
    if !header.progressive && components.iter().any(|component| component.quantizers.is_none()) {
        return Err(Damage.into());
    }
    Ok(components)
}

impl Component {
    /// Computes the samples of the wanted blocks among the `rows` block rows from row `top` on. `coefficients` starts with row
    /// `top`.
    #[inline(always)]
    fn transform(&mut self, top: usize, rows: usize) {
        let (stride, quantizers) = (self.plane.stride, self.quantizers.unwrap_or([0; 64]));
        let (across, down) = self.wanted.clone();
        for y in down.start.max(top)..down.end.min(top + rows) {
            let blocks = &self.coefficients[self.stride * (y - top)..][..self.stride];
            let samples = &mut self.plane.samples[8 * stride * y..][..8 * stride];
            for x in across.clone() {
                let block = idct::block(&blocks[x], &quantizers);
                for (row, eight) in samples.chunks_exact_mut(stride).zip(block) {
                    row[8 * x..8 * x + 8].copy_from_slice(&eight);
                }
            }
        }
    }
}

impl Tables {
    fn set_quantizers(&mut self, mut segment: &[u8]) -> Result<(), String> {
        while let [head, rest @ ..] = segment {
            let wide = (head >> 4 != 0) as usize + 1;
            let (values, after) = rest.split_at_checked(64 * wide).ok_or(HEADER)?;
            let mut table = [0; 64];
            for (value, &place) in values.chunks_exact(wide).zip(&ZIGZAG) {
                table[place] = value.iter().fold(0, |sum, &byte| sum << 8 | i16::from(byte));
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
            let (symbols, after) = rest.split_at_checked(total).ok_or(HEADER)?;
            let table = self.codes.get_mut((head >> 4) as usize).and_then(|kind| kind.get_mut((head & 15) as usize));
            *table.ok_or(HEADER)? = Some(Codes::new(counts, symbols)?);
            segment = after;
        }
        Ok(())
    }

    /// The codes of a kind and number; if the file has none, those of the standard. If codes are not `needed`, any codes are
    /// returned.
    fn codes(&self, kind: usize, number: u8, needed: bool) -> Result<&Codes, String> {
        let number = if needed { usize::from(number) } else { 0 };
        let sent = self.codes[kind].get(number).and_then(Option::as_ref);
        Ok(sent.or(standard::codes()[kind].get(number)).ok_or(HEADER)?)
    }
}

/// Reads the entropy-coded data of a scan into the coefficients and, in a baseline file, computes samples from them.
fn read_scan(
    header: &Header,
    tables: &Tables,
    segment: &[u8],
    data: &mut Stretch,
    units: (usize, usize),
    components: &mut [Component],
) -> Result<(), String> {
    let (&count, rest) = segment.split_first().ok_or(HEADER)?;
    let (selectors, rest) = rest.split_at_checked(2 * count as usize).ok_or(HEADER)?;
    let &[from, to, low] = rest else { return Err(HEADER.into()) };
    let scan = match header.progressive {
        true => Scan { from: from as usize, to: to as usize, before: low >> 4, now: low & 15 },
        false => Scan { from: 0, to: 63, before: 0, now: 0 },
    };
    let split = scan.from > 0 && count > 1 || scan.from == 0 && scan.to > 0 && header.progressive;
    if scan.from > scan.to || scan.to > 63 || split || scan.now > 13 {
        return Err(HEADER.into());
    }
    let alone = count == 1;
    // A component may occur only once in a scan.
    let mut left: Vec<_> = components.iter_mut().map(Some).collect();
    let mut parts = Vec::new();
    for selector in selectors.chunks_exact(2) {
        let index = header.components.iter().position(|c| c.id == selector[0]).ok_or(HEADER)?;
        let component = left[index].take().ok_or(HEADER)?;
        if component.quantizers.is_none() {
            component.quantizers = Some(tables.quantizers[header.components[index].table].ok_or(HEADER)?);
        }
        let (h, v) = if alone { (1, 1) } else { (component.h, component.v) };
        let first = tables.codes(0, selector[1] >> 4, scan.from == 0 && scan.before == 0)?;
        let others = tables.codes(1, selector[1] & 15, scan.to > 0)?;
        parts.push(Part { component, first, others, h, v, last: 0 });
    }
    let units = match &parts[..] {
        [part] => part.component.blocks,
        [] => return Err(HEADER.into()),
        _ => units,
    };
    let read = match header.progressive {
        true => read_parts(&scan, data, tables.restart, units, &mut parts),
        false => vectorized(
            #[inline(always)]
            || read_wholes(data, tables.restart, units, &mut parts),
        ),
    };
    match read {
        // The scan refines coefficients whose first scan is missing from the file. libjpeg ignores such a scan as well.
        Err(_) if scan.from > 0 && scan.before > 0 && !parts[0].component.begun => return Ok(()),
        read => read?,
    }
    for part in parts {
        part.component.begun |= scan.to > 0 && scan.before == 0;
    }
    Ok(())
}

/// Reads a scan of whole blocks. Each row of units is converted to samples as soon as it has been read.
#[inline(always)]
fn read_wholes(
    data: &mut Stretch,
    restart: usize,
    (across, down): (usize, usize),
    parts: &mut [Part],
) -> Result<(), Damage> {
    // Rows behind the wanted part of every component are not read. If no part is wanted, all rows are read to verify them.
    let rows = parts.iter().map(|part| part.component.wanted.1.end.div_ceil(part.v)).max().filter(|&rows| rows > 0);
    let mut bits = data.bits();
    for y in 0..rows.unwrap_or(down) {
        for x in 0..across {
            let unit = y * across + x;
            if begins_anew(restart, unit) {
                let left = bits.left();
                data.restart((unit / restart - 1) as u32, left)?;
                bits = data.bits();
                parts.iter_mut().for_each(|part| part.last = 0);
            }
            for part in &mut *parts {
                for row in 0..part.v {
                    let place = row * part.component.stride + x * part.h;
                    for block in &mut part.component.coefficients[place..place + part.h] {
                        read_whole(&mut bits, part.first, part.others, &mut part.last, block)?;
                    }
                }
            }
        }
        for part in &mut *parts {
            part.component.transform(y * part.v, part.v);
        }
    }
    Ok(())
}

/// Whether there has to be a restart marker before the unit of this number.
#[inline(always)]
fn begins_anew(restart: usize, unit: usize) -> bool {
    restart > 0 && unit > 0 && unit.is_multiple_of(restart)
}

/// Reads a scan of a progressive image, which contains parts of blocks.
fn read_parts(
    scan: &Scan,
    data: &mut Stretch,
    restart: usize,
    (across, down): (usize, usize),
    parts: &mut [Part],
) -> Result<(), Damage> {
    let mut bits = data.bits();
    let mut ended = 0;
    for unit in 0..across * down {
        if begins_anew(restart, unit) {
            let left = bits.left();
            data.restart((unit / restart - 1) as u32, left)?;
            bits = data.bits();
            parts.iter_mut().for_each(|part| part.last = 0);
            ended = 0;
        }
        let (x, y) = (unit % across, unit / across);
        for part in &mut *parts {
            for row in y * part.v..(y + 1) * part.v {
                let place = row * part.component.stride + x * part.h;
                for block in &mut part.component.coefficients[place..place + part.h] {
                    read_part(scan, &mut bits, part.first, part.others, &mut part.last, &mut ended, block)?;
                }
            }
        }
    }
    Ok(())
}
