//! Bits of a scan, and the codes that they spell.

use super::careful::DAMAGED;

/// Codes of at most this many bits are found by one look.
const SHORT: u32 = 8;

/// A table of codes of 1 to 16 bits.
#[derive(Clone, Debug)]
pub struct Codes {
    values: Vec<u8>,
    /// By length - 1: one beyond its largest code, and what to add to a code for its place in `values`.
    by_length: [(i32, i32); 16],
    /// By the next [`SHORT`] bits: the length of the code that they begin with, 0 if it is longer, and its value.
    short: Vec<(u8, u8)>,
}

impl Codes {
    /// From how many codes there are of each length, and their values.
    pub fn new(counts: &[u8; 16], values: &[u8]) -> Result<Codes, String> {
        let (mut code, mut place) = (0i32, 0i32);
        let mut by_length = [(0, 0); 16];
        for (entry, &count) in by_length.iter_mut().zip(counts) {
            *entry = (code + count as i32, place - code);
            code = (code + count as i32) << 1;
            place += count as i32;
        }
        if place as usize != values.len() {
            return Err(DAMAGED.into());
        }
        let find = |bits: i32| {
            let lengths = (1..=SHORT).zip(&by_length);
            let mut found = lengths.filter(|&(length, &(end, _))| bits >> (SHORT - length) < end);
            let (length, &(_, offset)) = found.next()?;
            Some((length as u8, *values.get(((bits >> (SHORT - length)) + offset) as usize)?))
        };
        let short = (0..1 << SHORT).map(|bits| find(bits).unwrap_or((0, 0))).collect();
        Ok(Codes { values: values.to_vec(), by_length, short })
    }
}

/// Reads a scan's bits; a zero after 0xFF is stuffing, anything else a marker, at which the bits end.
pub struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The lowest `count` bits are still to be read.
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    /// Bits of `bytes` from `at`.
    pub fn new(bytes: &'a [u8], at: usize) -> Bits<'a> {
        Bits { bytes, at, held: 0, count: 0 }
    }

    /// Where bytes were not looked at yet; no marker lies before it.
    pub fn at(&self) -> usize {
        self.at
    }

    fn refill(&mut self) {
        while self.count <= 56 {
            let byte = match self.bytes.get(self.at..) {
                Some([0xff, 0, ..]) => {
                    self.at += 2;
                    0xff
                }
                Some([byte, ..]) if *byte != 0xff => {
                    self.at += 1;
                    *byte
                }
                _ => return,
            };
            self.held = self.held << 8 | byte as u64;
            self.count += 8;
        }
    }

    /// The next `count` bits, at most 16, which stay.
    fn peek(&mut self, count: u32) -> Result<u32, String> {
        if self.count < count {
            self.refill();
            if self.count < count {
                return Err(DAMAGED.into());
            }
        }
        Ok((self.held >> (self.count - count)) as u32 & ((1 << count) - 1))
    }

    /// The next bit.
    pub fn bit(&mut self) -> Result<i32, String> {
        self.number(1)
    }

    /// The next `count` bits, at most 16, as a number.
    pub fn number(&mut self, count: u8) -> Result<i32, String> {
        let number = self.peek(count as u32)?;
        self.count -= count as u32;
        Ok(number as i32)
    }

    /// A signed number of `count` bits: one that begins with 0 is negative.
    pub fn signed(&mut self, count: u8) -> Result<i32, String> {
        if count > 15 {
            return Err(DAMAGED.into());
        }
        let number = self.number(count)?;
        Ok(if count > 0 && number >> (count - 1) == 0 { number - (1 << count) + 1 } else { number })
    }

    /// The value of the next code.
    pub fn value(&mut self, codes: &Codes) -> Result<u8, String> {
        if self.count < 16 {
            self.refill();
        }
        if self.count >= SHORT {
            let (length, value) = codes.short[(self.held >> (self.count - SHORT)) as usize & ((1 << SHORT) - 1)];
            if length > 0 {
                self.count -= length as u32;
                return Ok(value);
            }
        }
        for (length, &(end, offset)) in (1..).zip(&codes.by_length) {
            let code = self.peek(length)? as i32;
            if code < end {
                self.count -= length;
                return codes.values.get((code + offset) as usize).copied().ok_or_else(|| DAMAGED.into());
            }
        }
        Err(DAMAGED.into())
    }

    /// Goes beyond the restart marker of this number, which must come next.
    pub fn restart(&mut self, number: u32) -> Result<(), String> {
        self.count = 0;
        while self.bytes.get(self.at..self.at + 2) == Some(&[0xff, 0xff]) {
            self.at += 1;
        }
        if self.bytes.get(self.at..self.at + 2) != Some(&[0xff, 0xd0 + (number % 8) as u8]) {
            return Err(DAMAGED.into());
        }
        self.at += 2;
        Ok(())
    }
}
