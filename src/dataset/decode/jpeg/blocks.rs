//! Reads the coefficients of single blocks from the bits of a scan.

use super::huffman::{Bits, Codes, Damage};

/// Coefficients of a block, row by row.
pub type Block = [i16; 64];

/// Place in a block, row by row, of the n-th coefficient of a scan.
pub const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// The range of coefficients and of their bits that a scan contains.
#[derive(Clone, Copy, Debug)]
pub struct Scan {
    /// First and last coefficient, in zigzag order.
    pub from: usize,
    pub to: usize,
    /// The lowest bit that earlier scans have sent (0 if there were none), and the lowest bit that this scan sends.
    pub before: u8,
    pub now: u8,
}

/// Reads the difference between a first coefficient (DC) and the one before it.
#[inline(always)]
fn step(bits: &mut Bits, codes: &Codes) -> Result<i32, Damage> {
    // The symbols are sizes only. A symbol with a nonzero upper half would be a size of more than 15 bits.
    match bits.value(codes)? {
        (0, _, step) => Ok(step),
        _ => Err(Damage),
    }
}

/// Reads a whole block at once. `last` is the first coefficient of the component's previous block.
#[inline(always)]
pub fn read_whole(
    bits: &mut Bits,
    first: &Codes,
    others: &Codes,
    last: &mut i32,
    block: &mut Block,
) -> Result<(), Damage> {
    *block = [0; 64];
    *last = last.wrapping_add(step(bits, first)?);
    block[0] = *last as i16;
    let mut place = 1;
    while place < 64 {
        let (zeros, size, value) = bits.value(others)?;
        if size == 0 {
            if zeros < 15 {
                break;
            }
            place += 16;
            continue;
        }
        place += zeros;
        block[*ZIGZAG.get(place).ok_or(Damage)?] = value as i16;
        place += 1;
    }
    bits.check()
}

/// Reads a scan's part of one block of a progressive image. `ended` is the number of following blocks without new values in this
/// scan.
pub fn read_part(
    scan: &Scan,
    bits: &mut Bits,
    first: &Codes,
    others: &Codes,
    last: &mut i32,
    ended: &mut u32,
    block: &mut Block,
) -> Result<(), Damage> {
    match (scan.from, scan.before) {
        (0, 0) => {
            *last = last.wrapping_add(step(bits, first)?);
            block[0] = (*last << scan.now) as i16;
        }
        (0, _) => block[0] |= i16::from(bits.bit()) << scan.now,
        (_, 0) => begin(scan, bits, others, ended, block)?,
        _ => refine(scan, bits, others, ended, block)?,
    }
    bits.check()
}

/// Reads the upper bits of a block's values, which no earlier scan has sent.
fn begin(scan: &Scan, bits: &mut Bits, codes: &Codes, ended: &mut u32, block: &mut Block) -> Result<(), Damage> {
    if *ended > 0 {
        *ended -= 1;
        return Ok(());
    }
    let mut place = scan.from;
    while place <= scan.to {
        let (zeros, size, value) = bits.value(codes)?;
        if size == 0 {
            if zeros < 15 {
                *ended = (1 << zeros) - 1 + bits.number(zeros as u8);
                break;
            }
            place += 16;
            continue;
        }
        place += zeros;
        block[*ZIGZAG.get(place).ok_or(Damage)?] = (value << scan.now) as i16;
        place += 1;
    }
    Ok(())
}

/// Reads one more bit of a block's existing values, and values that are new.
fn refine(scan: &Scan, bits: &mut Bits, codes: &Codes, ended: &mut u32, block: &mut Block) -> Result<(), Damage> {
    let one = 1i16 << scan.now;
    let more = |bits: &mut Bits, value: &mut i16| {
        if bits.bit() && *value & one == 0 {
            *value = value.wrapping_add(if *value >= 0 { one } else { -one });
        }
    };
    let mut place = scan.from;
    if *ended == 0 {
        while place <= scan.to {
            let (mut zeros, size) = bits.symbol(codes)?;
            let mut new = 0;
            match size {
                0 if zeros < 15 => {
                    *ended = (1 << zeros) + bits.number(zeros as u8);
                    break;
                }
                0 => {}
                1 => new = if bits.bit() { one } else { -one },
                _ => return Err(Damage),
            }
            // Passes `zeros` places that have no value yet. Places that have a value get their next bit on the way.
            while place <= scan.to {
                let value = &mut block[ZIGZAG[place]];
                place += 1;
                if *value != 0 {
                    more(bits, value);
                } else if zeros == 0 {
                    *value = new;
                    break;
                } else {
                    zeros -= 1;
                }
            }
        }
    }
    if *ended > 0 {
        for &at in &ZIGZAG[place..=scan.to] {
            if block[at] != 0 {
                more(bits, &mut block[at]);
            }
        }
        *ended -= 1;
    }
    Ok(())
}
